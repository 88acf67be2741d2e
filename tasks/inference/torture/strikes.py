"""Carry out the fault of a round, and look at the tables meanwhile."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.torture.faults import (
    REFUSING,
    SILENT,
    KillAtPoint,
    KillAtRandom,
    KillOneOfTwo,
    Pause,
    Scenario,
    StoreFault,
)
from tasks.inference.torture.processes import PATIENCE_S, Driver, Work, drivers
from tasks.inference.torture.s3_faults import IMPATIENT_S, s3_faults
from tasks.inference.torture.store_uses import Uses
from tasks.inference.torture.watching import Watch

_REPEAT = (75, 76)
"""Exit codes of errors that ask to be repeated."""


@dataclass
class Round:
    """A round under way."""

    scenario: Scenario
    settings: Settings
    spec: PipelineSpec
    folder: Path
    work: Work
    watch: Watch
    times: int = 0

    @contextmanager
    def drivers(
        self, *arguments: tuple[str, ...], settings: Settings | None = None
    ) -> Iterator[list[Driver]]:
        """Drivers of this round's run, one for each of `arguments`."""
        with drivers(self.work, arguments, settings or self.settings, self.folder / "drivers.log") as started:
            yield started

    def ended(self, driver: Driver) -> None:
        """A driver may finish, be killed, be refused as stale, or ask to be repeated; anything else is a problem."""
        code, said = driver.ended()
        self.times += code == -signal.SIGKILL or said.get("struck", 0) > 0
        allowed = {"StaleAttempt"}
        if self.scenario.fault in REFUSING:
            allowed |= {"AccessDenied", "TerminalError"}
        if code in (0, -signal.SIGKILL, *_REPEAT) or said.get("error") in allowed:
            return
        self.watch.problems.append(
            f"a driver ended with code {code}: {said.get('message') or driver.log_tail()}"
        )


def strike(now: Round) -> None:
    """What the scenario says."""
    what = now.scenario.strike
    if isinstance(what, KillAtPoint):
        _kill_at_point(now, what)
    elif isinstance(what, KillAtRandom):
        _kill_at_random(now, what)
    elif isinstance(what, KillOneOfTwo):
        _kill_one_of_two(now, what)
    elif isinstance(what, Pause):
        _pause(now, what)
    elif now.settings.store_url.startswith("s3://"):
        _fail_s3(now, what)
    else:
        _fail_disk(now, what)


def _kill_at_point(now: Round, what: KillAtPoint) -> None:
    with now.drivers(("at", what.point, str(what.nth), str(int(signal.SIGKILL)))) as (one,):
        one.go()
        now.watch.until_idle(one)
        now.ended(one)
    now.watch.look()


def _kill_at_random(now: Round, what: KillAtRandom) -> None:
    for delay_s in what.delays_s:
        with now.drivers(()) as (one,):
            one.go()
            now.watch.until_idle(one, until=time.monotonic() + delay_s)
            one.send(signal.SIGKILL)
            now.ended(one)
        now.watch.look()


def _kill_one_of_two(now: Round, what: KillOneOfTwo) -> None:
    with now.drivers((), ()) as both:
        for driver in both:
            driver.go()
        victim, other = both[what.victim], both[1 - what.victim]
        now.watch.until_idle(victim, until=time.monotonic() + what.delay_s)
        victim.send(signal.SIGKILL)
        now.ended(victim)
        now.watch.look()
        now.watch.until_idle(other)
        now.ended(other)
    now.watch.look()


def _pause(now: Round, what: Pause) -> None:
    until = time.monotonic() + PATIENCE_S
    where = ("at", what.point, str(what.nth), str(int(signal.SIGSTOP))) if what.point else ()
    with now.drivers(where) as (zombie,):
        zombie.go()
        if not where:
            until = time.monotonic() + what.delay_s
        now.watch.until_idle(zombie, until=until)
        zombie.send(signal.SIGSTOP)
        now.watch.look()
        with now.drivers(()) as (other,):
            other.go()
            now.watch.until_idle(other)
            now.ended(other)
        now.watch.look()
        now.times += zombie.state() == "stopped"
        zombie.send(signal.SIGCONT)
        now.watch.until_idle(zombie)
        now.ended(zombie)
    now.watch.look()


def _fail_disk(now: Round, fault: StoreFault) -> None:
    """Each driver has a bad disk of its own; the reader's is well."""
    with now.drivers(*[("disk", json.dumps(fault.to_json()))] * fault.drivers) as working:
        _until_all_ended(now, working)
    now.watch.look()


def _fail_s3(now: Round, fault: StoreFault) -> None:
    """Drivers reach the store through a proxy that fails, the reader directly."""
    assert now.settings.s3_endpoint
    uses = Uses(fault)
    words = ("impatient", str(IMPATIENT_S)) if fault.kind == SILENT else ()
    root = f"{now.settings.store_url}/{now.spec.prefix}"
    with s3_faults(now.settings.s3_endpoint, root, uses) as url:
        through = replace(now.settings, s3_endpoint=url)
        with now.drivers(*[words] * fault.drivers, settings=through) as working:
            _until_all_ended(now, working)
        now.watch.look()
        now.times += uses.struck > 0
    now.watch.look()  # writes that were late are done by now


def _until_all_ended(now: Round, working: Sequence[Driver]) -> None:
    for driver in working:
        driver.go()
    for driver in working:
        now.watch.until_idle(driver)
        now.ended(driver)
