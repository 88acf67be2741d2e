"""What counting a sample of a large day does to the monitor: the same days counted whole and sampled, clean and with faults.

    python benchmarks/profile_sampling.py        (about two minutes)

Synthetic days of 131,072 rows, a size at which the smallest sample is counted (16,384 rows). The mean of each numeric feature moves from day
to day by a known part of its standard deviation, from nothing to a tenth, and the mix of the categories by as much as a sample of so many rows would by itself, so that
what a sample adds is seen beside what days do. 70 days of reference, 42 clean days after them; then each fault on each of the 42 days.
Both ways judge the same rows, each by a reference that was counted in the same way; in a third way the days are sampled and the reference was
counted whole, as in a bundle of an earlier release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.core.sampling import CountedRows, rows_counted_as_one
from tasks.core.spec import PipelineSpec, parse_pipeline
from tasks.model.profile import Profile, ProfileSpec
from tasks.monitoring import Monitor
from tasks.monitoring.measure import measure_day
from tasks.monitoring.signals import DaySignals

RESULTS = Path(__file__).with_name("results") / "profile_sampling.md"
ROWS = 1 << 17
FIRST = date(2024, 1, 1)
REFERENCE, MONITORED = 70, 42
MOVES = {"still": 0.0, "moves_1": 0.01, "moves_2": 0.02, "moves_5": 0.05, "moves_10": 0.1}
"""By feature: standard deviation of its mean over days, in standard deviations of its values."""
KNOWN = 40
RARE, NEW = KNOWN - 1, KNOWN
CITIES = [f"c{i:02}" for i in range(KNOWN)] + ["new"]

SPEC: PipelineSpec = parse_pipeline(
    f"""
