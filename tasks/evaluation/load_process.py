"""A bundle under load: what runs in the clean process that measures it.

`python -m tasks.evaluation.load_process REQUEST` loads the bundle, says so in a line of JSON, and answers every line on its
stdin with the measurement of one round.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tasks.core.errors import PenstockError
from tasks.evaluation.check_records import Dependency

if TYPE_CHECKING:
    from tasks.model import Bundle

ONE_ROW_CALLS = 40
ROUND_S = 1.0
"""Wall time after which a round takes no further single rows: a slow model is seen without waiting for it."""
_LEAST_CALLS = 5
_MB = 1 << 20


def golden_inputs(bundle: Bundle) -> pa.Table:
    """The bundle's golden source rows, without what training appended."""
    from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN

    return bundle.golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])


class Load:
    """A loaded bundle that is measured round by round."""

    def __init__(self, folder: Path, digest: str, batch_rows: int) -> None:
        from tasks.model import Bundle, Scorer

        started = time.process_time()
        bundle = Bundle(folder, digest).verified()
        self.scorer = Scorer(bundle)
        self.load_cpu_s = time.process_time() - started
        self.one = golden_inputs(bundle).combine_chunks()
        times = -(-batch_rows // self.one.num_rows)
        self.batch = pa.concat_tables([self.one] * times).slice(0, batch_rows).combine_chunks()
        self._score(self.one.slice(0, 1))
        self._score(self.batch)
        self._memory_mb = peak_memory_mb()

    def loaded(self) -> dict[str, Any]:
        """The first line."""
        return {
            "load_cpu_s": self.load_cpu_s,
            "batch_rows": self.batch.num_rows,
            "python_version": platform.python_version(),
        }

    def round(self) -> dict[str, float]:
        """Single rows, one after another, then one batch."""
        wall, cpu = [], []
        until = time.monotonic() + ROUND_S
        for call in range(ONE_ROW_CALLS):
            row = self.one.slice(call % self.one.num_rows, 1)
            started, spent = time.perf_counter(), time.process_time()
            self._score(row)
            cpu.append(time.process_time() - spent)
            wall.append(time.perf_counter() - started)
            if call + 1 >= _LEAST_CALLS and time.monotonic() > until:
                break
        spent = time.process_time()
        self._score(self.batch)
        batch_cpu = time.process_time() - spent
        return {
            "p50_ms": float(np.percentile(wall, 50)) * 1000,
            "p99_ms": float(np.percentile(wall, 99)) * 1000,
            "cpu_ms_one_row": float(np.median(cpu)) * 1000,
            "batch_cpu_s": batch_cpu,
            "peak_memory_mb": peak_memory_mb(),
            "growth_mb": max(0.0, peak_memory_mb() - self._memory_mb),
        }

    def _score(self, rows: pa.Table) -> None:
        scorer = self.scorer
        scorer.predict(scorer.encode(scorer.features(rows)))


def peak_memory_mb() -> float:
    """Largest resident size that this process has had, MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024
    except (
        OSError,
        StopIteration,
    ):  # not Linux. On Linux ru_maxrss would include what the parent had before exec.
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return found / (_MB if sys.platform == "darwin" else 1024)


def imported_dependencies(modules: Iterable[str] | None = None) -> tuple[Dependency, ...]:
    """The installed distributions that `modules` (default: all that this process imported) come from, by name."""
    tops = {name.partition(".")[0] for name in (sys.modules if modules is None else modules)}
    found = (item for item in importlib.metadata.distributions() if not tops.isdisjoint(top_names(item)))
    return tuple(
        sorted(
            {Dependency(item.name, item.version, licence_of(item.metadata)) for item in found},
            key=lambda item: item.name.lower(),
        )
    )


def top_names(distribution: importlib.metadata.Distribution) -> set[str]:
    """Names under which a distribution's code is imported, as `importlib.metadata.packages_distributions` knows them.

    That makes a path of each of the 40,000 files that are installed here, which takes half a second.
    """
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return set(declared)
    record = distribution.read_text("RECORD")
    files = (
        map(str, distribution.files or ())
        if record is None
        else (line.partition(",")[0].strip('"') for line in record.splitlines())
    )
    return {file.removesuffix(".py").partition("/")[0] for file in files if file.endswith(".py")}


def licence_of(metadata: Any) -> str:
    """The SPDX expression where there is one; else the classifiers, else the first line of a short licence field."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    prefix = "License ::"
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith(prefix)]
    if classifiers:
        return "; ".join(text.rpartition("::")[2].strip() for text in classifiers)
    lines = str(metadata.get("License") or "").strip().splitlines()
    text = lines[0].strip() if lines else ""
    return "" if text.upper() == "UNKNOWN" else text[:100]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the model's own code prints is no answer
    request = json.loads(sys.argv[1])
    if sys.platform == "linux":  # a model without bounds must not take the machine's memory
        limit = int(request["memory_limit_mb"]) * _MB
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        load = Load(Path(request["folder"]), request["digest"], request["batch_rows"])
        say(load.loaded())
        for line in sys.stdin:
            if line.strip() == "dependencies":
                say({"dependencies": [item.to_json() for item in imported_dependencies()]})
            else:
                say(load.round())
    except PenstockError as error:
        say({"error": f"{error.which}: {error.what}"})


if __name__ == "__main__":
    main()
