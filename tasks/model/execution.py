"""How rows pass a network: in blocks of one fixed shape, on a CPU or on an accelerator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
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
_FULL_ENOUGH = 0.75
"""A large block that is so full costs less than the small ones that its rows would fill."""
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
    large_block_rows: int | None = None
    """On a CPU, another size that gives the same bits: many rows pass in such blocks, what is left of them in the others."""
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
    with undivided(how), torch.inference_mode():
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
    with undivided(how), torch.inference_mode():
        for rows, block in blocks(encoded, how):
            with _products(how):
                values = network.outputs(block)
            for at, name in enumerate(names):
                found[rows, at] = values[name].float()[: rows.stop - rows.start]
        out: Floats = found.cpu().numpy()
    return out


def blocks(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges with their rows on the device, padded by zeros to `[block_rows, width]`, or `[large_block_rows, width]`.

    A block is valid until the next one is asked for.
    """
    return _copied_ahead(encoded, how) if how.pinned else _copied(encoded, how)


def _copied(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    n, large = len(encoded), how.large_block_rows or how.block_rows
    many = n if n % large >= _FULL_ENOUGH * large else n - n % large
    for first, last, size in ((0, many, large), (many, n, how.block_rows)):
        if first < last:
            block = torch.zeros((size, encoded.shape[1]), dtype=torch.float32)
        for rows in _ranges(first, last, size):
            _fill(block, encoded[rows])
            yield rows, block.to(how.device)


def _copied_ahead(encoded: Matrix, how: Execution) -> Iterator[tuple[slice, Tensor]]:
    """Two page-locked buffers and two on the device, in turn, and a stream for copies: while the device computes one
    block, the next one is copied, and a thread fills the buffer of the one after that. A single block has one of each."""
    shape, ranges = (how.block_rows, encoded.shape[1]), list(_ranges(0, len(encoded), how.block_rows))
    buffers = range(min(2, len(ranges)))
    staged = [torch.empty(shape, dtype=torch.float32, pin_memory=True) for _ in buffers]
    found = [torch.empty(shape, dtype=torch.float32, device=how.device) for _ in buffers]
    copied, computed = ([torch.cuda.Event() for _ in buffers] for _ in range(2))
    copies, computes = _copy_stream(how.device), torch.cuda.current_stream(how.device)
    copies.wait_stream(computes)  # the memory of `found` may still be in use by what was computed before

    def fill(number: int) -> None:
        copied[number % 2].synchronize()  # the copy out of this buffer, two blocks ago
        with torch.inference_mode():  # a thread has a mode of its own
            _fill(staged[number % 2], encoded[ranges[number]])

    # It starts its thread with the second block: a single one, as a request's, needs none.
    with ThreadPoolExecutor(1, thread_name_prefix="fill-block") as filler:
        ahead = None
        for number, rows in enumerate(ranges):
            at = number % 2
            fill(number) if ahead is None else ahead.result()
            with torch.cuda.stream(copies):
                copies.wait_event(computed[at])
                found[at].copy_(staged[at], non_blocking=True)
                copied[at].record(copies)
            ahead = filler.submit(fill, number + 1) if number + 1 < len(ranges) else None
            computes.wait_event(copied[at])
            yield rows, found[at]
            computed[at].record(computes)


@cache
def _copy_stream(device: str) -> torch.cuda.Stream:
    """One for all calls: memory that torch keeps for a stream serves no other one."""
    return torch.cuda.Stream(device)


def _ranges(first: int, last: int, size: int) -> Iterator[slice]:
    for start in range(first, last, size):
        yield slice(start, min(start + size, last))


def _fill(block: Tensor, rows: Matrix) -> None:
    block[: len(rows)] = torch.from_numpy(np.require(rows, requirements="W"))
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
        rows = np.zeros((size, width), dtype=np.float32)  # a block at a time, as a shard's batches come
        torch.cuda.reset_peak_memory_stats(how.device)
        seconds = []
        try:
            for _ in range(1 + _TIMED_RUNS):
                started = time.perf_counter()
                predict(network, rows, neutral, replace(how, block_rows=size))
                seconds.append(time.perf_counter() - started)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        if torch.cuda.max_memory_allocated(how.device) > limit:
            return None
        return len(rows) / min(seconds)

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


def undivided(how: Execution) -> AbstractContextManager[None]:
    """`one_thread` where the CPU computes; beside a GPU it only copies, and may do that with all its threads."""
    return nullcontext() if how.pinned else one_thread()


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
