"""Checks that every snapshot gets, whatever its suite says: days, row counts and keys.

Uniqueness over the whole snapshot needs no global table. When every row lies in the day of its partition and
no day has two partitions, two rows with one key and one event time share a partition: so it is enough to look
for duplicates partition by partition, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.records import Finding, PartitionFile, Snapshot
from tasks.core.rows import local_days
from tasks.core.spec import PipelineSpec
from tasks.validation.wording import percent


@dataclass
class DayTally:
    """What was counted about one partition while it was read."""

    partition: PartitionFile
    rows: int = 0
    quarantined: set[int] = field(default_factory=set)
    """Positions in the partition."""
    nulls: dict[str, int] = field(default_factory=dict)
    """Nulls by column, quarantined rows included."""
    keys: list[pa.Table] = field(default_factory=list)
    """Key columns of the rows that stay; let go by `close`."""
    key_nulls: int = 0
    duplicates: int = 0
    duplicate_examples: list[str] = field(default_factory=list)
    outside_day: int = 0
    outside_examples: list[str] = field(default_factory=list)
    key_error: str | None = None

    @property
    def day(self) -> date:
        return self.partition.day

    @property
    def clean_rows(self) -> int:
        return self.rows - len(self.quarantined)

    def add(self, table: pa.Table, quarantined: Sequence[int], spec: PipelineSpec) -> None:
        """Count a part of the partition; `quarantined` are positions in `table`, parts come in order."""
        for name in table.column_names:
            self.nulls[name] = self.nulls.get(name, 0) + table.column(name).null_count
        names = [*spec.entity_key, spec.event_time]
        missing = [name for name in names if name not in table.column_names]
        if missing:
            self.key_error = f"column {', '.join(missing)} is missing"
        else:
            keys = table.select(names)
            if quarantined:
                out = pa.array(list(quarantined), pa.int64())
                keep = pc.invert(pc.is_in(pa.array(range(table.num_rows), pa.int64()), value_set=out))
                keys = keys.filter(keep)
            self.keys.append(keys)
        self.quarantined.update(self.rows + position for position in quarantined)
        self.rows += table.num_rows

    def close(self, spec: PipelineSpec) -> None:
        """Judge the partition's keys and forget them."""
        parts, self.keys = self.keys, []
        if not parts or self.key_error:
            return
        keys = pa.concat_tables(parts)
        whole = keys.drop_null()
        self.key_nulls = keys.num_rows - whole.num_rows
        try:
            inside = pc.equal(local_days(whole, spec), pa.scalar(self.day, pa.date32()))
        except DataError as error:
            self.key_error = f"{error.which} {error.what}"
            return
        outside = whole.filter(pc.invert(inside))
        self.outside_day = outside.num_rows
        self.outside_examples = [
            str(value) for value in outside.column(spec.event_time).slice(0, 3).to_pylist()
        ]
        groups = whole.group_by(whole.column_names).aggregate([([], "count_all")])
        repeated = groups.filter(pc.greater(groups.column("count_all"), 1))
        self.duplicates = int(pc.sum(repeated.column("count_all")).as_py() or 0) - repeated.num_rows
        self.duplicate_examples = [
            ", ".join(f"{name} {row[name]}" for name in whole.column_names)
            for row in repeated.slice(0, 3).to_pylist()
        ]


def day_findings(
    tallies: Sequence[DayTally], snapshot: Snapshot, spec: PipelineSpec, columns: Sequence[str]
) -> list[Finding]:
    """One finding a check, worst first to be read; `columns` are those that the suite reads."""
    if not tallies:
        return [
            Finding(
                "rows arrived", "fail", "the snapshot has no partition: there is nothing to validate", 0, 1
            )
        ]
    return [
        _as_recorded(tallies, snapshot),
        _enough_rows(tallies, spec.validation.min_rows),
        _in_their_day(tallies, spec),
        _keys_present(tallies, spec),
        _unique(tallies, spec),
        _delivered_daily(tallies, columns),
    ]


def quarantine_finding(
    rows: int, quarantined: int, limit: float, by_expectation: Mapping[str, int]
) -> Finding:
    """Whether so many rows were quarantined that the fault is not in single rows any more.

    Args:
        by_expectation: Rows that each expectation took out; a failure names the one that took most.
    """
    share = quarantined / rows if rows else 1.0
    detail = f"{quarantined:,} of {rows:,} rows ({percent(share)}); the limit is {percent(limit)}"
    if share <= limit:
        return Finding("share of quarantined rows", "pass", detail, share, limit)
    if by_expectation:
        name, count = max(by_expectation.items(), key=lambda item: item[1])
        detail += f"; most by {name}: {count:,}"
    return Finding("share of quarantined rows", "fail", detail, share, limit)


