"""The report of a study: one HTML page with every table, verdict and figure, and where they come from.

The page needs nothing but itself: styles are inline and images are embedded, so it can be mailed, archived and read
without a network.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from PIL import Image

from nnscan.claims import EVERY, VERDICTS
from nnscan.errors import ArtifactError
from nnscan.markup import write_page
from nnscan.rendering import number, readable, to_html
from nnscan.tables import MODELS, Row, Table, records_of

SYMBOLS = {"reproduced": "✓", "contradicted": "✗", "inconclusive": "○"}

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Study:
    """What a study is.

    Attributes:
        name: Its name in the configuration.
        description: One or two sentences for the reader.
        datasets: The data sets, as in paths.
        models: The models, as in paths.
        seeds: The seeds.
        machine: What it ran on.
        versions: Software and its version.
    """

    name: str
    description: str
    datasets: Sequence[str]
    models: Sequence[str]
    seeds: Sequence[int]
    machine: str
    versions: Mapping[str, str]


def write_report(
    path: str | Path,
    study: Study,
    tables: Sequence[tuple[Table, pd.DataFrame]],
    claims: pd.DataFrame,
    figures: Sequence[tuple[str, str, str | Path]],
    provenance: Sequence[Mapping[str, str]],
    pages: Mapping[str, str] | None = None,
    missing: Sequence[Sequence[str]] = (),
) -> None:
    """Write the report of a study as one self-contained HTML page.

    Args:
        path: The page.
        study: What the study is.
        tables: Each table with its tidy frame, in the order of the page.
        claims: The result of `claims.evaluate_claims`.
        figures: Title, caption and PNG file of each figure.
        provenance: One mapping per artefact or run, for example name, digest, created.
        pages: Interactive pages by the figure's file; the report links to them, they lie beside it.
        missing: What the study lacks (`gaps.sentences`): of each thing its name, then the reasons.

    Raises:
        ArtifactError: A figure is missing, damaged or no PNG image, or the page cannot be written.
    """
    shown = {table.id for table, _ in tables}
    write_page(
        path,
        "report.html.j2",
        study=study,
        models=[MODELS.get(model, model) for model in study.models],
        counts={verdict: int((claims["verdict"] == verdict).sum()) for verdict in VERDICTS},
        symbols=SYMBOLS,
        overview=_overview(claims),
        by_verdict={verdict: _judged(claims[claims["verdict"] == verdict]) for verdict in VERDICTS},
        tables=[
            {
                "id": table.id,
                "label": table.id.replace("_", " "),
                "table": table,
                "html": Markup(to_html(readable(frame, table))),  # to_html escapes every text
                "claims": _claims(claims[claims["table"] == table.id]),
            }
            for table, frame in tables
        ],
        others=_claims(claims[~claims["table"].isin(shown)]),
        figures=[
            {
                "id": f"figure-{place}",
                "title": title,
                "caption": caption,
                "image": _embedded(Path(image)),
                "page": _link(Path(path), (pages or {}).get(str(image))),
            }
            for place, (title, caption, image) in enumerate(figures, start=1)
        ],
        missing=[(what, reasons) for what, *reasons in missing],
        provenance=provenance,
        provenance_columns=list(dict.fromkeys(name for row in provenance for name in row)),
    )


def _network(row: Row) -> tuple[str, str]:
    return str(row["dataset"]), MODELS.get(row["model"], str(row["model"]))


def _overview(claims: pd.DataFrame) -> dict[str, Any]:
    """Return the verdicts as a grid: a line per claim, a column per data set and model."""
    records = records_of(claims)
    networks = list(dict.fromkeys(_network(row) for row in records))
    lines: dict[str, dict[str, Any]] = {}
    for row in records:
        line = lines.setdefault(row["id"], {"id": row["id"], "statement": row["statement"], "verdicts": {}})
        line["verdicts"][_network(row)] = row["verdict"]
    return {"networks": networks, "lines": list(lines.values())}


def _judged(claims: pd.DataFrame) -> list[dict[str, str]]:
    """Return a line per claim, data set and model: id, statement, network, value with interval and seeds."""
    lines = []
    for row in records_of(claims):
        known = [abs(row[key]) for key in ("statistic", "ci_low", "ci_high") if not math.isnan(row[key])]
        decimals = _decimals(max(known, default=0.0))
        value = number(row["statistic"], decimals) + ("" if row["unit"] == "1" or not known else f" {row['unit']}")
        lines.append(
            {
                "id": row["id"],
                "statement": row["statement"],
                "network": " · ".join(_network(row)),
                "value": f"{value} {_interval(row, decimals)}".strip(),
                "seeds": _sample(row) if row["model"] == EVERY else str(row["seeds"]),
            }
        )
    return lines


def _claims(claims: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each claim with its results, ready to be shown."""
    shown = []
    for name, part in claims.groupby("id", sort=False):
        records = records_of(part)
        first = records[0]
        threshold = float(first["threshold"])
        numbers = [row[key] for row in records for key in ("statistic", "ci_low", "ci_high")] + [threshold]
        known = [value for value in numbers if not math.isnan(value)]
        decimals = _decimals(max(abs(value) for value in known))
        unit = "" if first["unit"] == "1" else f" {first['unit']}"
        sign = ">" if first["direction"] == "greater" else "<"
        shown.append(
            {
                "id": name,
                "statement": first["statement"],
                "source": first["source"],
                "remark": first["remark"],
                "criterion": f"{sign} {number(threshold)}{unit}",
                "results": [
                    {
                        "network": " · ".join(_network(row)),
                        "verdict": row["verdict"],
                        "value": number(row["statistic"], decimals),
                        "interval": _interval(row, decimals),
                        "unit": unit if row["seeds"] else "",
                        "sample": _sample(row),
                        "note": row["note"],
                        "drawing": _drawing(row, min(known), max(known), threshold),
                    }
                    for row in records
                ],
            }
        )
    return shown


