"""Tables as CSV, Markdown, LaTeX and HTML: what they show, that no text can break them, that they read back."""

import math
from pathlib import Path

import pandas as pd
import pytest

from nnscan.claims import evaluate_claims, read_claims
from nnscan.contents import TABLES
from nnscan.rendering import latex_text, marked_as_partial, number, read_csv, readable, render, write_csv
from nnscan.tables import Run
from result_files import alexnet_quantities, fill, make_runs, put, put_layers, quantities


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (math.nan, 2, "–"),
        (-0.346, 2, "−0.35"),
        (0.0012, None, "0.0012"),
        (66.15, None, "66.15"),
        (-12.8, None, "−12.8"),
        (0.00012, 3, "0.0001"),
        (-0.0, 1, "0.0"),
        (12345.6, 1, "12345.6"),
        (0.0, 3, "0.000"),
    ],
)
def test_number(value, decimals, expected):
    assert number(value, decimals) == expected


def test_latex_text_escapes_what_latex_acts_upon():
    assert latex_text(r"a_b & 5 % of $x$ #1 {y} ~^\z") == (
        r"a\_b \& 5 \% of \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}z"
    )
    assert latex_text("−1 ± 2 – 3") == r"$-$1 $\pm$ 2 -- 3"


def strange_runs(folder: Path) -> list[Run]:
    runs = make_runs(folder, "my_net<b>|50%", seeds=(0, 1))
    for run in runs:
        layers = {"block_1.conv": [(1, 1, 1, 0.2 + 0.1 * run.seed)], "head & tail": [(1, 1, -0.5, math.nan)]}
        put(run, "metrics/well_trained/quantity.parquet", quantities(layers))
    return runs


def test_a_partial_table_says_so_in_every_format(tmp_path, published):
    frame = fill("slides_4-2", strange_runs(tmp_path), published)
    paths = render(marked_as_partial(frame, "partial: 2 of 6 runs"), TABLES["slides_4-2"], tmp_path / "tables")
    for path in paths.values():
        assert "partial: 2 of 6 runs" in path.read_text(encoding="utf-8"), path
    marked = read_csv(paths["csv"])
    assert marked["note"].str.startswith("partial: 2 of 6 runs").all()
    assert (
        marked["note"].str.contains("; no foreground mask").sum() == (frame["note"] == "no foreground mask").sum() > 0
    )


def test_rendered_texts_are_escaped(tmp_path, published):
    frame = fill("slides_4-2", strange_runs(tmp_path), published)
    paths = render(frame, TABLES["slides_4-2"], tmp_path / "tables")
    assert sorted(path.name for path in paths.values()) == [
        f"slides_4-2.{kind}" for kind in ("csv", "html", "md", "tex")
    ]
    tex, page, text = (paths[ending].read_text(encoding="utf-8") for ending in ("tex", "html", "md"))
    assert r"\textbf{digits, my\_net\textless{}b\textgreater{}\textbar{}50\%}" in tex
    assert r"2 $\cdot$ head \& tail & -- / $-$0.500 $\pm$ 0.000 & -- / --\textsuperscript{1} \\" in tex
    assert r"\textsuperscript{1} no foreground mask" in tex
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    assert "my_net&lt;b&gt;|50%" in page
    assert "my_net<b>" not in page
    assert r"my\_net\<b\>\|50%" in text
    assert r"| 1 · block\_1.conv | – / 1.000 ± 0.000 | – / 0.2500 ± 0.0707 |" in text


def test_readable_cells(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet")
    alexnet_quantities(runs)
    view = readable(fill("slides_4-2", runs, published), TABLES["slides_4-2"])
    assert list(view.frame) == ["data", "model", "layer", "SSIM", "FQ"]
    assert str(view.frame.loc[0, "FQ"]) == "0.0012, 0.0003 / 0.3000 ± 0.1000"
    assert "those on ILSVRC-2013 DET, CUB200-2011, in this order" in view.legend


def test_csv_is_rounded_sorted_and_repeatable(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet")
    alexnet_quantities(runs)
    table = TABLES["slides_4-2"]
    first = render(fill(table.id, runs, published), table, tmp_path / "one")
    second = render(fill(table.id, runs[::-1], published), table, tmp_path / "two")
    for ending, path in first.items():
        assert path.read_bytes() == second[ending].read_bytes()
    write_csv(tmp_path / "x.csv", pd.DataFrame({"ours": [1 / 3, -0.0, 1234567.8], "note": ["", "a,b", ""]}))
    assert (tmp_path / "x.csv").read_text() == 'ours,note\n0.333333,\n0,"a,b"\n1.23457e+06,\n'


def test_csv_reads_back_as_the_same_table(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1)) + make_runs(tmp_path, "vgg16", seeds=(0,))
    alexnet_quantities(runs[:2])
    table = TABLES["slides_4-2"]
    frame = fill(table.id, runs, published)
    again = read_csv(render(frame, table, tmp_path)["csv"])
    pd.testing.assert_frame_equal(frame, again, rtol=1e-5)
    before, after = readable(frame, table), readable(again, table)
    assert (before.frame.equals(after.frame), before.notes, before.remarks) == (True, after.notes, after.remarks)


def test_evaluated_claims_read_back(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    alexnet_quantities(runs)
    frame = evaluate_claims(read_claims(published / "claims.csv"), runs)
    write_csv(tmp_path / "claims.csv", frame)
    pd.testing.assert_frame_equal(frame, read_csv(tmp_path / "claims.csv"), rtol=1e-5)


def test_a_study_without_any_file_still_renders(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0,))
    for table in TABLES.values():
        paths = render(fill(table.id, runs, published), table, tmp_path / "tables")
        assert "is missing" in paths["md"].read_text()


def test_numbers_of_parameters_are_written_in_full(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1), dataset="cifar10")
    for run in runs:
        put_layers(run, 4, {4: (1097610, 0.75), 5: (2408842, 0.5), 8: (9488266, 0.25)})
    table = TABLES["thesis_5-1_layers"]
    paths = render(fill(table.id, runs, published), table, tmp_path)
    view = readable(read_csv(paths["csv"]), table)
    assert list(view.frame) == ["data", "model", "convolutions", "chosen", "parameters", "test accuracy [%]"]
    assert view.frame["convolutions"].tolist() == ["4", "5", "8"]
    assert str(view.frame.loc[2, "parameters"]) == "9488266 / 9488266 ± 0"
    assert str(view.frame.loc[1, "parameters"]) == "– / 2408842 ± 0"
    text = paths["md"].read_text(encoding="utf-8")
    assert "| cifar10 | VGG-11 | 4 | yes | 1097610 / 1097610 ± 0 | 80 / 75.0 ± 0.0 |" in text
    assert "|  |  | 8 | no | 9488266 / 9488266 ± 0 | 73.9 / 25.0 ± 0.0 |" in text