def _as_recorded(tallies: Sequence[DayTally], snapshot: Snapshot) -> Finding:
    wrong = [
        f"{tally.day}: {tally.rows:,} of {tally.partition.rows:,} rows"
        for tally in tallies
        if tally.rows != tally.partition.rows
    ]
    days = [tally.day for tally in tallies]
    twice = sorted({str(day) for day in days if days.count(day) > 1}) if len(set(days)) != len(days) else []
    wrong += [f"{day} has two partitions" for day in twice]
    rows = sum(tally.rows for tally in tallies)
    if wrong:
        return Finding("partitions are as recorded", "fail", "; ".join(wrong[:5]), rows, snapshot.rows)
    detail = f"{rows:,} rows in {len(tallies):,} daily partitions, as the snapshot records"
    return Finding("partitions are as recorded", "pass", detail, rows, snapshot.rows)


def _enough_rows(tallies: Sequence[DayTally], floor: int) -> Finding:
    floor = max(floor, 1)
    fewest = min(tallies, key=lambda tally: tally.clean_rows)
    short = [tally for tally in tallies if tally.clean_rows < floor]
    detail = f"the smallest day, {fewest.day}, has {fewest.clean_rows:,} clean rows; the floor is {floor:,}"
    if len(short) > 1:
        detail += f"; {len(short)} days are below it"
    return Finding("enough rows every day", "fail" if short else "pass", detail, fewest.clean_rows, floor)


def _in_their_day(tallies: Sequence[DayTally], spec: PipelineSpec) -> Finding:
    name = "rows lie in their day"
    if error := _key_error(tallies):
        return Finding(name, "fail", error)
    outside = sum(tally.outside_day for tally in tallies)
    if not outside:
        detail = f"every {spec.event_time} falls on its partition's day in {spec.source.time_zone}"
        return Finding(name, "pass", detail, 0, 0)
    first = next(tally for tally in tallies if tally.outside_day)
    detail = f"{outside:,} rows do not, first in {first.day}: {', '.join(first.outside_examples)}"
    return Finding(name, "fail", detail, outside, 0)


def _keys_present(tallies: Sequence[DayTally], spec: PipelineSpec) -> Finding:
    name, keys = "keys are present", ", ".join([*spec.entity_key, spec.event_time])
    if error := _key_error(tallies):
        return Finding(name, "fail", error)
    nulls = sum(tally.key_nulls for tally in tallies)
    detail = f"{nulls:,} rows have a null in {keys}" if nulls else f"no null in {keys}"
    return Finding(name, "fail" if nulls else "pass", detail, nulls, 0)


def _unique(tallies: Sequence[DayTally], spec: PipelineSpec) -> Finding:
    name, keys = "rows are unique", " + ".join([*spec.entity_key, spec.event_time])
    if error := _key_error(tallies):
        return Finding(name, "fail", error)
    extra = sum(tally.duplicates for tally in tallies)
    if not extra:
        return Finding(name, "pass", f"{keys} identifies every row of the snapshot", 0, 0)
    first = next(tally for tally in tallies if tally.duplicates)
    detail = f"{extra:,} rows repeat {keys}, first in {first.day}: {'; '.join(first.duplicate_examples)}"
    return Finding(name, "fail", detail, extra, 0)


def _delivered_daily(tallies: Sequence[DayTally], columns: Sequence[str]) -> Finding:
    """A column that is empty on one day vanishes in the share of nulls over many days: look day by day."""
    gaps: list[str] = []
    for column in columns:
        empty = [str(tally.day) for tally in tallies if tally.rows and tally.nulls.get(column) == tally.rows]
        if empty and len(empty) < len(tallies):
            gaps.append(
                f"{column} on {', '.join(empty[:3])}{f' and {len(empty) - 3} more days' if len(empty) > 3 else ''}"
            )
    name = "columns are delivered every day"
    if gaps:
        return Finding(name, "warn", f"nothing but nulls: {'; '.join(gaps[:8])}", len(gaps), 0)
    return Finding(name, "pass", "no column that the suite reads is empty for a whole day", 0, 0)


def _key_error(tallies: Sequence[DayTally]) -> str | None:
    return next((f"{tally.key_error} ({tally.day})" for tally in tallies if tally.key_error), None)
