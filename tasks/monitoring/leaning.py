"""On what the scores rest: the channel `attributions`, which watches the model's reasons and not its inputs.

Asked of each feature: given the values that it had, did it raise and lower scores as it does on such days? Its inputs may
move by a season, and then it has more or less to say; that is the business of its own channel. What this one sees is a
feature that is read otherwise than before, or whose effect through other features changed: codes shifted by an encoder,
two columns that changed places, inputs that begin to move together. No input channel sees these, and labels may not.

The channel's z is that of the feature that is farthest from its usual: the distance is taken feature by feature, because
the share of a feature in all attributions moves with the weather more than with any fault.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.core.spec import PipelineSpec
from tasks.model.attribution_sums import MIXED, AttributionSums
from tasks.model.profile import ATTRIBUTIONS, FloatArray, Profile

CHANNEL = ATTRIBUTIONS
KIND = "attribution"
LEAST_EXPLAINED = 200
"""Explained rows of a day below which it is not judged; `drift.min_rows` where that is smaller."""
LEAST_SHARE = 0.01
"""A feature on which less of the scores rests, on the day and before, alarms nobody."""
_LEAST_IN_CELL = 5
"""Rows that the days compared with need in a cell, for their mean to say what the day's should be."""
_NAMED = 3


def least_explained(spec: PipelineSpec) -> int:
    """Explained rows that a day needs to be judged."""
    return min(LEAST_EXPLAINED, spec.drift.min_rows)


def reasons(day: Profile, pooled: Profile, *, least: int) -> dict[str, tuple[FloatArray, FloatArray]]:
    """By feature: by how much its values raised and lowered the day's scores, and by how much they would have before.

    The first is summed by cell of the feature's values, rises before falls; the second is the mean of the pooled days
    in each cell times the day's rows in it, so both have the day's inputs. Empty where the two cannot be compared. A
    feature whose rows lie in one cell, as those of the weekday, is left out: one sum has nothing but a sign, and a sum
    near zero turns by itself.

    Args:
        least: Explained rows that each must have.
    """
    one, other = day.attributions, pooled.attributions
    if one is None or other is None or min(one.rows, other.rows) < least:
        return {}
    if one.selection != other.selection or one.selection == MIXED:
        return {}
    known = other.counts >= _LEAST_IN_CELL
    usual = np.where(known, other.signed / np.maximum(other.counts, 1) * one.counts, 0.0)
    found = np.where(known, one.signed, 0).astype(np.float64)
    filled = known & (one.counts > 0)
    return {
        name: (_both_ways(found[part]), _both_ways(usual[part]))
        for name, part in zip(day.spec.features, one.parts, strict=True)
        if np.count_nonzero(filled[part]) > 1
    }


def weighty(day: Profile, pooled: Profile) -> frozenset[str]:
    """Features on which at least a hundredth of the scores rests, on the day or before."""
    one, other = day.attributions, pooled.attributions
    if one is None or other is None:
        return frozenset()
    share = np.maximum(one.shares, other.shares)
    return frozenset(
        name for name, value in zip(day.spec.features, share, strict=True) if value >= LEAST_SHARE
    )


def pair_rows(day: Profile, pooled: Profile) -> float:
    """Rows that a comparison rests on, 1 / (1/n + 1/m): its error by chance falls with the root of them."""
    counts = [sums.rows for sums in (day.attributions, pooled.attributions) if sums is not None]
    return 1 / sum(1 / n for n in counts) if len(counts) == 2 and min(counts) > 0 else 0.0


def in_words(day: Profile, pooled: Profile, zs: Mapping[str, float]) -> str:
    """The features that are farthest from their usual, with their share in what the scores rest on before and now."""
    if day.attributions is None or pooled.attributions is None:
        return ""
    names = list(day.spec.features)
    before, now = pooled.attributions.shares, day.attributions.shares
    parts = []
    for name in sorted(zs, key=lambda name: -zs[name])[:_NAMED]:
        i = names.index(name)
        parts.append(f"{name} (z {zs[name]:.1f}; {before[i]:.0%} -> {now[i]:.0%} of what the scores rest on)")
    return f"the model reads values of {', '.join(parts)} otherwise than before" if parts else ""


def not_judged(spec: PipelineSpec, reference: AttributionSums | None, day: Profile, pooled: Profile) -> str:
    """Why attribution drift of a day is not judged; "" when it is, or when nothing is ever explained."""
    own = day.attributions
    if own is None:
        return (
            "Attribution drift is not judged: no row of this day was explained."
            if reference is not None and day.rows
            else ""
        )
    said = "Attribution drift is not judged: "
    if reference is None:
        return f"{said}the model was trained before reference days were explained; the next model will be judged."
    if own.selection != reference.selection:
        return f"{said}`explanations` chooses other rows than when the model was trained; the next model will be judged."
    least = least_explained(spec)
    if own.rows < least:
        return f"{said}{own.rows:,} rows were explained, {least:,} are needed."
    before = pooled.attributions
    if before is None or before.selection != own.selection or before.rows < least:
        return f"{said}of the days to compare with too few rows were explained, or others."
    return ""


def _both_ways(sums: FloatArray) -> FloatArray:
    return np.concatenate([np.maximum(sums, 0.0), np.maximum(-sums, 0.0)])
