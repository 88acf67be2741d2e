"""Bounds that rooms judge by, against published figures."""

from __future__ import annotations

import pytest

from tasks.core.intervals import share_at_least


def test_a_share_is_bounded_from_below_exactly() -> None:
    assert share_at_least(0, 100, 0.025) == 0
    assert share_at_least(5, 100, 0.025) == pytest.approx(0.01643, abs=1e-5)  # Clopper & Pearson's own table
    assert share_at_least(7, 7, 0.025) == pytest.approx(0.025 ** (1 / 7))
