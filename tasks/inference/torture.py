"""Kill drivers of a run again and again, and count what is lost, doubled or seen in part.

Each round has a store of its own. One fault, or a few, strike drivers that are processes of their own; the
table is read while they run and right after; then the run is resumed, swept and compared with what the
model says of each row. docs/inference.md describes the faults.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tasks.core.clock import utc_now
from tasks.core.crash_points import POINTS
from tasks.core.delta import FileName
from tasks.core.errors import ConfigError, PenstockError, TransientError, error_kind
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.inference.maintenance import sweep_orphans
from tasks.inference.records import AUDIT, PREDICTIONS, read_plan, read_shard_records
from tasks.inference.torture_child import PREVIOUS, TORTURED, drive, expected_scores, torture_pipeline
from tasks.inference.verification import verify

log = logging.getLogger(__name__)

CRASH_POINTS = POINTS[: POINTS.index("after-published-marker") + 1]
"""The points of scoring and publishing; replays and the archive come after them."""
DRIVER = (sys.executable, "-m", "tasks.inference.torture_child")
AT_POINT, AT_RANDOM, TWO, PAUSED = "kill at", "kill at a random time", "two drivers, one killed", "paused"
_IN_ORDER = (
    *(f"{AT_POINT} {point}" for point in CRASH_POINTS),
    AT_RANDOM,
    TWO,
    *(f"{PAUSED} at {point}" for point in CRASH_POINTS),
    f"{PAUSED} at a random time",
)
_ROTATION = (AT_POINT, AT_RANDOM, AT_POINT, TWO, AT_POINT, PAUSED)
_PATIENCE_S = 120.0
_WATCH_S = 0.02


@dataclass(frozen=True)
class FaultLine(JsonRecord):
    """What one kind of fault did in all of its rounds. Rows are counted in both tables, after the resume."""

    fault: str
    rounds: int = 0
    times: int = 0
    """How often it struck: SIGKILLs and SIGSTOPs that met a driver at work."""
    looks: int = 0
    """How often the table was read before the run was resumed to its end."""
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    """Rows with another score than the model gives, or of no source row."""
    partial_seen: int = 0
    """Looks that showed a part of the run, a mix with the run before, or predictions without audit rows."""
    orphans_swept: int = 0
    orphans_left: int = 0
    problems: int = 0
    """Drivers that ended as they must not, resumes that failed, and what `verify` found."""

    def plus(self, other: FaultLine) -> FaultLine:
        """Both together."""
        names = [name for name in self.to_json() if name != "fault"]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        bad = (self.lost, self.doubled, self.changed, self.partial_seen, self.orphans_left, self.problems)
        return not any(bad)


@dataclass(frozen=True)
class TortureReport(JsonRecord):
    """The matrix of a torture."""

    ok: bool
    seed: int
    kills: int
    rounds: int
    seconds: float
    rows: int
    """Rows of each run."""
    faults: tuple[FaultLine, ...]
    failures: tuple[str, ...]
    """What went wrong in which round."""
    kept: str | None
    """Where the stores and logs of the rounds that failed are."""


@dataclass
class _Round:
    """A round under way."""

    number: int
    fault: str
    settings: Settings
    folder: Path
    dice: random.Random
    replaces: bool
    """Whether readers see a run of these days already."""
    times: int = 0
    looks: int = 0
    partial: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """What a reader of a table sees: ids with scores of the tortured run, and rows of other runs."""

    rows: tuple[tuple[str, float], ...]
    others: int

    @property
    def ids(self) -> set[str]:
        return {prediction_id for prediction_id, _ in self.rows}


@dataclass(frozen=True)
class _Reference:
    """The run that nobody disturbed, and what must be in the tables."""

    run_id: str
    scores: dict[str, float]
    """By prediction id; from the model itself, so a driver that is wrong even undisturbed is found too."""
    passed: dict[str, int]
    work_s: float


def torture(
    settings: Settings,
    *,
    kills: int,
    store: str = "local",
    seconds: float | None = None,
    seed: int = 1,
    driver: Sequence[str] = DRIVER,
    only: Callable[[str], bool] = bool,
) -> TortureReport:
    """Strike drivers `kills` times and report; everything but the rounds that failed is removed again.

    Args:
        settings: This installation; only its home folder and its S3 endpoint are used.
        kills: Faults to deliver.
        store: `local`, or the URL of an S3 prefix below which a fresh one is used.
        seconds: No round begins after this time; None for no limit.
        seed: Decides every choice: the same seed and `kills` give the same faults. Where in its work a
            driver meets a random moment depends on the machine too.
        driver: Command of a driver.
        only: Which faults of the rotation, by name; all without it.

    Raises:
        ConfigError: `store` or `kills` is wrong.
        TransientError: Not even the undisturbed run succeeds.
    """
    if kills < 1:
        raise ConfigError(f"is {kills}", which="--kills", fix="give at least 1")
    if store != "local" and not store.startswith("s3://"):
        raise ConfigError(f"is {store!r}", which="--store", fix="give local or s3://bucket/prefix")
    parent = settings.home / "torture"
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=parent))
    base = f"{store.rstrip('/')}/{scratch.name}" if store != "local" else None
    try:
        return _Torture(settings, scratch, base, tuple(driver), seed).run(kills, seconds, only)
    finally:
        for folder in (scratch, parent):  # only when nothing was kept in it
            if not any(folder.iterdir()):
                folder.rmdir()


class _Torture:
    def __init__(
        self, settings: Settings, scratch: Path, base: str | None, driver: tuple[str, ...], seed: int
    ) -> None:
        self._settings = settings
        self._scratch = scratch
        self._base = base
        self._driver = driver
        self._seed = seed
        self._spec = torture_pipeline()

    def run(self, kills: int, seconds: float | None, only: Callable[[str], bool]) -> TortureReport:
        started = time.monotonic()
        wanted = _faults(only)
        reference = self._undisturbed()
        lines: dict[str, FaultLine] = {}
        failures: list[str] = []
        struck = rounds = 0
        for number, fault in enumerate(wanted, start=1):
            over = seconds is not None and time.monotonic() - started >= seconds
            if struck >= kills or over or rounds >= 3 * kills + 10:
                break
            line, problems = self._round(number, fault, reference)
            lines[fault] = lines.get(fault, FaultLine(fault)).plus(line)
            failures += problems
            struck, rounds = struck + line.times, rounds + 1
            log.info("Round %d, %s: %s; %d of %d kills.", number, fault,
                     "ok" if line.ok else "FAILED", struck, kills)  # fmt: skip
        order = {fault: place for place, fault in enumerate(_IN_ORDER)}
        faults = tuple(sorted(lines.values(), key=lambda line: order[line.fault]))
        if not struck:
            failures.append("no fault met a driver at work, so nothing is proven: give it more time")
        ok = struck > 0 and all(line.ok for line in faults)
        return TortureReport(
            ok=ok,
            seed=self._seed,
            kills=struck,
            rounds=rounds,
            seconds=round(time.monotonic() - started, 1),
            rows=len(reference.scores),
            faults=faults,
            failures=tuple(failures),
            kept=None
            if all(line.ok for line in faults)
            else f"{self._scratch}{f' and {self._base}' if self._base else ''}",
        )

    # -- one round

    def _undisturbed(self) -> _Reference:
        """One driver in a store of its own, with every crash point counted and its work timed."""
        with self._store_of("undisturbed", keep=lambda: False) as (settings, folder):
            with self._drivers(settings, folder, [()]) as (one,):
                began = time.monotonic()
                one.go()
                code, said = one.ended()
                work_s = time.monotonic() - began
            if code != 0:
                raise TransientError(
                    f"ended with code {code}: {said.get('message') or one.log_tail()}",
                    which="the driver that nobody disturbed",
                    fix="run the tests of tests/inference first; nothing was killed yet",
                )
            run_id = drive(settings, self._spec)
            return _Reference(run_id, expected_scores(self._spec), said["passed"], work_s)

    def _round(self, number: int, fault: str, reference: _Reference) -> tuple[FaultLine, list[str]]:
        dice = random.Random(f"{self._seed}:{number}")
        line = FaultLine(fault)
        with self._store_of(f"round-{number:05d}", keep=lambda: not line.ok) as (settings, folder):
            now = _Round(number, fault, settings, folder, dice, replaces=dice.random() < 0.5)
            if now.replaces:
                drive(settings, self._spec, PREVIOUS)
            strike = {AT_RANDOM: self._kill_at_random, TWO: self._kill_one_of_two}.get(fault)
            if strike is not None:
                strike(now, reference)
            elif fault.startswith(PAUSED):
                self._pause(now, reference)
            else:
                self._kill_at_point(now, reference)
            line = self._judge(now, reference)
        return line, [f"round {number}, {fault}: {problem}" for problem in now.problems]

    def _kill_at_point(self, now: _Round, reference: _Reference) -> None:
        point = now.fault.removeprefix(f"{AT_POINT} ")
        nth = now.dice.randint(1, max(1, reference.passed.get(point, 1)))
        with self._drivers(now.settings, now.folder, [(point, str(nth), str(int(signal.SIGKILL)))]) as (one,):
            one.go()
            self._watch(now, reference, one)
            self._ended(now, one)
        self._look(now, reference)

    def _kill_at_random(self, now: _Round, reference: _Reference) -> None:
        """Up to three drivers, one after the other; each may get further than the one before."""
        for _ in range(now.dice.randint(1, 3)):
            delay_s = now.dice.uniform(0, reference.work_s)
            with self._drivers(now.settings, now.folder, [()]) as (one,):
                one.go()
                self._watch(now, reference, one, until=time.monotonic() + delay_s)
                one.send(signal.SIGKILL)
                self._ended(now, one)
            self._look(now, reference)

    def _kill_one_of_two(self, now: _Round, reference: _Reference) -> None:
        delay_s = now.dice.uniform(0, 1.5 * reference.work_s)  # two share the machine, so each takes longer
        victim = now.dice.randrange(2)
        with self._drivers(now.settings, now.folder, [(), ()]) as drivers:
            for driver in drivers:
                driver.go()
            self._watch(now, reference, drivers[victim], until=time.monotonic() + delay_s)
            drivers[victim].send(signal.SIGKILL)
            self._ended(now, drivers[victim])
            self._look(now, reference)
            self._watch(now, reference, drivers[1 - victim])
            self._ended(now, drivers[1 - victim])
        self._look(now, reference)

    def _pause(self, now: _Round, reference: _Reference) -> None:
        """One driver is stopped, another one finishes, the first wakes up."""
        point = now.fault.removeprefix(PAUSED).removeprefix(" at ")
        where: tuple[str, ...] = ()
        until = time.monotonic() + _PATIENCE_S
        if point in CRASH_POINTS:
            nth = now.dice.randint(1, max(1, reference.passed.get(point, 1)))
            where = (point, str(nth), str(int(signal.SIGSTOP)))
        with self._drivers(now.settings, now.folder, [where]) as (zombie,):
            zombie.go()
            if not where:
                until = time.monotonic() + now.dice.uniform(0, reference.work_s)
            self._watch(now, reference, zombie, until=until)
            zombie.send(signal.SIGSTOP)
            self._look(now, reference)
            with self._drivers(now.settings, now.folder, [()]) as (other,):
                other.go()
                self._watch(now, reference, other)
                self._ended(now, other)
            self._look(now, reference)
            now.times += zombie.state() == "stopped"
            zombie.send(signal.SIGCONT)
            self._watch(now, reference, zombie)
            self._ended(now, zombie)
        self._look(now, reference)

    # -- what is seen

    def _look(self, now: _Round, reference: _Reference) -> None:
        """Read the table as anybody may at this moment: all of the run and nothing else, or none of it."""
        now.looks += 1
        try:
            seen = self._see(now.settings, PREDICTIONS, reference.run_id)
            # Read after the predictions: audit rows are published first, so whatever was seen has its rows there.
            audit = self._see(now.settings, AUDIT, reference.run_id).ids if seen.rows else set()
        except TransientError as error:
            now.problems.append(str(error))
            return
        before = len(reference.scores) if now.replaces else 0
        whole = seen.ids == set(reference.scores) and not seen.others
        none = not seen.rows and seen.others == before
        explained = seen.ids <= audit
        if not (whole or none) or not explained:
            now.partial += 1
            now.problems.append(
                f"a reader saw {len(seen.ids)} of {len(reference.scores)} rows of the run beside {seen.others} "
                f"of the run before{'' if explained else ', and not all of them had audit rows'}"
            )

    def _watch(self, now: _Round, reference: _Reference, driver: _Driver, until: float | None = None) -> None:
        """Look again and again while a driver works, until it stops, ends or the moment has come."""
        limit = time.monotonic() + _PATIENCE_S if until is None else until
        while driver.state() == "running":
            left = limit - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(_WATCH_S, left))
            if left > 2 * _WATCH_S:
                self._look(now, reference)

    def _ended(self, now: _Round, driver: _Driver) -> None:
        """A driver may finish, be killed, be refused as stale, or ask to be repeated; anything else is a problem."""
        code, said = driver.ended()
        if code == -signal.SIGKILL:
            now.times += 1
        elif code != 0 and said.get("error") != "StaleAttempt" and code not in (75, 76):
            now.problems.append(
                f"a driver ended with code {code}: {said.get('message') or driver.log_tail()}"
            )

    def _judge(self, now: _Round, reference: _Reference) -> FaultLine:
        """Resume the run until it is published, sweep, and compare both tables with the model's scores."""
        self._resume(now)
        swept = left = 0
        try:
            store = open_store(now.settings, prefix=self._spec.prefix)
            orphans = self._orphans(store, reference.run_id)
            older_than = timedelta(seconds=2 * self._spec.inference.shard_timeout_s)
            sweep_orphans(
                now.settings, self._spec, older_than=older_than, clock=lambda: utc_now() + 2 * older_than
            )
            left = len(self._orphans(store, reference.run_id))
            swept = len(orphans) - left
            found = verify(now.settings, self._spec, reference.run_id)
            now.problems += [f"verify: {problem}" for problem in found.problems]
            if not found.ok and not found.problems:
                now.problems.append("verify is not ok")
        except Exception as error:  # as above
            now.problems.append(f"the check failed: {type(error).__name__}: {error}")
        counts: Counter[str] = Counter()
        for table in (PREDICTIONS, AUDIT):
            try:
                seen = self._see(now.settings, table, reference.run_id)
            except TransientError as error:
                now.problems.append(str(error))
                seen = _Seen((), 0)
            counts["lost"] += len(set(reference.scores) - seen.ids)
            counts["doubled"] += len(seen.rows) - len(seen.ids)
            counts["changed"] += len(
                {one for one, score in seen.rows if reference.scores.get(one, -1.0) != score}
            )
            if table == PREDICTIONS:
                counts["doubled"] += seen.others  # the rows of the run before, beside those that replace them
        now.problems += [f"{number} rows are {what}" for what, number in counts.items() if number]
        if left:
            now.problems.append(f"{left} files that nothing names were not swept")
        return FaultLine(
            fault=now.fault,
            rounds=1,
            times=now.times,
            looks=now.looks,
            lost=counts["lost"],
            doubled=counts["doubled"],
            changed=counts["changed"],
            partial_seen=now.partial,
            orphans_swept=swept,
            orphans_left=left,
            problems=len(now.problems),
        )

    def _resume(self, now: _Round) -> None:
        for _ in range(3):
            try:
                drive(now.settings, self._spec, TORTURED)
                return
            except PenstockError as error:
                if error_kind(error) == "terminal":
                    now.problems.append(f"the resume failed: {error}")
                    return
            except Exception as error:  # a bug of the protocol: found, and its store kept
                log.exception("The resume failed.")
                now.problems.append(f"the resume failed: {type(error).__name__}: {error}")
                return
        now.problems.append("three resumes did not finish the run")

    def _see(self, settings: Settings, table: str, run_id: str) -> _Seen:
        """A plain Delta reader: none of the code that publishes has a part in it."""
        import pyarrow as pa
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        score = "score" if table == PREDICTIONS else "prediction"
        store = open_store(settings, prefix=self._spec.prefix)
        try:
            delta = DeltaTable(store.url(table), storage_options=store.storage_options() or None)
            rows = delta.to_pyarrow_table(columns=["prediction_id", score, "run_id"]).to_pylist()
        except TableNotFoundError:
            return _Seen((), 0)
        except (DeltaError, pa.ArrowException, OSError) as error:
            raise TransientError(
                f"cannot be read: {error}", which=store.url(table), fix="see what the round did to it"
            ) from error
        own = tuple((row["prediction_id"], row[score]) for row in rows if row["run_id"] == run_id)
        return _Seen(own, len(rows) - len(own))

    def _orphans(self, store: ObjectStore, run_id: str) -> set[str]:
        """Data files of the tortured run that no shard record names, found without the code that sweeps."""
        shards = [task.shard for task in read_plan(store, run_id).shards]
        records = read_shard_records(store, run_id, shards)
        named = {f"{PREDICTIONS}/{file.path}" for record in records for file in record.files}
        named |= {f"{AUDIT}/{file.path}" for record in records for file in record.audit_files}
        found = set()
        for table in (PREDICTIONS, AUDIT):
            for info in store.list(table):
                name = FileName.parse(info.key.removeprefix(f"{table}/"))
                if name is not None and name.run_id == run_id and info.key not in named:
                    found.add(info.key)
        return found

    # -- stores and processes

    @contextmanager
    def _store_of(self, name: str, *, keep: Callable[[], bool]) -> Iterator[tuple[Settings, Path]]:
        """A folder, and a store that is empty; both are removed unless `keep` says otherwise at the end."""
        folder = self._scratch / name
        folder.mkdir()
        settings = Settings.at_home(folder, project=self._settings.project)
        if self._base:
            settings = replace(
                settings,
                store_url=f"{self._base}/{name}",
                s3_endpoint=self._settings.s3_endpoint,
                s3_region=self._settings.s3_region,
            )
        kept = False
        try:
            yield settings, folder
            kept = keep()
        finally:
            if not kept:
                if self._base:
                    store = open_store(settings)
                    for info in list(store.list()):
                        store.delete(info.key)
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _drivers(
        self, settings: Settings, folder: Path, arguments: Sequence[tuple[str, ...]]
    ) -> Iterator[list[_Driver]]:
        """Drivers that wait for `go`; none of them outlives the block."""
        drivers: list[_Driver] = []
        try:
            for words in arguments:  # one by one: those that started are closed when a later one fails
                one = _Driver((*self._driver, *words), settings, folder / "drivers.log")
                drivers.append(one)
            for driver in drivers:
                driver.wait_ready()
            yield drivers
        finally:
            for driver in drivers:
                driver.close()


