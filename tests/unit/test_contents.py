"""Every numbered table and figure of the sources is made by a rule, beside its printed numbers, and is judged."""

import re
import subprocess
import sys

import pandas as pd
import pytest

from nnscan import layout
from nnscan.claims import read_claims
from nnscan.contents import CONTENTS, OVER_RUNS, STATISTICS, TABLES

# Tables and figures with measurements, or pictures made by the source's own methods, read off the sources. Left out:
# diagrams of methods, pictures from other papers, and tables of words (thesis 3-1).
SLIDES = ["3-3", "3-4", "4-2", "4-3", "4-4", "4-5", "5-1", "5-2", "5-3", "6-2", "6-3", "6-4", "6-5"]
SLIDES_FIGURES = ["3-7", "3-8", "3-9", "3-10", "3-13", "3-14", "4-3", "4-4", "4-5", "5-3", "5-4", "5-6", "6-4"]
THESIS = ["4-1", "4-2", "5-1", "5-1_layers"]
THESIS_FIGURES = ["3-7", "4-1", "4-2", "4-14", "4-18", "5-1", "5-2"]
UNPRINTED = {"thesis_2.3"}  # a comparison in words, without a number
SYSTEMS = {"dissection_detectors", "dissection_rotation", "dimension_layers", "dimension_error", "prototypes_accuracy"}
# of the survey the tables of methods, and figures that show methods side by side; others are from other papers
SURVEY = {"survey_1", "survey_2", "survey_3", "survey_fig_23", "survey_fig_32"}
MEASURED = {"explainers_scores", "explainers_retraining"}  # here; no source prints such numbers


@pytest.fixture(scope="module")
def rules(repository) -> set[str]:
    """Return the names of the workflow's rules."""
    text = "\n".join(path.read_text() for path in (repository / "workflow" / "rules").glob("*.smk"))
    return set(re.findall(r"^(?:use )?rule (\w+)", text, flags=re.MULTILINE))


def test_nothing_of_the_sources_is_left_out():
    expected = {f"slides_{number}" for number in SLIDES} | {f"slides_fig_{number}" for number in SLIDES_FIGURES}
    expected |= {f"thesis_{number}" for number in THESIS} | {f"thesis_fig_{number}" for number in THESIS_FIGURES}
    assert set(CONTENTS) == expected | UNPRINTED | SYSTEMS | SURVEY | MEASURED


@pytest.mark.parametrize("entry", CONTENTS)
def test_every_entry_is_shown_by_a_rule(entry, rules):
    shown = CONTENTS[entry].shown
    if entry in TABLES:
        assert shown == entry
        assert "render_tables" in rules
    else:
        assert layout.FIGURES[shown].rule in rules


@pytest.mark.parametrize("table", [entry for entry in CONTENTS if "_fig_" not in entry and entry not in UNPRINTED])
def test_every_table_stands_beside_its_printed_numbers(table, repository):
    assert table in TABLES
    assert table in layout.TABLES
    published = pd.read_csv(repository / "workflow" / "published" / f"{table}.csv")
    assert bool(len(published)) == (table not in MEASURED)
    assert published["statement" if table in SURVEY else "value"].notna().all()
    assert published["source"].notna().all()


@pytest.mark.parametrize("entry", [entry for entry, item in CONTENTS.items() if item.measured])
def test_every_measurement_has_a_claim(entry, repository):
    claims = read_claims(repository / "workflow" / "published" / "claims.csv")
    judged = [claim for claim in claims if claim.table == (CONTENTS[entry].judged_by or entry)]
    assert judged
    assert all(claim.statistic in {**STATISTICS, **OVER_RUNS} and claim.source for claim in judged)


def test_the_published_matrix_can_be_planned(repository):
    study = repository / "config" / "studies" / "theses-full.yaml"
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--configfile", str(study)]
    found = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
