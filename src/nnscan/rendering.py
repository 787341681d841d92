"""Rendering filled tables as CSV, Markdown, LaTeX and HTML.

The CSV holds the tidy frame; the other three show the same `Readable` view of it.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import escape

from nnscan.artifacts import atomic_path
from nnscan.errors import printable
from nnscan.limits import reading
from nnscan.tables import DATA, MISSING, MODELS, OURS, QUANTITIES, Row, Table, columns_of, records_of, sort_key, typed

# Keys of the tables as people read them; a key without a label reads as it is.
LABELS = {
    "top": "most clusters",
    "bottom": "fewest clusters",
    "outlier": "outlier samples",
    "normal": "normal samples",
    "anomaly": "anomaly filters",
    "third1": "after 1/3 of the training",
    "third2": "after 2/3 of the training",
    "third3": "after the training",
    "well_trained": "well trained (WT)",
    "overfitted": "overfitted (OF)",
    "untrained": "untrained",
    "shuffled": "trained on shuffled labels",
    "NNS": "NNS (control)",
    "input": "input (control)",
    "accuracy, most similar pruned": "most similar pruned",
    "accuracy, least similar pruned": "least similar pruned",
    "accuracy, random neurons pruned": "random pruned",
}
_DASH = "–"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame: whole numbers in full, others with six significant digits.

    The same frame always gives the same bytes. A text that a spreadsheet would take for a formula has an apostrophe
    before it; no name or note of nnscan's own begins like one.
    """
    numbers = frame.select_dtypes("float").columns
    frame = frame.assign(**{name: frame[name] + 0.0 for name in numbers})  # turns -0 into 0
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    frame = frame.assign(**{name: frame[name].map(_no_formula, na_action="ignore") for name in texts})
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format=_digits, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _digits(value: Any) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a tidy frame, of a table or of evaluated claims, that `write_csv` has written.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    with reading(path):
        return typed(pd.read_csv(path, dtype=str, keep_default_na=False))


@dataclass(frozen=True)
class Cell:
    """Published values, ours and its spread as text; `mark` points to a footnote.

    Without published values ours stands alone: no source prints any, or it prints the same words.
    """

    published: tuple[str, ...]
    ours: str
    spread: str = ""
    mark: str = ""

    @property
    def measured(self) -> str:
        """Ours with its spread."""
        return f"{self.ours} {self.spread}" if self.spread else self.ours

    def __str__(self) -> str:
        return f"{', '.join(self.published)} / {self.measured}" if self.published else self.measured


@dataclass(frozen=True)
class Readable:
    """A table for people.

    Attributes:
        frame: Text columns that name the row, then columns of `Cell`. Data set and model are the first two.
        labels: How many columns name the row.
        legend: What a cell holds.
        notes: The footnotes; a cell's mark is the number of its note, counted from 1.
        remarks: What concerns a whole run: missing files.
    """

    frame: pd.DataFrame
    labels: int
    legend: str
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def number(value: float, decimals: int | None = None) -> str:
    """Return a number as people read it, an en dash for NaN.

    Args:
        value: The number.
        decimals: Decimals shown; None: as few as say it exactly. A number that they would round to 0 keeps one digit.
    """
    if math.isnan(value):
        return _DASH
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.15g}"
    if value and not float(text):
        text = np.format_float_positional(value, precision=1, fractional=False, trim="-")
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def _with_unit(name: str, unit: str) -> str:
    return name if unit in ("", "1") or unit in name.split() else f"{name} [{unit}]"


def _key_text(row: Row, key: str) -> str:
    """Return the value of a row's key as people read it."""
    text = str(row[key])
    text = text if key == "layer" else LABELS.get(text, text)  # a layer has the name that its network gives it
    if key == "quantity":
        return _with_unit(text, row["unit"])
    if key == "layer" and not pd.isna(row.get("position")):
        return f"{row['position']} · {text}" if text else str(row["position"])
    return text


