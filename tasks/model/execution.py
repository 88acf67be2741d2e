"""How rows pass a network: in blocks of one fixed shape, on a CPU or on an accelerator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks.model.bundle import Calibration
from tasks.model.encoder import Matrix

CPU_BLOCK_ROWS = 1024
"""Rows that pass the network at a time on a CPU. Fixed, because a matrix product may round differently for
another shape: a row's score must not depend on the rows that happen to travel with it."""

LEAST_BLOCK_ROWS = 4096
MOST_BLOCK_ROWS = 1 << 18
_WORTH_IT = 1.05
_TIMED_RUNS = 5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Execution:
    """Where and how a network runs."""

    device: str = "cpu"
    """`cpu`, or a torch device such as `cuda:0`."""
    block_rows: int = CPU_BLOCK_ROWS
    """Rows of a block; each block has this many, padded, so that shapes never change."""
    bfloat16: bool = False
    """Matrix products in bfloat16 (autocast): faster on accelerators, two to three digits of a probability."""

    @property
    def pinned(self) -> bool:
        """Whether blocks are staged in page-locked memory and copied while the one before is computed."""
        return self.device.startswith("cuda")


def predict(
    network: nn.Module, encoded: Matrix, calibration: Calibration, execution: Execution | None = None
) -> Floats:
    """Calibrated probabilities, float32 `[n]`, of a network in evaluation mode."""
    how = execution or Execution()
    # Results stay on the device until the last block is through: fetching each would wait for it.
    found = torch.empty(len(encoded), dtype=torch.float32, device=how.device)
    with one_thread(), torch.inference_mode():
        for rows, block in blocks(encoded, how):
            with _products(how):
                logits = network(block)
            probabilities = torch.sigmoid(logits.float() * calibration.slope + calibration.intercept)
            found[rows] = probabilities[: rows.stop - rows.start]
        out: Floats = found.cpu().numpy()
    return out


def outputs(
    network: nn.Module, names: tuple[str, ...], encoded: Matrix, execution: Execution | None = None
) -> Floats:
    """What a network computes beside its logit, float32 `[n, len(names)]`, columns in the order of `names`."""
    how = execution or Execution()
    found = torch.empty((len(encoded), len(names)), dtype=torch.float32, device=how.device)
    with one_thread(), torch.inference_mode():
        for rows, block in blocks(encoded, how):
            with _products(how):
                values = network.outputs(block)
            for at, name in enumerate(names):
                found[rows, at] = values[name].float()[: rows.stop - rows.start]
        out: Floats = found.cpu().numpy()
    return out


def blocks(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges with their rows on the device, padded by zeros to `[block_rows, width]`.

    A block is valid until the next one is asked for.
    """
    return _copied_ahead(encoded, how) if how.pinned else _copied(encoded, how)


def _copied(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    block = np.zeros((how.block_rows, encoded.shape[1]), dtype=np.float32)
    for rows in _ranges(len(encoded), how.block_rows):
        _fill(block, encoded[rows])
        yield rows, torch.from_numpy(block).to(how.device)


def _copied_ahead(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    """Two page-locked buffers in turn and a stream of its own for copies: the device computes one block while the
    next one is filled and copied."""
    shape = (how.block_rows, encoded.shape[1])
    buffers = [torch.zeros(shape, dtype=torch.float32, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers]
    copies, computes = torch.cuda.Stream(how.device), torch.cuda.current_stream(how.device)
    for number, rows in enumerate(_ranges(len(encoded), how.block_rows)):
        buffer, over = buffers[number % 2], copied[number % 2]
        over.synchronize()  # the copy out of this buffer, two blocks ago
        _fill(buffer.numpy(), encoded[rows])
        with torch.cuda.stream(copies):
            block = buffer.to(how.device, non_blocking=True)
            over.record(copies)
        computes.wait_event(over)
        block.record_stream(computes)
        yield rows, block


def _ranges(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _fill(block: Matrix, rows: Matrix) -> None:
    block[: len(rows)] = rows
    block[len(rows) :] = 0.0


def _products(how: Execution) -> Any:
    if not how.bfloat16:
        return nullcontext()
    return torch.autocast(torch.device(how.device).type, dtype=torch.bfloat16)


def tuned(network: nn.Module, width: int, how: Execution, *, memory_share: float) -> Execution:
    """`how` with the block size at which this network is fastest on this accelerator; a CPU keeps its own.

    Args:
        network: In evaluation mode, on the device.
        width: Columns of the encoded matrix.
        how: Names the device.
        memory_share: Part of the device's memory that a block may take with everything computed from it.
    """
    if not how.pinned:
        return how
    limit = memory_share * torch.cuda.get_device_properties(how.device).total_memory
    neutral = Calibration(1.0, 0.0)

    def rows_per_s(size: int) -> float | None:
        rows = np.zeros((2 * size, width), dtype=np.float32)
        torch.cuda.reset_peak_memory_stats(how.device)
        try:
            predict(network, rows, neutral, replace(how, block_rows=size))
            started = time.perf_counter()
            for _ in range(_TIMED_RUNS):
                predict(network, rows, neutral, replace(how, block_rows=size))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        taken_s = time.perf_counter() - started
        if torch.cuda.max_memory_allocated(how.device) > limit:
            return None
        return _TIMED_RUNS * len(rows) / taken_s

    return replace(how, block_rows=fastest_size(rows_per_s))


def fastest_size(rows_per_s: Callable[[int], float | None]) -> int:
    """The block size to use: doubled from 4,096 as long as that makes at least 5 % faster and fits.

    Args:
        rows_per_s: Rate at a size; None when it does not fit.
    """
    best, best_rate = LEAST_BLOCK_ROWS, rows_per_s(LEAST_BLOCK_ROWS)
    while best_rate is not None and best < MOST_BLOCK_ROWS:
        rate = rows_per_s(2 * best)
        if rate is None or rate < _WORTH_IT * best_rate:
            break
        best, best_rate = 2 * best, rate
    return best


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for small matrix products: faster than sharing them, and always the same summation order."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
