"""Latency and memory of a candidate beside the champion, each in a clean process, in turns.

Times of another machine or hour say little, so both models are measured in the same minute: a round of one, a round
of the other. Ratios are of CPU time, which a busy neighbour hardly moves, and medians over the rounds; what looks too
slow is measured for three times as many rounds before it is believed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from tasks.core import PipelineSpec
from tasks.core.clean_process import environment, kill, why_ended
from tasks.core.errors import PenstockError, TerminalError
from tasks.evaluation.check_records import Dependency, Footprint, ProcessLoad

ROUNDS, MORE_ROUNDS = 5, 10
MOST_BATCH_ROWS = 16_384
DEADLINE_S = 180.0
"""For loading and all rounds of one process."""
_LAST_WORDS_S = 10.0
"""A process that has closed its answers is let end by itself for so long: how it ends is the reason."""
_MEMORY_FACTOR = 3
"""A process may claim this many times its budget before the system refuses it more."""


class Loaded(Protocol):
    """A model somewhere that answers rounds."""

    def hello(self) -> dict[str, Any]: ...

    def ask(self, what: str) -> dict[str, Any]: ...


Start = Callable[[ExitStack, Path, str, PipelineSpec], Loaded]
"""Starts a model's process: an exit stack that ends it, the bundle's folder and digest, the spec."""


class ModelProcess:
    """A spawned Python that has loaded one bundle.

    Raises:
        TerminalError: From every method, when the process has died or has not answered in time.
    """

    def __init__(
        self, folder: Path, digest: str, spec: PipelineSpec, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._which = f"bundle {digest[:16]} under load"
        self._deadline_s = deadline_s
        self._late = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        request = {
            "folder": str(folder),
            "digest": digest,
            "batch_rows": batch_rows(spec),
            "memory_limit_mb": spec.gates.max_memory_mb * _MEMORY_FACTOR,
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tasks.evaluation.load_process", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,
        )
        self._timer = threading.Timer(deadline_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def hello(self) -> dict[str, Any]:
        """What it says once the bundle is loaded and has scored."""
        return self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        """One round (`round`), or what was imported (`dependencies`)."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{what}\n".encode())
            self._child.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def close(self) -> None:
        """End the process; it holds nothing that matters."""
        self._timer.cancel()
        kill(self._child)
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._ended() from None
        if "error" in found:
            raise TerminalError(found["error"], which=self._which, fix="correct that line, then train again")
        return found

    def _give_up(self) -> None:
        self._late = True
        kill(self._child)

    def _ended(self) -> TerminalError:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_LAST_WORDS_S)
        kill(self._child)
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace")
        what = (
            f"did not finish within {self._deadline_s:g} s"
            if self._late
            else f"its process {why_ended(self._child.returncode, printed)}"
        )
        return TerminalError(what, which=self._which, fix="score the bundle's golden rows by hand to see why")


def spawn(ends: ExitStack, folder: Path, digest: str, spec: PipelineSpec) -> Loaded:
    """The `Start` that is used outside tests."""
    process = ModelProcess(folder, digest, spec)
    ends.callback(process.close)
    return process


def batch_rows(spec: PipelineSpec) -> int:
    """N: what batch scoring uses, within what a check may take."""
    return min(spec.inference.batch_rows, MOST_BATCH_ROWS)


@dataclass(frozen=True)
class Measured:
    """What the processes said."""

    footprint: Footprint
    dependencies: tuple[Dependency, ...] = ()
    python_version: str = ""


@dataclass
class _Model:
    process: Loaded | None = None
    error: str | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)

    def say(self, ask: Callable[[Loaded], dict[str, Any]]) -> dict[str, Any] | None:
        """An answer, or None once the process has failed: its reason is kept."""
        if self.process is None or self.error:
            return None
        try:
            return ask(self.process)
        except PenstockError as error:
            self.error = error.what
            return None


def measure_footprint(
    spec: PipelineSpec,
    candidate: tuple[Path, str],
    champion: tuple[Path, str] | None,
    *,
    start: Start = spawn,
) -> Measured:
    """Load candidate and champion in processes of their own and let them score in turns.

    A process that dies, hangs or has no memory is an error in the result, never one of the caller.

    Args:
        candidate: Folder and digest of a verified bundle.
        champion: The same; None: there is none to compare with.
    """
    with ExitStack() as ends:
        ours, theirs = _Model(), _Model()
        for model, where in ((ours, candidate), (theirs, champion)):
            if where is not None:
                model.process = start(ends, *where, spec)
        models = [model for model in (ours, theirs) if model.process is not None]
        for model in models:
            model.hello = model.say(lambda process: process.hello()) or {}
        _rounds(models, ROUNDS)
        if not ours.error and _over(spec, ours, theirs):
            _rounds(models, MORE_ROUNDS)
        told = ours.say(lambda process: process.ask("dependencies")) or {}
    footprint = Footprint(
        candidate=None if ours.error else _summary(ours),
        champion=None if theirs.error or champion is None else _summary(theirs),
        candidate_error=ours.error,
        champion_error=theirs.error,
        one_row_ratio=_ratio(ours, theirs, "cpu_ms_one_row"),
        batch_ratio=_ratio(ours, theirs, "batch_cpu_s"),
    )
    found = tuple(Dependency.from_json(item) for item in told.get("dependencies", ()))
    return Measured(footprint, found, ours.hello.get("python_version", ""))


def _rounds(models: list[_Model], count: int) -> None:
    for _ in range(count):
        for model in models:
            found = model.say(lambda process: process.ask("round"))
            if found is not None:
                model.rounds.append(found)


def _over(spec: PipelineSpec, ours: _Model, theirs: _Model) -> bool:
    limit = spec.gates.max_latency_ratio
    ratios = [_ratio(ours, theirs, name) for name in ("cpu_ms_one_row", "batch_cpu_s")]
    too_slow = limit is not None and any(ratio is not None and ratio > limit for ratio in ratios)
    return too_slow or _median(ours, "p99_ms") > spec.gates.max_latency_ms_p99


def _ratio(ours: _Model, theirs: _Model, name: str) -> float | None:
    if ours.error or theirs.error or not (ours.rounds and theirs.rounds):
        return None
    pairs = zip(ours.rounds, theirs.rounds, strict=True)
    return float(np.median([mine[name] / max(other[name], 1e-9) for mine, other in pairs]))


def _median(model: _Model, name: str) -> float:
    return float(np.median([item[name] for item in model.rounds]))


def _summary(model: _Model) -> ProcessLoad:
    rows = int(model.hello["batch_rows"])
    return ProcessLoad(
        rounds=len(model.rounds),
        batch_rows=rows,
        p50_ms=_median(model, "p50_ms"),
        p99_ms=_median(model, "p99_ms"),
        cpu_ms_one_row=_median(model, "cpu_ms_one_row"),
        rows_per_cpu_s=rows / max(_median(model, "batch_cpu_s"), 1e-9),
        peak_memory_mb=max(item["peak_memory_mb"] for item in model.rounds),
        growth_mb=max(item["growth_mb"] for item in model.rounds),
        load_cpu_s=float(model.hello["load_cpu_s"]),
    )