def readable(frame: pd.DataFrame, table: Table) -> Readable:
    """Return a filled table as people read it: one row per layer or group, cells "published / ours ± spread".

    Args:
        frame: What the table's function returned, or `read_csv` of it.
        table: The table.
    """
    columns = columns_of(frame)
    rows = [{**row, "model": MODELS.get(row["model"], row["model"])} for row in records_of(frame)]
    absent: dict[tuple[str, ...], list[str]] = {}
    for row in (row for row in rows if row["quantity"] == MISSING):
        absent.setdefault((row["dataset"], row["model"]), []).append(row["note"])
    remarks = tuple(f"{dataset}, {model}, {note}" for (dataset, model), lacks in absent.items() for note in lacks)
    rows = [row for row in rows if row["quantity"] != MISSING]
    keys = [key for key in columns[2 : columns.index("unit")] if key not in ("position", table.columns)]
    if len({row["quantity"] for row in rows}) < 2 and "quantity" in keys:
        keys.remove("quantity")

    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    headings: dict[str, tuple[float, str]] = {}
    for row in rows:
        heading = _key_text(row, table.columns)
        headings[heading] = sort_key(table.columns, row[table.columns])
        lines.setdefault((row["dataset"], row["model"], *(_key_text(row, key) for key in keys)), {})[heading] = row
    ordered = sorted(headings, key=lambda heading: headings[heading])
    notes: dict[str, str] = {}
    body: list[list[Any]] = []
    for names, line in lines.items():
        missing_files = "; ".join(absent.get(names[:2], ["not measured in these runs"]))
        cells = [_cell(line.get(heading), columns, missing_files, notes) for heading in ordered]
        body.append([*names, *cells])
    labels = ["data", "model", *keys]
    view = pd.DataFrame(body, columns=[*labels, *ordered])
    units = {row["unit"] for row in rows} if "quantity" not in (*keys, table.columns) else set()
    return Readable(view, len(labels), _legend(rows, columns, units), tuple(notes), remarks)


def _published_columns(columns: Sequence[str], dataset: str) -> list[str]:
    """Return the columns of published values that stand beside a data set: on the same data, else all."""
    own = f"published {DATA.get(dataset)}"
    return [own] if own in columns else [name for name in columns if name.startswith("published ")]


def _cell(row: Row | None, columns: Sequence[str], absent: str, notes: dict[str, str]) -> Cell:
    """Return a cell, one without a row for the reason `absent`; its note is added to `notes` (text to mark)."""
    if row is None:
        return Cell((_DASH,), _DASH, mark=notes.setdefault(absent, str(len(notes) + 1)))
    mark = notes.setdefault(row["note"], str(len(notes) + 1)) if row["note"] else ""
    if row.get("statement") or row.get("survey"):
        return _words(row, mark)
    published = [row[name] for name in _published_columns(columns, row["dataset"])]
    shown = [_DASH] if all(math.isnan(value) for value in published) else [number(value) for value in published]
    decimals = QUANTITIES[row["quantity"]][1]
    spread = "" if math.isnan(row["spread"]) else f"± {number(row['spread'], decimals)}"
    if "ci_low" in row:
        low, high = (number(row[name], decimals) for name in ("ci_low", "ci_high"))
        spread = "" if math.isnan(row["ci_low"]) else f"[{low}, {high}]"
    return Cell(tuple(shown if published else ()), number(row["ours"], decimals), spread, mark)


def _words(row: Row, mark: str) -> Cell:
    """Return the cell of a statement: the survey's words before the slash where ours are others."""
    if not row["statement"]:
        return Cell((), row["survey"], mark=mark)
    alike = row["survey"] == row["statement"] or row["quantity"] in OURS
    return Cell(() if alike else (row["survey"] or _DASH,), row["statement"], mark=mark)


def _legend(rows: Sequence[Row], columns: Sequence[str], units: set[str]) -> str:
    unit = ", ".join(sorted(units - {"1"}))
    if not _published_columns(columns, ""):
        sentences = ["Each cell: mean over the seeds [95 % t interval]" + (f", in {unit}." if unit else ".")]
        if "statement" in columns:
            sentences.append(
                "Words: where the source's are others than ours, they stand before the slash; “–” there: it"
            )
            sentences.append("has none.")
        return " ".join(sentences)
    sentences = ["Each cell: published / ours ± standard deviation over the seeds" + (f", in {unit}." if unit else ".")]
    every = _published_columns(columns, "")
    others = sorted(
        {
            row["dataset"]
            for row in rows
            if _published_columns(columns, row["dataset"]) == every and any(not math.isnan(row[name]) for name in every)
        }
    )
    if others:
        listed = ", ".join(name.removeprefix("published ") for name in every)
        sentences.append(f"Published values beside {' and '.join(others)} are those on {listed}, in this order.")
    sentences.append(f"“{_DASH}” before the slash: the source has no such value.")
    if any(row["unit"] == "pp" for row in rows):
        sentences.append("pp: percentage points.")
    return " ".join(sentences)


def _line(text: str) -> str:
    """Return text without line breaks and without what an editor or terminal acts upon."""
    return printable(" ".join(text.splitlines()))


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", _line(text))


