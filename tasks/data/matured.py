"""Labels of past days, as far as they are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta

import pyarrow as pa

from tasks.core.errors import LabelsNotMature
from tasks.core.rows import entity_ids, local_days, prediction_ids
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, Window
from tasks.data.snapshot import prepare_rows, split_days
from tasks.data.sources import open_source

SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("day", pa.date32()),
        ("entity_id", pa.string()),
        ("label", pa.int8()),
    ]
)


def labels(settings: Settings, spec: PipelineSpec, *, days: Iterable[date], as_of: date) -> pa.Table:
    """Labels of those `days` that have matured by `as_of`, to be joined to predictions by `prediction_id`.

    A day's labels are known from `day + label.delay_days` on. A row without an outcome has a null label. A row that the
    source holds twice comes twice, with labels that may differ: whoever joins them decides what that means.

    Returns:
        Columns prediction_id, event_time, day, entity_id, label (int8, nullable), ordered by event time; no
        rows for days that the source does not have.

    Raises:
        LabelsNotMature: None of `days` has matured.
        DataError: The source's rows cannot be used.
    """
    asked = sorted(set(days))
    matured = [day for day in asked if as_of >= spec.label.known_from(day)]
    if not matured:
        shown = f"{asked[0]}..{asked[-1]}" if asked else "no days"
        first = spec.label.known_from(asked[0]) if asked else as_of
        raise LabelsNotMature(
            f"labels of {shown} are not known on {as_of}",
            which=f"{spec.name}: label.delay_days {spec.label.delay_days}",
            fix=f"ask again on {first} or later",
        )
    source = open_source(settings, spec)
    tables = []
    for window in _windows(matured):
        raw = source.load(window.first_day, window.last_day)
        if raw.num_rows:
            rows = prepare_rows(raw, spec, with_labels=True, distinct=False)
            tables += [_labelled(part, spec) for part in split_days(rows, spec, window).values()]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _windows(days: list[date]) -> Iterator[Window]:
    """Runs of consecutive days."""
    first = previous = days[0]
    for day in [*days[1:], None]:
        if day is None or day != previous + timedelta(days=1):
            yield Window(first_day=first, last_day=previous)
            first = day or first
        previous = day or previous


def _labelled(rows: pa.Table, spec: PipelineSpec) -> pa.Table:
    return pa.table(
        {
            "prediction_id": prediction_ids(rows, spec),
            "event_time": rows.column(spec.event_time),
            "day": local_days(rows, spec),
            "entity_id": entity_ids(rows, spec),
            "label": rows.column(spec.label.column),
        },
        schema=SCHEMA,
    )