def _sample(row: Row) -> str:
    """Return how many values a statistic comes from: seeds of a network, or runs of all networks on a data set."""
    noun = "run" if row["model"] == EVERY else "seed"
    return f"{row['seeds']} {noun}{'' if row['seeds'] == 1 else 's'}"


def _decimals(scale: float) -> int:
    """Return the decimals that show a number of this size with three significant digits."""
    return max(0, 2 - math.floor(math.log10(scale))) if scale else 0


def _interval(row: Row, decimals: int) -> str:
    if math.isnan(row["ci_low"]):
        return ""
    return f"[{number(row['ci_low'], decimals)}, {number(row['ci_high'], decimals)}]"


def _drawing(row: Row, low: float, high: float, threshold: float) -> dict[str, str] | None:
    """Return the places, in percent of the width, of threshold, mean and interval on a scale from low to high."""
    if math.isnan(row["statistic"]):
        return None
    span = high - low or 1.0

    def place(value: float) -> float:
        return 4 + 92 * (value - low) / span

    ends = (row["statistic"], row["statistic"]) if math.isnan(row["ci_low"]) else (row["ci_low"], row["ci_high"])
    left, right = (place(value) for value in ends)
    spots = {"threshold": place(threshold), "mean": place(row["statistic"]), "left": left, "width": right - left}
    return {name: f"{spot:.2f}%" for name, spot in spots.items()}


def _link(report: Path, page: str | None) -> str:
    """Return the way from the report to a page, or nothing."""
    return "" if page is None else Path(os.path.relpath(page, report.parent)).as_posix()


def _embedded(path: Path) -> str:
    """Return a PNG file as a data URI."""
    if not path.is_file():
        raise ArtifactError(f"figure {path} does not exist; run the stage that draws it")
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise ArtifactError(f"figure {path} is not a PNG image; give the report PNG files")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        reason = "" if content.endswith(_PNG_END) else "it is cut"
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error)
    if reason:
        raise ArtifactError(f"figure {path} is damaged ({reason}); delete it and run the stage that draws it")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
