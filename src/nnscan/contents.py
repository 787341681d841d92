"""The tables and the statistics of both sources, by name."""

from __future__ import annotations

from nnscan import slides, thesis

TABLES = {**slides.TABLES, **thesis.TABLES}
STATISTICS = {**slides.STATISTICS, **thesis.STATISTICS}