def to_markdown(view: Readable, table: Table) -> str:
    """Return the table as a Markdown section."""
    names = columns_of(view.frame)
    lines = [f"## {table.title}", "", _markdown_text(f"{table.source}. Expected: {table.direction}."), ""]
    if len(view.frame):
        lines.append("| " + " | ".join(_markdown_text(name) for name in names) + " |")
        lines.append("|" + "---|" * view.labels + "---:|" * (len(names) - view.labels))
        above = ["", ""]
        for row in view.frame.to_numpy().tolist():
            shown = ["", ""] if row[:2] == above else row[:2]
            above = row[:2]
            cells = [_markdown_cell(cell) for cell in row[view.labels :]]
            lines.append("| " + " | ".join([*map(_markdown_text, [*shown, *row[2 : view.labels]]), *cells]) + " |")
        lines.append("")
    notes = [f"<sup>{place}</sup> {_markdown_text(note)}" for place, note in enumerate(view.notes, start=1)]
    for paragraph in (_markdown_text(view.legend), *notes, *map(_markdown_text, view.remarks)):
        lines += [paragraph, ""]
    return "\n".join([*lines, f"How to read: {_markdown_text(table.caption)}", ""])


def _markdown_cell(cell: Cell) -> str:
    return _markdown_text(str(cell)) + (f"<sup>{cell.mark}</sup>" if cell.mark else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row LaTeX would take it for a length
    "]": "{]}",
    "*": "{*}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "⁺": r"$^+$",
    "–": "--",
    "“": "``",
    "”": "''",
}


def latex_text(text: str) -> str:
    """Return text in which every character that LaTeX would act upon is escaped."""
    return "".join(_LATEX.get(character, character) for character in _line(text))


def to_latex(view: Readable, table: Table) -> str:
    r"""Return the table as LaTeX longtables; the document needs `\usepackage{booktabs,longtable}`.

    Columns that do not fit a page stand in a table of their own below, with the names of the rows again.
    """
    lines = [
        r"% needs \usepackage{booktabs,longtable}",
        r"\begingroup",
        r"\footnotesize",
        r"\setlength{\LTcapwidth}{\textwidth}",
        r"\setlength{\tabcolsep}{4pt}",
    ]
    parts = _parts(view)
    for place, columns in enumerate(parts, start=1):
        caption = rf"\caption{{{latex_text(f'{table.title}, part {place} of {len(parts)}')}}} \\"
        if place == 1:
            whole = latex_text(f"{table.title} ({table.source}). {view.legend}")
            caption = rf"\caption{{{whole}}}\label{{tab:{table.id}}} \\"
        lines += _longtable(view, columns, caption)
    notes = [rf"\textsuperscript{{{place}}} {latex_text(note)}" for place, note in enumerate(view.notes, start=1)]
    lines += [rf"\noindent {note}\par" for note in [*notes, *(latex_text(remark) for remark in view.remarks)]]
    return "\n".join([*lines, r"\endgroup", ""])


_FEW = 8  # columns that fit a page whatever they hold
_WIDTH = 110  # characters that fit a line
_HEADING, _CELL = 14, 26  # characters of a line of a heading, and of a cell, in tables of more columns


def _parts(view: Readable) -> list[list[int]]:
    """Return which columns stand side by side."""
    names = columns_of(view.frame)
    places = list(range(view.labels, len(names)))
    if len(places) <= _FEW:
        return [places]

    def width(place: int) -> int:
        cells = [textwrap.wrap(str(cell), _CELL) for cell in view.frame.iloc[:, place]]
        return 2 + max(len(line) for lines in (textwrap.wrap(names[place], _HEADING), *cells) for line in lines)

    beside = sum(2 + view.frame.iloc[:, place].str.len().max() for place in range(2, view.labels))
    parts: list[list[int]] = [[]]
    for place in places:
        if parts[-1] and beside + sum(map(width, [*parts[-1], place])) > _WIDTH:
            parts.append([])
        parts[-1].append(place)
    return parts


def _longtable(view: Readable, columns: Sequence[int], caption: str) -> list[str]:
    """Return the lines of a longtable of some columns."""
    names = columns_of(view.frame)
    whole = len(names) - view.labels <= _FEW
    places = [*range(2, view.labels), *columns]
    heads = [latex_text(names[place]) if whole else _stacked(names[place], _HEADING, "b") for place in places]
    lines = [rf"\begin{{longtable}}{{{'l' * (view.labels - 2)}{'r' * len(columns)}}}", caption]
    if len(view.frame):
        lines += [r"\toprule", " & ".join(heads) + r" \\", r"\midrule", r"\endfirsthead"]
        lines += [r"\toprule", " & ".join(heads) + r" \\", r"\midrule", r"\endhead"]
        lines += [r"\bottomrule", r"\endfoot"]
    for (data, model), group in view.frame.groupby(["data", "model"], sort=False):
        lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{\textbf{{{latex_text(f'{data}, {model}')}}}}} \\*")
        for row in group.to_numpy().tolist():
            labels = [latex_text(text) for text in row[2 : view.labels]]
            cells = [_latex_cell(row[place]) if whole else _narrow_cell(row[place]) for place in columns]
            lines.append(" & ".join([*labels, *cells]) + r" \\")
        lines.append(r"\addlinespace")
    return [*lines, r"\end{longtable}"]


