"""How near the scoring loop comes to a device's own speed: rows from host memory against rows that lie on the device.

    python benchmarks/scoring_device.py --device cuda:0 --rows 4000000 --hidden 2048 2048 1024 --threads 1 4

Needs neither Ray nor an installation: the scorer is a plain class. For each precision, with and without
`torch.compile`, the block size is chosen as a worker chooses it, then both loops run in turn. On a CPU the share is
about 1 by nature; the target of 0.8 is for GPUs. `--threads` are those that copy rows into page-locked memory, which a worker has
as many of as `inference.cpus_per_worker`. Then the rows are explained, in blocks of the size found for float32.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from tasks.model import FeatureEncoder, NetworkSpec, TabularMLP
from tasks.model.attribution import Explainer, explained
from tasks.model.bundle import Calibration
from tasks.model.encoder import CategoricalColumn, NumericColumn
from tasks.model.execution import CPU_BLOCK_ROWS, Execution, blocks, predict, tuned

NUMERIC, CARDINALITIES, EMBEDDED = 27, (17, 4, 105, 8), (4, 2, 6, 3)
CALIBRATION = Calibration(1.1, -0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", nargs="*", type=int, default=[256, 128])
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    name = (
        torch.cuda.get_device_name(asked.device)
        if asked.device.startswith("cuda")
        else platform.processor() or "CPU"
    )
    print(f"{asked.rows:,} rows, layers {asked.hidden}, {name}, torch {torch.__version__}\n")
    print(
        "| network | threads | block | resident, rows/s | from the host, rows/s | share | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    encoded = _rows(asked.rows)
    spec = NetworkSpec(NUMERIC, CARDINALITIES, EMBEDDED, tuple(asked.hidden), 0.0)
    torch.manual_seed(7)
    network = TabularMLP(spec).eval().requires_grad_(False).to(asked.device)
    wanted = predict(network, encoded[:CPU_BLOCK_ROWS], CALIBRATION, Execution(asked.device))
    explaining = Execution(asked.device)
    for compiled in (False, True) if asked.compile else (False,):
        for bfloat16 in (False, True):
            how = tuned(
                network, encoded.shape[1], Execution(asked.device, bfloat16=bfloat16), memory_share=0.3
            )
            explaining = explaining if bfloat16 else how
            forward = torch.compile(network, dynamic=False) if compiled else network
            for threads in asked.threads:
                resident, fed = _rates(forward, encoded, how, asked.repeats, threads)
                moved = np.abs(predict(forward, encoded[:CPU_BLOCK_ROWS], CALIBRATION, how) - wanted).max()
                label = ("compiled, " if compiled else "") + ("bfloat16" if bfloat16 else "float32")
                print(
                    f"| {label} | {threads} | {how.block_rows:,} | {resident:,.0f} | {fed:,.0f} | {fed / resident:.2f} | "
                    f"{moved:.1e} |",
                    flush=True,
                )
    explainer = Explainer(network, _encoder(), device=asked.device)
    seconds = [
        _seconds(lambda: explained(explainer, encoded, CALIBRATION, explaining))
        for _ in range(asked.repeats + 1)
    ][1:]
    print(f"\n{explainer.name}, float32: {len(encoded) / statistics.median(seconds):,.0f} rows/s")


def _encoder() -> FeatureEncoder:
    """What `_rows` would be the output of."""
    numeric = tuple(NumericColumn(f"n{i}", 0.0, 1.0, False, 0.0, 0.0) for i in range(NUMERIC))
    categorical = tuple(
        CategoricalColumn(f"c{i}", tuple(map(str, range(size - 1))), (1 / size,) * size)
        for i, size in enumerate(CARDINALITIES)
    )
    return FeatureEncoder(numeric, categorical)


def _rows(n: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    numbers = rng.standard_normal((n, NUMERIC), dtype=np.float32)
    codes = [rng.integers(0, size, n).astype(np.float32) for size in CARDINALITIES]
    return np.concatenate([numbers, np.stack(codes, axis=1)], axis=1)


def _rates(
    network: torch.nn.Module, encoded: np.ndarray, how: Execution, repeats: int, threads: int
) -> tuple[float, float]:
    """Medians of rows per second: blocks that lie on the device already, and `predict` from host memory."""
    resident = [block.clone() for _, block in blocks(encoded, how)]

    def on_device() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(torch.device(how.device).type, dtype=torch.bfloat16, enabled=how.bfloat16),
        ):
            found = [
                torch.sigmoid(network(block).float() * CALIBRATION.slope + CALIBRATION.intercept)
                for block in resident
            ]
        torch.cat(found).cpu()

    def from_host() -> None:
        predict(network, encoded, CALIBRATION, how)

    def with_threads(number: int, action: Callable[[], None]) -> float:
        torch.set_num_threads(number)
        try:
            return _seconds(action)
        finally:
            torch.set_num_threads(before)

    before = torch.get_num_threads()
    pairs = [(with_threads(1, on_device), with_threads(threads, from_host)) for _ in range(repeats + 1)][1:]
    return tuple(len(encoded) / statistics.median(pair[side] for pair in pairs) for side in (0, 1))  # type: ignore[return-value]


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
