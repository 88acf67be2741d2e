"""The capacity guide says what was measured: its figures are those of the results that it names."""

from __future__ import annotations

import re

import pytest
from docs_support import ROOT

_ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| (?P<measured>[^|]+) \| \[[^\]]+\]\(\.\./(?P<page>benchmarks/results/[\w.]+)\) \|$",
    re.M,
)
_PAGE = (ROOT / "docs" / "capacity.md").read_text()
ROWS = [match.groupdict() for match in _ROW.finditer(_PAGE)]


def test_every_table_of_figures_is_looked_at() -> None:
    assert len(ROWS) >= 25
    assert len(ROWS) == _PAGE.count("](../benchmarks/results/")


@pytest.mark.parametrize("row", ROWS, ids=[row["what"][:40] for row in ROWS])
def test_a_figure_of_the_capacity_guide_is_in_the_result_that_it_names(row: dict[str, str]) -> None:
    result = (ROOT / row["page"]).read_text()
    figures = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])", row["measured"])
    missing = [
        figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", result)
    ]
    assert figures and missing == []