def _stacked(text: str, width: int, where: str) -> str:
    """Return text as LaTeX, in lines above each other if it is longer than a width."""
    lines = [latex_text(line) for line in textwrap.wrap(text, width)]
    stack = r"\\".join(lines)
    return stack if len(lines) < 2 else rf"\begin{{tabular}}[{where}]{{@{{}}r@{{}}}}{stack}\end{{tabular}}"


def _narrow_cell(cell: Cell) -> str:
    return _stacked(str(cell), _CELL, "t") + (rf"\textsuperscript{{{cell.mark}}}" if cell.mark else "")


def _latex_cell(cell: Cell) -> str:
    """Return a cell; several published values stand above ours, so that the table fits a page."""
    mark = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    if len(cell.published) < 2:
        return latex_text(str(cell)) + mark
    above, below = latex_text(f"{', '.join(cell.published)} /"), latex_text(cell.measured)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{above}\\{below}{mark}\end{{tabular}}"


def to_html(view: Readable) -> str:
    """Return the table as an HTML fragment: a scrolling table with a heading row per data set and model, then notes."""
    parts = []
    if len(view.frame):
        places = enumerate(columns_of(view.frame)[2:], start=2)
        heads = [
            f"<th scope='col'{' class=name' * (place < view.labels)}>{escape(name)}</th>" for place, name in places
        ]
        parts.append(f"<div class='scroll'><table><thead><tr>{''.join(heads)}</tr></thead>")
        for (data, model), group in view.frame.groupby(["data", "model"], sort=False):
            parts.append(f"<tbody><tr class='run'><th scope='rowgroup' colspan='{len(heads)}'>")
            parts.append(f"{escape(data)} · {escape(model)}</th></tr>")
            for row in group.to_numpy().tolist():
                names = [f"<th scope='row'>{escape(value)}</th>" for value in row[2 : view.labels]]
                parts.append(f"<tr>{''.join(names)}{''.join(_html_cell(value) for value in row[view.labels :])}</tr>")
            parts.append("</tbody>")
        parts.append("</table></div>")
    parts.append(f"<p class='legend'>{escape(view.legend)}</p>")
    if view.notes:
        parts.append(f"<ol class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in view.notes)}</ol>")
    parts.extend(f"<p class='legend'>{escape(remark)}</p>" for remark in view.remarks)
    return "\n".join(parts)


def _html_cell(cell: Cell) -> str:
    published = f"<span class='published'>{escape(', '.join(cell.published))} /</span> " if cell.published else ""
    spread = f" <span class='spread'>{escape(cell.spread)}</span>" if cell.spread else ""
    mark = f"<sup>{escape(cell.mark)}</sup>" if cell.mark else ""
    ours = f"<span class='ours'><b>{escape(cell.ours)}</b>{spread}{mark}</span>"
    return f"<td>{published}{ours}</td>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .8rem; text-align: right; vertical-align: top; }}
.published, .ours, tbody th {{ white-space: nowrap; }}
tbody th, .name {{ text-align: left; }}
thead th, .run th {{ border-bottom: 1px solid; }}
.published, .spread, .legend, .notes {{ opacity: .7; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{source}. Expected: {direction}.</p>
{table}
<p>{caption}</p>
</body>
</html>
"""


def marked_as_partial(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """Return a filled table, or evaluated claims, with a text in front of every note, so that all formats show it."""
    return frame.assign(note=[f"{text}; {note}" if note else text for note in frame["note"]])


def render(frame: pd.DataFrame, table: Table, folder: str | Path) -> dict[str, Path]:
    """Write a filled table as CSV, Markdown, LaTeX and HTML.

    The CSV holds the tidy frame; the other three show the same `readable` view.

    Args:
        frame: What the table's function returned.
        table: The table.
        folder: Where <id>.csv, .md, .tex and .html go.

    Returns:
        The four paths by ending.
    """
    view = readable(frame, table)
    page = _PAGE.format(
        **{name: escape(getattr(table, name)) for name in ("title", "source", "direction", "caption")},
        table=to_html(view),
    )
    texts = {"md": to_markdown(view, table), "tex": to_latex(view, table), "html": page}
    paths = {ending: Path(folder) / f"{table.id}.{ending}" for ending in ("csv", *texts)}
    write_csv(paths["csv"], frame)
    for ending, text in texts.items():
        with atomic_path(paths[ending]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths
