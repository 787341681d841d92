"""Names and texts of a stranger in pages, reports, tables, figures, messages and logs."""

import json
import logging
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from hostile import bounded
from nnscan.artifacts import read_frame, write_frame
from nnscan.contents import TABLES
from nnscan.errors import DataError, LayerError, NnscanError, did_you_mean, printable
from nnscan.figures import class_averages, plain, save_figure, similarity
from nnscan.jobs import job
from nnscan.pages import similarity_page
from nnscan.rendering import latex_text, read_csv, render, write_csv
from nnscan.tables import read_published
from result_files import make_runs, put, quantities

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>x</a>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def similarities(layer: str) -> pd.DataFrame:
    rows = [
        {"layer": layer, "depth": depth, "filter": 0, "class": number, "method": method, "average": "simple",
         "similarity": 0.5, "seed": 0}
        for number in range(2) for depth in range(2) for method in (1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_page_shows_names_and_runs_none(tmp_path):
    """Plotly itself makes links and tags of names; in the page's own code a name cannot end the script."""
    similarity_page(tmp_path / "page.html", similarities(SCRIPT), [SCRIPT, "b"], "title")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert not re.search(r"</script><script>alert", text)
    elements = Elements(text).found
    assert {tag for tag, _ in elements} <= {"html", "head", "meta", "body", "div", "script", "style"}
    names = set(re.findall(r'"name":("(?:[^"\\]|\\.)*")', text[text.rindex("Plotly.newPlot") :]))
    assert json.dumps(SCRIPT)[1:-1] not in "".join(names)
    assert any("&lt;/script&gt;" in json.loads(name) for name in names)


LAYERS = {
    "html": SCRIPT,
    "latex": r"\input{/etc/passwd}\write18{touch x}\end{document}^^5cinput",
    "option": "[10cm] x",
    "star": "*x",
    "lines": "conv\n\n# heading\r\n| a | b |",
    "terminal": "\x1b[2J\x1b]0;x\x07\u202e",
    "formula": '=HYPERLINK("http://x"&A1)',
    "command": "@SUM(1+1)*cmd|' /C calc'!A0",
    "markdown": "[x](javascript:alert(1)) ![y](http://x/y.png) <b>",
}


def rendered(folder, repository, layer: str) -> dict:
    runs = make_runs(folder, "lenet5", seeds=(0,))
    put(runs[0], "metrics/well_trained/quantity.parquet", quantities({layer: [(1, 1, 1, 0.2)]}))
    table = TABLES["slides_4-2"]
    published = read_published(repository / "workflow/published", "slides_4-2")
    return render(table.function(runs, published), table, folder / "tables")


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_s_name_stays_a_name_in_every_table(tmp_path, repository, kind):
    """Layer names come from tables in the results, which may be a stranger's."""
    paths = rendered(tmp_path / "hostile", repository, LAYERS[kind])
    honest = rendered(tmp_path / "honest", repository, "conv1")
    md, tex, html = (paths[form].read_bytes().decode("utf-8") for form in ("md", "tex", "html"))
    # HTML: no element and no attribute that an honest name does not give
    assert Elements(html).found == Elements(honest["html"].read_text(encoding="utf-8")).found
    # LaTeX: each backslash begins a command of nnscan's own, and a row begins with none of what \\ takes for an option
    commands = set(re.findall(r"\\([A-Za-z]+)", tex))
    assert not commands & {"input", "write", "immediate", "include", "openin", "csname", "catcode"}
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    assert "^^" not in tex
    assert not re.search(r"\\\\\n\s*[\[*]", tex)
    # Markdown: one line for the row, no link, no heading
    assert not re.search(r"(?<!\\)\]\(", md)
    assert len(md.splitlines()) == len(honest["md"].read_text(encoding="utf-8").splitlines())
    # CSV: no cell that a spreadsheet calculates
    frame = read_csv(paths["csv"])
    cells = [value for name in frame for value in frame[name] if isinstance(value, str)]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    for text in (md, tex):
        assert all(one.isprintable() or one == "\n" for one in text)


def test_formulas_get_an_apostrophe_and_nothing_else_does(tmp_path):
    texts = ["=1+1", "+1", "-x", "@a", "\tx", "conv1", "", "−1 ± 2", "'x"]
    write_csv(tmp_path / "t.csv", pd.DataFrame({"note": texts, "ours": np.linspace(-1, 1, 9), "seeds": range(9)}))
    back = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert back["note"].tolist() == ["'=1+1", "'+1", "'-x", "'@a", "'\tx", *texts[5:]]
    assert back["ours"].tolist() == np.linspace(-1, 1, 9).tolist()  # numbers stay numbers, below zero too


def test_latex_takes_no_option_from_a_name():
    assert latex_text("[1cm]*") == "{[}1cm{]}{*}"


@pytest.mark.parametrize("name", [r"$\frac{$", "$x_{$", "a $ b $ c", r"\$1$", "$$", "_hidden"])
def test_a_figure_draws_names_as_they_are(tmp_path, name):
    """Between two dollars Matplotlib reads a formula, and a wrong one is an error."""
    images = np.zeros((2, 1, 4, 4))
    matrix = np.eye(2)
    with bounded(500, 60):
        save_figure(tmp_path / "a.png", class_averages({"simple": images}, [name, "b"], {"simple": matrix}))
        save_figure(tmp_path / "b.png", similarity(similarities("conv1"), [name, "b"]))
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert plain("cost 5 $") == r"cost 5 \$"


TERMINAL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\udce9\rx"
WRITTEN = r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\udce9\rx"


def test_no_message_moves_the_cursor():
    for kind in (NnscanError, DataError, LayerError):
        assert str(kind(TERMINAL)) == WRITTEN
    assert printable("two\nlines\tλ ± 名前") == "two\nlines\tλ ± 名前"


@pytest.mark.parametrize("error", [DataError, ValueError])
def test_no_log_moves_the_cursor(tmp_path, capsys, error):
    script = SimpleNamespace(
        log=[str(tmp_path / "study/logs/rule/all.log")], rule="rule", wildcards={}, threads=1, resources={}, config={},
        params={}, input=[], output=[],
    )  # fmt: skip

    def work() -> None:
        with job(script):
            logging.getLogger("nnscan").warning("read %s", TERMINAL)
            raise error(TERMINAL)

    with pytest.raises(SystemExit):
        work()
    printed = capsys.readouterr().err
    text = (tmp_path / "study/logs/rule/all.log").read_bytes().decode("utf-8")
    for found in (printed, text):
        assert WRITTEN in found
        assert all(one.isprintable() or one in "\n\t" for one in found)


def test_what_exists_is_named_in_bounded_time():
    """difflib takes minutes for two texts of a megabyte."""
    with bounded(200, 10):
        sentence = did_you_mean("x" * 10**6, ["x" * 10**6 + str(number) for number in range(3)])
        many = did_you_mean("name9", (f"name{number}" for number in range(10**5)))
    assert len(sentence) < 2000
    assert "did you mean 'name9'?" in many
    assert many.endswith(", ... (100000 in all)")


def test_texts_of_a_table_come_back_as_they_were(tmp_path):
    frame = pd.DataFrame({"layer": list(LAYERS.values())})
    write_frame(tmp_path / "t.parquet", frame, {})
    assert read_frame(tmp_path / "t.parquet")["layer"].tolist() == list(LAYERS.values())
