"""Which fault strikes in which round, where and for how long: decided by the seed and nothing else.

An undisturbed run says how often each crash point is passed and each part of the store is used; a choice falls
on one of these times. Nothing here touches a process or a store.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tasks.core.crash_points import POINTS
from tasks.core.records import JsonRecord

CRASH_POINTS = POINTS[: POINTS.index("after-published-marker") + 1]
"""The points of scoring and publishing; replays and the archive come after them."""

AT_POINT, AT_RANDOM, TWO, PAUSED = "kill at", "kill at a random time", "two drivers, one killed", "paused"
PAUSED_AT_RANDOM = f"{PAUSED} at a random time"

CREATE, WRITE, READ, LOOK, DELETE = "create", "write", "read", "look", "delete"
"""What is asked of a store: put something under its name, prepare that on a disk, read content, ask what is there,
and remove."""

_TARGETS = {
    "data file": re.compile(r"tables/[^/]+/event_date=[^/]+/[^/]+\.parquet"),
    "table log": re.compile(r"tables/[^/]+/_delta_log/.*"),
    "shard record": re.compile(r"runs/[^/]+/shard-\d+\.json"),
    "token": re.compile(r"runs/[^/]+/attempts/[^/]+\.json"),
    "plan": re.compile(r"runs/[^/]+/plan\.json"),
    "marker": re.compile(r"runs/[^/]+/published\.json"),
}
_LOST = "lost answer, {}"
LOST_ANSWERS = tuple(_LOST.format(target) for target in _TARGETS)
"""A write is done, and its caller learns of an error."""
DISK_FULL, DISK_ERROR, NO_ACCESS = "disk full", "disk error", "no access"
BUSY, RESET_WRITE, RESET_READ = "500 and 503 answers", "reset in a PUT", "reset in a GET"
SILENT, LATE, REFUSED = "no answer in time", "write done late", "writes refused"

_OPERATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(LOST_ANSWERS, (CREATE,)),
    DISK_FULL: (WRITE, CREATE),
    DISK_ERROR: (WRITE, CREATE, READ, LOOK, DELETE),
    NO_ACCESS: (WRITE, CREATE, READ, DELETE),
    BUSY: (CREATE, READ, LOOK, DELETE),
    RESET_WRITE: (CREATE,),
    RESET_READ: (READ,),
    SILENT: (CREATE, READ, LOOK, DELETE),
    LATE: (CREATE,),
    REFUSED: (CREATE, DELETE),
}
DISK_FAULTS = (*LOST_ANSWERS, DISK_FULL, DISK_ERROR, NO_ACCESS)
S3_FAULTS = (*LOST_ANSWERS, BUSY, RESET_WRITE, RESET_READ, SILENT, LATE, REFUSED)
REFUSING = (NO_ACCESS, REFUSED)
"""Faults after which a driver may say that it lacks access; after the others it has to ask to be repeated."""

IN_ORDER = (
    *(f"{AT_POINT} {point}" for point in CRASH_POINTS),
    AT_RANDOM,
    TWO,
    *(f"{PAUSED} at {point}" for point in CRASH_POINTS),
    PAUSED_AT_RANDOM,
    *LOST_ANSWERS,
    *(fault for fault in (*DISK_FAULTS, *S3_FAULTS) if fault not in LOST_ANSWERS),
)
"""Every fault, as the matrix lists them."""

_STORE = "store"
_ROTATION = (AT_POINT, _STORE, AT_RANDOM, AT_POINT, TWO, _STORE, AT_POINT, PAUSED)
_WINDOWS_S = (0.0, 0.0, 0.3, 1.0, 3.0)
"""How long a fault of the store lasts; 0 for one operation."""


@dataclass(frozen=True)
class Undisturbed:
    """What the run that nobody disturbed did."""

    work_s: float
    passed: Mapping[str, int] = field(default_factory=dict)
    """How often, by crash point."""
    used: Mapping[str, int] = field(default_factory=dict)
    """How often the store was asked, by `use`."""


@dataclass(frozen=True)
class KillAtPoint:
    """SIGKILL when a driver passes a point for the nth time."""

    point: str
    nth: int


@dataclass(frozen=True)
class KillAtRandom:
    """Drivers one after the other, each killed some time after its start; each may get further than the last."""

    delays_s: tuple[float, ...]


@dataclass(frozen=True)
class KillOneOfTwo:
    """Two drivers start at once, and one is killed."""

    victim: int
    delay_s: float


@dataclass(frozen=True)
class Pause:
    """A driver is stopped at a point, or after a time; another one finishes; the first wakes up."""

    point: str | None
    nth: int
    delay_s: float


@dataclass(frozen=True)
class StoreFault(JsonRecord):
    """The store fails from the nth operation of a kind on, for a while."""

    kind: str
    target: str | None
    """Only operations on this part of the store."""
    nth: int
    for_s: float
    done: bool
    """Whether the operation takes effect although it fails, where both may be."""
    drivers: int = 1

    @property
    def operations(self) -> tuple[str, ...]:
        """Which of them fail."""
        return _OPERATIONS[self.kind]


@dataclass(frozen=True)
class Scenario:
    """What happens in one round."""

    number: int
    fault: str
    replaces: bool
    """Whether readers see a run of these days already."""
    strike: KillAtPoint | KillAtRandom | KillOneOfTwo | Pause | StoreFault


def target_of(key: str) -> str | None:
    """The part of the store that a key of the pipeline belongs to; None for any other."""
    return next((name for name, pattern in _TARGETS.items() if pattern.fullmatch(key)), None)


def use(operation: str, target: str | None) -> str:
    """How an operation on a part of the store is counted."""
    return f"{operation} {target or 'other'}"


def faults(store_faults: tuple[str, ...], only: Callable[[str], bool] = bool) -> Iterator[str]:
    """Faults without end: every kind in turn, and within it every crash point and every fault of the store."""
    killed = paused = failed = idle = 0
    while idle < 200:  # `only` may refuse everything
        for kind in _ROTATION:
            fault = kind
            if kind == AT_POINT:
                fault = f"{AT_POINT} {CRASH_POINTS[killed % len(CRASH_POINTS)]}"
                killed += 1
            elif kind == PAUSED:
                # Every other one at a random time.
                point = CRASH_POINTS[paused // 2 * 3 % len(CRASH_POINTS)]
                fault = f"{PAUSED} at {point}" if paused % 2 == 0 else PAUSED_AT_RANDOM
                paused += 1
            elif kind == _STORE:
                if not store_faults:
                    continue
                fault = store_faults[failed % len(store_faults)]
                failed += 1
            idle = 0 if only(fault) else idle + 1
            if only(fault):
                yield fault


def choose(seed: int, number: int, fault: str, known: Undisturbed) -> Scenario:
    """Round `number` of a torture: the same for the same seed and the same undisturbed run."""
    dice = random.Random(f"{seed}:{number}")
    replaces = dice.random() < 0.5
    strike: KillAtPoint | KillAtRandom | KillOneOfTwo | Pause | StoreFault
    if fault == AT_RANDOM:
        times = dice.randint(1, 3)
        strike = KillAtRandom(tuple(dice.uniform(0, known.work_s) for _ in range(times)))
    elif fault == TWO:
        # Two share the machine, so each takes longer.
        strike = KillOneOfTwo(dice.randrange(2), dice.uniform(0, 1.5 * known.work_s))
    elif fault.startswith(AT_POINT):
        point = fault.removeprefix(f"{AT_POINT} ")
        strike = KillAtPoint(point, dice.randint(1, max(1, known.passed.get(point, 1))))
    elif fault.startswith(PAUSED):
        point = fault.removeprefix(f"{PAUSED} at ")
        nth = dice.randint(1, max(1, known.passed.get(point, 1)))
        strike = Pause(point if point in CRASH_POINTS else None, nth, dice.uniform(0, known.work_s))
    else:
        strike = _store_fault(dice, fault, known)
    return Scenario(number, fault, replaces, strike)


def _store_fault(dice: random.Random, kind: str, known: Undisturbed) -> StoreFault:
    target = next((name for name in _TARGETS if kind == _LOST.format(name)), None)
    if target is None and dice.random() < 0.5:
        # Evenly over the parts of the store too: there are many data files and one marker.
        target = dice.choice([*_TARGETS])
        if not _candidates(known, kind, target):
            target = None
    return StoreFault(
        kind=kind,
        target=target,
        nth=dice.randint(1, max(1, _candidates(known, kind, target))),
        for_s=dice.choice(_WINDOWS_S),
        done=dice.random() < 0.5,
        drivers=2 if dice.random() < 0.25 else 1,
    )


def _candidates(known: Undisturbed, kind: str, target: str | None) -> int:
    wanted = [use(operation, target) for operation in _OPERATIONS[kind]]
    if target is not None:
        return sum(known.used.get(name, 0) for name in wanted)
    return sum(n for name, n in known.used.items() if name.split(" ", 1)[0] in _OPERATIONS[kind])
