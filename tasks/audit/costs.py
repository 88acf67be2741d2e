"""What explanation data costs: days, rows, bytes and files of each tier, and what a month of them costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.audit.archive import ArchivedDate, archived_dates
from tasks.audit.cold import cold_rows
from tasks.audit.rows import AUDIT_TABLE
from tasks.core.delta import FileName, LiveFile, table_view
from tasks.core.errors import ConfigError, DataError, NotFound
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

GIGABYTE = 10**9


@dataclass(frozen=True)
class TierCost(JsonRecord):
    """One tier of a pipeline's explanation data."""

    tier: str
    """`warm`, `cold`, `expired`, or `waiting`: files that the table let go, until vacuum deletes them."""
    days: int
    rows: int
    """Of `expired`: rows that were deleted."""
    size_bytes: int
    files: int
    bytes_per_row: float | None
    explained_share: float | None
    """Share of rows with attributions; None where that is not known."""
    month_cost: float | None
    """At the price asked for; None without one."""


@dataclass(frozen=True)
class Costs(JsonRecord):
    """All tiers. Rows that a restore brought back are in both `warm` and `cold`: their bytes are there twice."""

    tiers: tuple[TierCost, ...]
    size_bytes: int
    month_cost: float | None
    price: float | None
    """Of a gigabyte (10**9 bytes) a month."""


def measure_costs(settings: Settings, spec: PipelineSpec, *, price: float | None = None) -> Costs:
    """What is where, and what it costs.

    Args:
        settings: This installation.
        spec: The pipeline.
        price: Of a gigabyte (10**9 bytes) a month, in any currency.

    Raises:
        ConfigError: The price is negative.
        DataError: A file cannot be read.
    """
    if price is not None and price < 0:
        raise ConfigError(f"is {price}", which="price", fix="give the price of a gigabyte a month, 0 or more")
    store = open_store(settings, prefix=spec.prefix)
    view = table_view(store, AUDIT_TABLE)
    live = view.files if view else ()
    archived = list(archived_dates(store).values())
    tiers = (
        _warm(store, live, price),
        _cold(store, [item for item in archived if item.state == "archived"], price),
        _expired([item for item in archived if item.state == "expired"]),
        _waiting(store, {file.path for file in live}, view.let_go if view else frozenset(), price),
    )
    total = sum(tier.size_bytes for tier in tiers)
    return Costs(tiers, total, _month(total, price), price)


def _warm(store: ObjectStore, files: Iterable[LiveFile], price: float | None) -> TierCost:
    files = list(files)
    explained = sum(_explained(store, file) for file in files)
    return _tier(
        "warm",
        days=len({file.event_date for file in files}),
        rows=sum(file.rows for file in files),
        size=sum(file.size_bytes for file in files),
        files=len(files),
        explained=explained,
        price=price,
    )


def _explained(store: ObjectStore, file: LiveFile) -> int:
    """Rows with a base value: a column of one value, so reading it costs little."""
    key = f"{AUDIT_TABLE}/{file.path}"
    try:
        with store.open(key) as raw:
            column = pq.ParquetFile(raw).read(columns=["base_value"], use_threads=False).column("base_value")
    except NotFound:  # moved since we looked
        return 0
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"an audit file is damaged: {error}",
            which=store.url(key),
            fix="verify the run that wrote it, and restore the file from a backup",
        ) from error
    return len(column) - int(column.null_count)


def _cold(store: ObjectStore, archived: list[ArchivedDate], price: float | None) -> TierCost:
    return _tier(
        "cold",
        days=len(archived),
        rows=sum(item.rows for item in archived),
        size=sum(item.size_bytes for item in archived),
        files=len(archived),
        explained=sum(
            _explained_cold(store, item) if item.explained_rows is None else item.explained_rows
            for item in archived
        ),
        price=price,
    )


def _explained_cold(store: ObjectStore, archived: ArchivedDate) -> int:
    """For records of a release that did not say."""
    column = cold_rows(store, archived, "", "~", ["base_value"]).column("base_value")
    return len(column) - int(column.null_count)


def _expired(archived: list[ArchivedDate]) -> TierCost:
    rows = sum(item.rows for item in archived)
    return TierCost("expired", len(archived), rows, 0, 0, None, None, None)


def _waiting(store: ObjectStore, live: set[str], let_go: frozenset[str], price: float | None) -> TierCost:
    """Files of the audit table's folder that are in it no more."""
    days = set()
    size = files = 0
    for info in store.list(AUDIT_TABLE):
        path = info.key.removeprefix(f"{AUDIT_TABLE}/")
        name = FileName.parse(path)
        if name is None or path in live or path not in let_go:
            continue
        days.add(name.event_date)
        size += info.size_bytes
        files += 1
    return TierCost("waiting", len(days), 0, size, files, None, None, _month(size, price))


def _tier(
    tier: str, *, days: int, rows: int, size: int, files: int, explained: int, price: float | None
) -> TierCost:
    return TierCost(
        tier=tier,
        days=days,
        rows=rows,
        size_bytes=size,
        files=files,
        bytes_per_row=round(size / rows, 1) if rows else None,
        explained_share=round(explained / rows, 4) if rows else None,
        month_cost=_month(size, price),
    )


def _month(size_bytes: int, price: float | None) -> float | None:
    return None if price is None else size_bytes / GIGABYTE * price
