"""Writes what studies found into docs/reproduction: verdicts, tables, times and chosen figures of each.

Run `python docs/collect.py results/<study> [figure ...]`, a figure as data set/model/name. It writes
docs/reproduction/<study>.md, with the study's tables and the figures beside it; nothing is typed by hand.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd

from nnscan.contents import TABLES
from nnscan.layout import FIGURES
from nnscan.rendering import read_csv
from nnscan.tables import MODELS

FOLDER = Path(__file__).parent / "reproduction"
VERDICTS = ("reproduced", "contradicted", "inconclusive")


def network(row: pd.Series) -> str:
    """Return a row's data set and model in words."""
    return f"{row['dataset']} {MODELS.get(row['model'], row['model'])}"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}"


def found(row: pd.Series) -> str:
    """Return a network with its statistic and interval, or the reason why there is none."""
    if pd.isna(row["statistic"]):
        return f"{network(row)} ({row['note'] or 'no value'})"
    if pd.isna(row["ci_low"]):
        return f"{network(row)} {number(row['statistic'])}"
    return f"{network(row)} {number(row['statistic'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"


def verdicts(claims: pd.DataFrame) -> list[str]:
    """Return a table of the claims with the networks for which each was reproduced, contradicted or neither."""
    counts = claims["verdict"].value_counts()
    lines = [", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS) + ".", ""]
    lines += ["| claim | " + " | ".join(VERDICTS) + " |", "|---" * 4 + "|"]
    for _, own in claims.groupby("id", sort=False):
        first = own.iloc[0]
        cells = ["; ".join(found(row) for _, row in own[own["verdict"] == verdict].iterrows()) for verdict in VERDICTS]
        remark = f" *{first['remark']}*" if first["remark"] else ""
        lines.append(f"| {first['statement']} ({first['source']}){remark} | " + " | ".join(cells) + " |")
    return lines


def times(benchmarks: Path) -> list[str]:
    """Return a table of the jobs of each rule and the seconds that they took on the clock."""
    rows = []
    for rule in sorted(benchmarks.iterdir()):
        seconds = [float(pd.read_csv(path, sep="\t")["s"].iloc[0]) for path in rule.glob("*.tsv")]
        rows.append((rule.name, len(seconds), sum(seconds), max(seconds)))
    rows.sort(key=lambda row: -row[2])
    lines = ["| rule | jobs | minutes, all | longest |", "|---|---:|---:|---:|"]
    lines += [f"| {rule} | {jobs} | {total / 60:.1f} | {longest / 60:.1f} |" for rule, jobs, total, longest in rows]
    everything = sum(row[2] for row in rows)
    return [*lines, f"| all | {sum(row[1] for row in rows)} | {everything / 60:.1f} | |"]


def write(study: Path, figures: list[str]) -> None:
    """Write the page of a study, its tables and the figures."""
    target = FOLDER / study.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    lines = [f"# Study {study.name}", "", "## Verdicts", "", *verdicts(read_csv(study / "claims.csv"))]
    lines += ["", "## Tables", ""]
    for path in sorted((study / "tables").glob("*.md")):
        shutil.copy(path, target / path.name)
        lines.append(f"- [{TABLES[path.stem].title}]({study.name}/{path.name}) ({TABLES[path.stem].source})")
    lines += ["", "## Figures", ""]
    for figure in figures:
        dataset, model, name = figure.split("/")
        image = target / f"{dataset}_{model}_{name}.png"
        shutil.copy(study / "figures" / dataset / model / f"{name}.png", image)
        shown = FIGURES[name]
        title = f"{shown.title}: {MODELS.get(model, model)} on {dataset}"
        lines += [f"### {title}", "", f"![{title}]({study.name}/{image.name})", "", shown.caption, ""]
    lines += ["## Time by rule", "", *times(study / "benchmarks"), ""]
    (FOLDER / f"{study.name}.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("figures", nargs="*")
    arguments = parser.parse_args()
    write(arguments.study, arguments.figures)


if __name__ == "__main__":
    main()
