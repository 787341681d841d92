"""The report: what it shows, that it needs nothing but itself, and that no text can break it."""

import base64
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from nnscan.artifacts import write_frame
from nnscan.claims import evaluate_claims, read_claims
from nnscan.contents import TABLES
from nnscan.errors import ArtifactError
from nnscan.report import Study, write_report
from nnscan.tables import Run, read_published
from result_files import make_runs, put_dimensions, put_test_accuracy

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags close in the order in which they opened."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def png() -> bytes:
    """Return a picture of one white pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\xff")) + chunk(b"IEND", b"")


@pytest.fixture
def parts(tmp_path, repository):
    """What a report is made of: two seeds in which FQ rises, SSIM rises too (so one claim fails), and a picture."""
    runs = [Run("digits", "lenet5", seed, tmp_path / f"seed{seed}") for seed in (0, 1)]
    for run in runs:
        rows = [
            {"layer": layer, "depth": depth, "ssim": 0.5 + 0.125 * depth, "fq": 0.1 + 0.25 * depth}
            for depth, layer in enumerate(("features.0", "features.3", "features.6", "features.8"))
        ]
        write_frame(run.folder / "metrics/well_trained/quantity.parquet", pd.DataFrame(rows), {})
    published = repository / "workflow" / "published"
    claims = [claim for claim in read_claims(published / "claims.csv") if claim.table in ("slides_4-2", "slides_6-2")]
    table = TABLES["slides_4-2"]
    (tmp_path / "figure.png").write_bytes(png())
    return {
        "study": Study(
            "digits",
            "A study.",
            ["digits"],
            ["lenet5"],
            [0, 1],
            "2 cores",
            {"torch": "2.14.1", "python": "3.11"},
        ),
        "tables": [(table, table.function(runs, read_published(published, table.id)))],
        "claims": evaluate_claims(claims, runs),
        "figures": [("FQ by layer", "How it grows.", tmp_path / "figure.png")],
        "provenance": [{"artefact": "seed0", "digest": "3f2a"}, {"artefact": "seed1", "machine": "x86"}],
    }


def test_report_shows_study_tables_verdicts_figures_and_provenance(tmp_path, parts):
    write_report(tmp_path / "report.html", **parts)
    page = Page(tmp_path / "report.html")
    assert page.open == []
    for text in ("digits", "LeNet-5", "2 cores", "torch 2.14.1", TABLES["slides_4-2"].caption, "– / 0.1000 ± 0.0000"):
        assert text in page.text
    assert "1 ✓ reproduced 1 ✗ contradicted 1 ○ inconclusive" in page.text
    assert "undefined for seeds 0, 1: metrics/well_trained/anomaly.parquet is missing" in page.text
    assert "Claims about figures" in page.text  # those of slides 6-2, whose table is not in this report
    assert "FQ by layer How it grows." in page.text
    assert "3f2a" in page.text
    assert "x86" in page.text


def test_claims_are_listed_by_verdict(tmp_path, parts):
    write_report(tmp_path / "report.html", **parts)
    text = Page(tmp_path / "report.html").text
    for row in parts["claims"].to_dict("records"):
        symbol = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "○"}[row["verdict"]]
        start = text.index(f"{symbol} {row['verdict']}: 1 claim network")
        line = text[start : text.index(row["statement"], start) + len(row["statement"]) + 40]
        assert "digits · LeNet-5" in line
    assert "contradicted: 1 claim network statistic [95 % interval] seeds" in text


def test_a_claim_over_runs_counts_runs(tmp_path, parts, repository):
    models = ("lenet5", "simple_cnn", "alexnet", "vgg11")
    runs = [run for model in models for run in make_runs(tmp_path, model, seeds=[0])]
    for number, run in enumerate(runs):
        put_dimensions(run, "well_trained", [(20.0, 40), (1.0 + number, 9), (2.0, 3)])
        put_test_accuracy(run, 0.5 - 0.1 * number)
    claims = read_claims(repository / "workflow" / "published" / "claims.csv")
    own = [claim for claim in claims if claim.table == "dimension_error"]
    parts["claims"] = pd.concat([parts["claims"], evaluate_claims(own, runs)], ignore_index=True)
    write_report(tmp_path / "report.html", **parts)
    text = Page(tmp_path / "report.html").text
    assert "digits · all 1.00 [1.00, 1.00] · 4 runs" in text
    assert "digits · all 1.00 [1.00, 1.00] 4 runs" in text  # in the list by verdict
    assert "· 2 seeds" in text


def test_figures_link_to_their_pages(tmp_path, parts):
    image = str(tmp_path / "figure.png")
    pages = {image: str(tmp_path / "figures" / "page.html"), "another.png": "another.html"}
    write_report(tmp_path / "study" / "report.html", **parts, pages=pages)
    page = Page(tmp_path / "study" / "report.html")
    assert [value for value in page.values("href") if not value.startswith(("#", "data:"))] == ["../figures/page.html"]
    assert "Interactive page" in page.text


def test_contents_point_to_what_exists(tmp_path, parts):
    write_report(tmp_path / "report.html", **parts)
    page = Page(tmp_path / "report.html")
    places = page.values("id")
    assert len(places) == len(set(places))
    links = [value for value in page.values("href") if value.startswith("#")]
    assert {"#study", "#verdicts", "#slides_4-2", "#figures", "#provenance"} <= set(links)
    assert {link[1:] for link in links} <= set(places)


def test_report_needs_nothing_but_itself(tmp_path, parts):
    write_report(tmp_path / "report.html", **parts)
    page = Page(tmp_path / "report.html")
    for value in page.values("src", "href", "srcset", "action", "poster"):
        assert value.startswith(("data:", "#"))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://|fetch\(|<iframe", source)
    picture = next(value for value in page.values("src"))
    assert base64.b64decode(picture.removeprefix("data:image/png;base64,")) == png()


def test_text_is_escaped(tmp_path, parts):
    bad = "<script>alert('x')</script> & \"quotes\""
    parts["study"] = Study(bad, bad, [bad], [bad], [0], bad, {bad: bad})
    parts["figures"] = [(bad, bad, parts["figures"][0][2])]
    parts["provenance"] = [{bad: bad}]
    parts["claims"] = parts["claims"].assign(statement=bad, note=bad, remark=bad, dataset=bad, model=bad)
    parts["tables"] = [(table, frame.assign(dataset=bad, model=bad, note=bad)) for table, frame in parts["tables"]]
    write_report(tmp_path / "report.html", **parts)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in source
    page = Page(tmp_path / "report.html")
    assert page.open == []
    assert page.text.count(bad) >= 10


def test_a_partial_report_says_so_and_what_is_missing(tmp_path, parts):
    write_report(tmp_path / "report.html", **parts)
    assert "partial" not in Page(tmp_path / "report.html").text
    missing = [
        ["lenet5 on <digits>, seed 2", "train_model: diverged (a.log)", "scan: killed (b.log)"],
        ["vgg", "not begun"],
    ]
    write_report(tmp_path / "report.html", **parts, missing=missing)
    page = Page(tmp_path / "report.html")
    assert page.open == []
    assert "This report is partial." in page.text
    listed = "lenet5 on <digits>, seed 2 train_model: diverged (a.log) scan: killed (b.log) vgg not begun"
    assert listed in page.text


def test_report_without_claims_figures_or_provenance(tmp_path, parts):
    parts |= {"claims": parts["claims"].iloc[:0], "figures": [], "provenance": []}
    write_report(tmp_path / "report.html", **parts)
    page = Page(tmp_path / "report.html")
    assert "0 ✓ reproduced" in page.text
    assert "Figures" not in page.text


def test_same_parts_give_the_same_page(tmp_path, parts):
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, **parts)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_figure_that_is_missing_or_no_picture(tmp_path, parts):
    parts["figures"] = [("t", "c", tmp_path / "none.png")]
    with pytest.raises(ArtifactError, match=r"none\.png does not exist"):
        write_report(tmp_path / "report.html", **parts)
    (tmp_path / "none.png").write_bytes(b"<svg/>")
    with pytest.raises(ArtifactError, match="not a PNG"):
        write_report(tmp_path / "report.html", **parts)
    assert not (tmp_path / "report.html").exists()


def test_import_needs_no_torch():
    code = "import sys, nnscan.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