class _Driver:
    """A child process that works on the run."""

    def __init__(self, command: Sequence[str], settings: Settings, log_file: Path) -> None:
        self._log_file = log_file
        with log_file.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **settings.as_environment()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    def wait_ready(self) -> None:
        assert self._process.stdout
        there, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        if not there or self._process.stdout.readline() != b"ready\n":
            raise TransientError(
                f"did not start: {self.log_tail()}", which="a driver", fix="see whether the machine is busy"
            )

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"go\n")

    def state(self) -> str:
        """`running`, `stopped` or `ended`; leaves what it learns for `ended`."""
        flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        if self._process.returncode is not None:
            return "ended"
        found = os.waitid(os.P_PID, self._process.pid, flags)
        if found is None:
            return "running"
        return "stopped" if found.si_code == os.CLD_STOPPED else "ended"

    def send(self, number: signal.Signals) -> None:
        if self.state() != "ended":
            self._process.send_signal(number)
            if number is signal.SIGSTOP:
                deadline = time.monotonic() + _PATIENCE_S
                while self.state() == "running" and time.monotonic() < deadline:
                    time.sleep(0.001)

    def ended(self) -> tuple[int, dict[str, Any]]:
        """(exit code, the last line that it printed as JSON)."""
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return 1, {"message": f"did not end within {_PATIENCE_S:.0f} s"}
        assert self._process.stdout
        said = self._process.stdout.read().splitlines()
        return code, json.loads(said[-1]) if said and code >= 0 else {}

    def log_tail(self) -> str:
        """The end of what drivers of this round wrote to stderr."""
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:])

    def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def _at(point: str) -> str:
    return f"{AT_POINT} {point}"


def _faults(only: Callable[[str], bool]) -> Iterator[str]:
    """Faults without end: every kind in turn, and within it every crash point."""
    killed = paused = 0
    idle = 0
    while idle < 100:  # `only` may refuse everything
        for kind in _ROTATION:
            fault = kind
            if kind == AT_POINT:
                fault = _at(CRASH_POINTS[killed % len(CRASH_POINTS)])
                killed += 1
            elif kind == PAUSED:
                # Every other one at a random time.
                point = CRASH_POINTS[paused // 2 * 3 % len(CRASH_POINTS)]
                fault = f"{PAUSED} at {point}" if paused % 2 == 0 else f"{PAUSED} at a random time"
                paused += 1
            idle = 0 if only(fault) else idle + 1
            if only(fault):
                yield fault
