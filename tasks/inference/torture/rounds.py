"""One round after the other, each in a store of its own."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tasks.core.errors import ConfigError, TransientError
from tasks.core.object_store import open_store
from tasks.core.settings import Settings
from tasks.inference.torture import child
from tasks.inference.torture.faults import (
    DISK_FAULTS,
    IN_ORDER,
    S3_FAULTS,
    StoreFault,
    Undisturbed,
    choose,
    faults,
)
from tasks.inference.torture.judging import judge
from tasks.inference.torture.processes import Work, drivers
from tasks.inference.torture.report import FaultLine, TortureReport
from tasks.inference.torture.s3_faults import s3_faults
from tasks.inference.torture.store_uses import Uses
from tasks.inference.torture.strikes import Round, strike
from tasks.inference.torture.watching import Wanted, Watch
from tasks.inference.torture.workload import PREVIOUS, drive, expected_scores, torture_pipeline

log = logging.getLogger(__name__)


def torture(
    settings: Settings,
    *,
    kills: int,
    store: str = "local",
    seconds: float | None = None,
    seed: int = 1,
    work: Work = child.work,
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
        work: A driver's.
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
        return _Torture(settings, scratch, base, work, seed).run(kills, seconds, only)
    finally:
        for folder in (scratch, parent):  # only when nothing was kept in it
            if not any(folder.iterdir()):
                folder.rmdir()


class _Torture:
    def __init__(self, settings: Settings, scratch: Path, base: str | None, work: Work, seed: int) -> None:
        self._settings = settings
        self._scratch = scratch
        self._base = base
        self._work = work
        self._seed = seed
        self._spec = torture_pipeline()

    def run(self, kills: int, seconds: float | None, only: Callable[[str], bool]) -> TortureReport:
        started = time.monotonic()
        known, wanted = self._undisturbed()
        lines: dict[str, FaultLine] = {}
        failures: list[str] = []
        struck = rounds = 0
        for number, fault in enumerate(faults(self._store_faults(), only), start=1):
            over = seconds is not None and time.monotonic() - started >= seconds
            if struck >= kills or over or rounds >= 3 * kills + 10:
                break
            line, problems = self._round(number, fault, known, wanted)
            lines[fault] = lines.get(fault, FaultLine(fault)).plus(line)
            failures += problems
            struck, rounds = struck + line.times, rounds + 1
            log.info("Round %d, %s: %s; %d of %d faults.", number, fault,
                     "ok" if line.ok else "FAILED", struck, kills)  # fmt: skip
        found = tuple(lines[fault] for fault in IN_ORDER if fault in lines)
        good = all(line.ok for line in found)
        if not struck:
            failures.append("no fault met a driver at work, so nothing is proven: give it more time")
        return TortureReport(
            ok=struck > 0 and good,
            seed=self._seed,
            kills=struck,
            rounds=rounds,
            seconds=round(time.monotonic() - started, 1),
            rows=len(wanted.scores),
            faults=found,
            failures=tuple(failures),
            kept=None if good else f"{self._scratch}{f' and {self._base}' if self._base else ''}",
        )

    def _store_faults(self) -> tuple[str, ...]:
        if self._base is None:
            return DISK_FAULTS
        if self._settings.s3_endpoint is None:
            # A proxy between a client and AWS would break the signature, which names the host.
            log.warning("Faults of the store need PENSTOCK_S3_ENDPOINT; there are none in this torture.")
            return ()
        return S3_FAULTS

    def _undisturbed(self) -> tuple[Undisturbed, Wanted]:
        """One driver in a store of its own: its work is timed, its points and its use of the store are counted."""
        with self._store_of("undisturbed", keep=lambda: False) as (settings, folder), ExitStack() as stack:
            uses = Uses()
            through = settings
            if self._base and settings.s3_endpoint:
                root = f"{settings.store_url}/{self._spec.prefix}"
                url = stack.enter_context(s3_faults(settings.s3_endpoint, root, uses))
                through = replace(settings, s3_endpoint=url)
            words = () if self._base else ("count",)
            with drivers(self._work, [words], through, folder / "drivers.log") as (one,):
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
            known = Undisturbed(work_s, said["passed"], {**said["used"], **uses.seen})
            return known, Wanted(run_id, expected_scores(self._spec))

    def _round(
        self, number: int, fault: str, known: Undisturbed, wanted: Wanted
    ) -> tuple[FaultLine, list[str]]:
        scenario = choose(self._seed, number, fault, known)
        line = FaultLine(fault)
        with self._store_of(f"round-{number:05d}", keep=lambda: not line.ok) as (settings, folder):
            if scenario.replaces:
                drive(settings, self._spec, PREVIOUS)
            watch = Watch(settings, self._spec, wanted, replaces=scenario.replaces)
            now = Round(scenario, settings, self._spec, folder, self._work, watch)
            strike(now)
            line = judge(now, wanted)
        name = f"round {number}, {fault}"
        if isinstance(scenario.strike, StoreFault):
            what = scenario.strike
            name += f" ({what.target or 'any part'}, time {what.nth}, for {what.for_s:g} s, {'done' if what.done else 'not done'})"
        return line, [f"{name}: {problem}" for problem in watch.problems]

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
