"""The fewest rows that pass a network at once without any score differing from batch scoring's, in any bit.

Batch scoring pads to blocks of one fixed size, because a matrix product may sum in another order for another shape
(`tasks.model.execution`). One request would then cost as much as 1,024. Whether a smaller shape sums in the same order depends on
this machine's kernels and the layers' sizes and not on the values, so it is tried out, when a model is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tasks.model.scorer import Scorer

SIZES = (32, 64, 128, 256, 512)
_TRIED = 2048


def use_smallest_exact_block(scorer: Scorer) -> int:
    """Set and return the block size; that of batch scoring when no smaller one gives the same bits.

    Where many rows come at once they pass in batch scoring's blocks: a row costs less in a large one that is full.

    Every place in a block is tried with at least four rows, made of values of the golden rows.
    """
    usual = scorer.execution
    golden = scorer.golden_encoded()
    if usual.device != "cpu" or not len(golden):
        return usual.block_rows
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(column, _TRIED) for column in golden.T], axis=1)
    wanted = _said(scorer, rows)
    for size in SIZES:
        if size >= usual.block_rows:
            break
        scorer.execution = replace(usual, block_rows=size)
        if _said(scorer, rows) == wanted:
            scorer.execution = replace(scorer.execution, large_block_rows=usual.block_rows)
            return size
    scorer.execution = usual
    return usual.block_rows


def _said(scorer: Scorer, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[bytes]:
    """Everything that a prediction and its explanation consist of, as bits."""
    explained = scorer.explain(rows)
    found = [scorer.predict(rows).tobytes(), explained.attributions.tobytes(), explained.residual.tobytes()]
    if scorer.output_names:
        found.append(scorer.outputs(rows).tobytes())
    return found