name: large
description: Large synthetic days.
owner: benchmarks
source: {{kind: python, uri: source.py}}
entity_key: [k]
event_time: t
label: {{column: y, delay_days: 1}}
features: {{numeric: [{", ".join(MOVES)}], categorical: {{city: {{}}, kind: {{}}}}}}
split: {{train_days: 7, validation_days: 7}}
validation: {{suite: large}}
drift: {{pairs: [[city, kind]]}}
""",
    origin="benchmark",
)

Columns = dict[str, np.ndarray]
"""Numbers, NaN for null; of the categorical features codes: of `CITIES`, and 0 or 1."""
Fault = Callable[[Columns, np.random.Generator], None]
WAYS = ("whole", "sampled", "sampled, reference whole")


def columns_of(day: date) -> Columns:
    """A day, the same whenever it is asked for."""
    rng = np.random.default_rng(day.toordinal())
    columns: Columns = {}
    for name, moves in MOVES.items():
        columns[name] = rng.normal(moves * rng.normal(), 1, ROWS)
        columns[name][rng.random(ROWS) < 0.01] = np.nan
    weights = 1 / np.arange(1, KNOWN + 1) * np.exp(0.02 * rng.normal(size=KNOWN))
    columns["city"] = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(ROWS))
    columns["kind"] = ((columns["city"] < 10) & (rng.random(ROWS) < 0.5)).astype(np.int64)
    return columns


def table_of(columns: Columns) -> tuple[pa.Table, np.ndarray]:
    """(features, scores)."""
    logit = 0.5 * np.nan_to_num(columns["moves_5"]) + 0.5 * np.nan_to_num(columns["still"]) - 1
    table = {name: pa.array(columns[name], from_pandas=True) for name in MOVES}
    for name, values in (("city", CITIES), ("kind", ["a", "b"])):
        table[name] = pa.DictionaryArray.from_arrays(pa.array(columns[name], pa.int32()), values).cast(
            pa.string()
        )
    return pa.table(table), 1 / (1 + np.exp(-logit))


def shifted(name: str, by: float) -> Fault:
    def fault(columns: Columns, _: np.random.Generator) -> None:
        columns[name] = columns[name] + by

    return fault


def nulls(name: str, share: float) -> Fault:
    def fault(columns: Columns, rng: np.random.Generator) -> None:
        columns[name] = np.where(rng.random(ROWS) < share, np.nan, columns[name])

    return fault


def renamed(share: float, to: int) -> Fault:
    def fault(columns: Columns, rng: np.random.Generator) -> None:
        columns["city"] = np.where(rng.random(ROWS) < share, to, columns["city"])

    return fault


def shuffled(share: float) -> Fault:
    def fault(columns: Columns, rng: np.random.Generator) -> None:
        chosen = np.flatnonzero(rng.random(ROWS) < share)
        columns["kind"] = columns["kind"].copy()
        columns["kind"][chosen] = columns["kind"][rng.permutation(chosen)]

    return fault


FAULTS: Mapping[str, Fault] = {
    "`still` moves by 0.05 deviations": shifted("still", 0.05),
    "`still` moves by 0.1 deviations": shifted("still", 0.1),
    "`moves_2` moves by 0.1 deviations": shifted("moves_2", 0.1),
    "`moves_5` moves by 0.2 deviations": shifted("moves_5", 0.2),
    "`moves_10` moves by 0.5 deviations": shifted("moves_10", 0.5),
    "1.2 % more nulls in `still`": nulls("still", 0.012),
    "5 % more nulls in `still`": nulls("still", 0.05),
    "0.6 % of the cities are new": renamed(0.006, NEW),
    "3 % of the cities are new": renamed(0.03, NEW),
    "5 % of the cities become the rarest known one": renamed(0.05, RARE),
    "30 % of the kinds change places": shuffled(0.3),
}


WHAT_IT_SAYS = (
    "A sample adds 0.02 to the distance of a channel that does not move at all, and little to one that moves as days do. No clean day alarms, with a reference counted either way. Every fault is said on as many days or more. "
    "What lies at the limit of a data fault may fall on either side: 30 % of the kinds changed places holds scoring on 37 days of 42 where it held on all, and is said on all. "
    "A small shift is said more often: chance is steadier from day to day than the world. A reference that was counted whole is less sure of it. "
    "Means and shares of samples are without bias as far as their errors tell.",
    "",
)


@dataclass(frozen=True)
class Judged:
    """What one way said of the clean days and of each fault."""

    clean: list[DaySignals]
    faulty: dict[str, list[DaySignals]]


def profiles(columns: Columns, grid: ProfileSpec) -> tuple[Profile, Profile]:
    """The day counted (whole, sampled)."""
    table, scores = table_of(columns)
    counted = CountedRows.among(table, rows_counted_as_one(SPEC, ROWS))
    return Profile.of(grid, table, scores), Profile.of(grid, table, scores, counted=counted)


def said(signals: DaySignals) -> frozenset[tuple[str, str, str]]:
    """Every finding and alarm of a day."""
    found = {(item.check, item.severity, item.channel) for item in signals.findings}
    return frozenset(found | {("drift", item.alarm, item.channel) for item in signals.drift if item.alarm})


def judged(
    days: Mapping[date, tuple[Profile, Profile]],
    faulty: Mapping[str, list[Profile]],
    grid: ProfileSpec,
    reference: int,
    way: int,
) -> Judged:
    every = sorted(days)
    monitor = Monitor.of(SPEC, grid, {day: days[day][reference] for day in every[:REFERENCE]})
    past: dict[date, Profile] = {}
    clean: list[DaySignals] = []
    found: dict[str, list[DaySignals]] = {name: [] for name in faulty}
    for number, day in enumerate(every[REFERENCE:]):
        known = dict(past)
        for name, of_days in faulty.items():
            found[name].append(
                measure_day(
                    SPEC, monitor, day=day, profile=of_days[number], history=known, recent=tuple(clean[-2:])
                )
            )
        clean.append(
            measure_day(
                SPEC, monitor, day=day, profile=days[day][way], history=known, recent=tuple(clean[-2:])
            )
        )
        past[day] = days[day][way]
    return Judged(clean, found)


def main() -> None:
    every = [FIRST + timedelta(days=i) for i in range(REFERENCE + MONITORED)]
    grid = ProfileSpec.fit(pa.concat_tables([table_of(columns_of(day))[0] for day in every[:4]]), None, SPEC)
    days: dict[date, tuple[Profile, Profile]] = {}
    broken: dict[str, list[tuple[Profile, Profile]]] = {name: [] for name in FAULTS}
    for day in every:
        columns = columns_of(day)
        days[day] = profiles(columns, grid)
        for name, fault in FAULTS.items() if day >= every[REFERENCE] else ():
            changed = dict(columns)
            fault(changed, np.random.default_rng(day.toordinal() + 1_000_000))
            broken[name].append(profiles(changed, grid))
    ways = {}
    for name, reference, way in zip(WAYS, (0, 1, 0), (0, 1, 1), strict=True):
        ways[name] = judged(
            days, {fault: [pair[way] for pair in of] for fault, of in broken.items()}, grid, reference, way
        )
    text = page(ways, days)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def page(ways: Mapping[str, Judged], days: Mapping[date, tuple[Profile, Profile]]) -> str:
    counted = next(iter(days.values()))[1].counted
    lines = [
        "# What counting a sample of a large day does to the monitor",
        "",
        f"Made by `benchmarks/profile_sampling.py`, which says how: {MONITORED} days of {ROWS:,} rows, of which all or {counted:,} are counted.",
        "",
        *WHAT_IT_SAYS,
        "## Clean days",
        "",
        "| | " + " | ".join(ways) + " |",
        "|---" * (len(ways) + 1) + "|",
        "| days with an alarm or finding | "
        + " | ".join(str(sum(bool(said(day)) for day in one.clean)) for one in ways.values())
        + " |",
        "| largest z of a channel that could alarm | "
        + " | ".join(
            f"{max((item.z for day in one.clean for item in day.drift if item.distance >= 0.03), default=0.0):.1f}"
            for one in ways.values()
        )
        + " |",
    ]
    for channel in (*MOVES, "city", "city x kind", "score"):
        cells = []
        for one in ways.values():
            found = [item.distance for day in one.clean for item in day.drift if item.channel == channel]
            cells.append(f"{np.median(found):.4f}, {max(found):.4f}")
        lines.append(f"| distance of `{channel}`: median, largest | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Nothing below a distance of 0.03 alarms.",
        "",
        "## Faults",
        "",
        f"Days of {MONITORED} on which something is said that is not said of the clean day; in brackets a data fault, which holds scoring.",
        "",
        "| fault | " + " | ".join(ways) + " |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for fault in FAULTS:
        cells = []
        for one in ways.values():
            pairs = list(zip(one.faulty[fault], one.clean, strict=True))
            seen = sum(bool(said(day) - said(clean)) for day, clean in pairs)
            cells.append(f"{seen} ({sum(bool(day.faults) for day, _ in pairs)})")
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    both = (ways["whole"], ways["sampled"])
    errors = {}
    for name, value in (
        ("mean of `still`, deviations", lambda p: p.numeric["still"].mean),
        ("share of nulls of `still`", lambda p: p.numeric["still"].nulls / p.rows),
        ("mean score", lambda p: p.score.mean),
    ):
        errors[name] = np.array([value(sample) - value(whole) for whole, sample in days.values()])
    lines += [
        "",
        "## Error of a sample",
        "",
        "| | mean over days | standard error of that | spread over days |",
        "|---|---|---|---|",
    ]
    for name, error in errors.items():
        lines.append(
            f"| {name} | {error.mean():+.5f} | {error.std() / np.sqrt(error.size):.5f} | {error.std():.5f} |"
        )
    same = [
        said(a) == said(b)
        for name in FAULTS
        for a, b in zip(*(one.faulty[name] for one in both), strict=True)
    ]
    lines += [
        "",
        f"Of {len(same)} faulty days {sum(same)} got exactly the same findings and alarms sampled as counted whole.",
        "",
        "`python benchmarks/profile_sampling.py`",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
