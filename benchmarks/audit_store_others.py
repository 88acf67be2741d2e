"""Other stores on the rows of `audit_store.py`, which starts this with the Python that has them: ENGINE FOLDER.

Each answers the same three questions: a row by its id, count and mean of the prediction in an hour, all rows of an hour. The
handle that a service would keep open is made before the clock starts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

BUDGET_S = 10.0
"""CPU seconds for one question; slow engines get fewer calls."""


class Engine(Protocol):
    def look_up(self, prediction_id: str) -> int:
        """Number of rows found."""
        ...

    def aggregate(self, start: datetime, end: datetime) -> int: ...

    def full(self, start: datetime, end: datetime) -> int: ...


def prefix(moment: datetime) -> str:
    """What ids of that millisecond begin with."""
    digits = f"{int(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


class DuckAll:
    """DuckDB over every file; ids and times prune by Parquet's statistics."""

    def __init__(self, table: str) -> None:
        import duckdb

        self.db = duckdb.connect()
        self.db.execute("set enable_object_cache = true") if _old_duckdb() else None
        self.source = f"read_parquet('{table}/*/*.parquet')"

    def look_up(self, prediction_id: str) -> int:
        found = self.db.execute(f"select * from {self.source} where prediction_id = ?", [prediction_id])
        return len(found.fetchall())

    def aggregate(self, start: datetime, end: datetime) -> int:
        return _duck_aggregate(self.db, self.source, start, end)

    def full(self, start: datetime, end: datetime) -> int:
        return _duck_full(self.db, self.source, start, end)


def _old_duckdb() -> bool:
    import duckdb

    return duckdb.__version__.startswith(("0.", "1."))


def _duck_aggregate(db: Any, source: str, start: datetime, end: datetime) -> int:
    query = f"select count(*), avg(prediction) from {source} where event_time >= ? and event_time < ?"
    return int(db.execute(query, [start, end]).fetchone()[0])


def _duck_full(db: Any, source: str, start: datetime, end: datetime) -> int:
    query = f"select * from {source} where event_time >= ? and event_time < ?"
    found = db.execute(query, [start, end])
    table = found.to_arrow_table() if hasattr(found, "to_arrow_table") else found.fetch_arrow_table()
    return int(table.num_rows)


class DeltaDuck:
    """Statistics of an open Delta log name the files; DuckDB reads them."""

    def __init__(self, table: str) -> None:
        import duckdb
        from deltalake import DeltaTable

        self.db = duckdb.connect()
        actions = pa.table(DeltaTable(table).get_add_actions(flatten=True))
        self.files = [
            (first, last, f"{table}/{path}")
            for first, last, path in zip(
                *(
                    actions.column(name).to_pylist()
                    for name in ("min.prediction_id", "max.prediction_id", "path")
                ),
                strict=True,
            )
        ]

    def source(self, low: str, high: str) -> list[str]:
        return [path for first, last, path in self.files if first <= high and last >= low]

    def look_up(self, prediction_id: str) -> int:
        query = (
            f"select * from read_parquet({self.source(prediction_id, prediction_id)}) where prediction_id = ?"
        )
        return len(self.db.execute(query, [prediction_id]).fetchall())

    def aggregate(self, start: datetime, end: datetime) -> int:
        files = self.source(prefix(start), prefix(end))
        return _duck_aggregate(self.db, f"read_parquet({files})", start, end)

    def full(self, start: datetime, end: datetime) -> int:
        files = self.source(prefix(start), prefix(end))
        return _duck_full(self.db, f"read_parquet({files})", start, end)


class DeltaArrow:
    """The dataset that deltalake makes of an open log; pyarrow prunes by file and row group."""

    def __init__(self, table: str) -> None:
        from deltalake import DeltaTable

        self.data = DeltaTable(table).to_pyarrow_dataset()

    def look_up(self, prediction_id: str) -> int:
        found = self.data.to_table(filter=ds.field("prediction_id") == prediction_id)
        return len(found.to_pylist())

    def _inside(self, start: datetime, end: datetime) -> Any:
        kind = pa.timestamp("us", tz="UTC")
        return (ds.field("event_time") >= pa.scalar(start, kind)) & (
            ds.field("event_time") < pa.scalar(end, kind)
        )

    def aggregate(self, start: datetime, end: datetime) -> int:
        found = self.data.to_table(filter=self._inside(start, end), columns=["prediction"])
        pc.mean(found.column("prediction"))
        return int(found.num_rows)

    def full(self, start: datetime, end: datetime) -> int:
        return int(self.data.to_table(filter=self._inside(start, end)).num_rows)


class Polars:
    """`scan_delta` of a log that is kept open."""

    def __init__(self, table: str) -> None:
        import polars
        from deltalake import DeltaTable

        self.polars = polars
        self.table = DeltaTable(table)

    def look_up(self, prediction_id: str) -> int:
        col = self.polars.col
        found = self.polars.scan_delta(self.table).filter(col("prediction_id") == prediction_id).collect()
        return len(found.to_dicts())

    def _inside(self, start: datetime, end: datetime) -> Any:
        col = self.polars.col
        wanted = (col("event_time") >= start) & (col("event_time") < end)
        return self.polars.scan_delta(self.table).filter(wanted)

    def aggregate(self, start: datetime, end: datetime) -> int:
        col = self.polars.col
        found = self._inside(start, end).select(self.polars.len(), col("prediction").mean().alias("mean"))
        return int(found.collect().item(0, 0))

    def full(self, start: datetime, end: datetime) -> int:
        return int(self._inside(start, end).collect().height)


class Iceberg:
    """A table of the same Parquet files."""

    def __init__(self, table: str) -> None:
        from pyiceberg.catalog.sql import SqlCatalog

        folder = Path(table).parents[1] / "iceberg"
        folder.mkdir(exist_ok=True)
        catalog = SqlCatalog("bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
        files = sorted(str(path) for path in Path(table).glob("*/*.parquet"))
        if not catalog.namespace_exists("a"):
            catalog.create_namespace("a")
        if not catalog.table_exists("a.audit"):
            made = catalog.create_table("a.audit", schema=pq.read_schema(files[0]))
            made.add_files(files, check_duplicate_files=False)
        self.table = catalog.load_table("a.audit")

    def look_up(self, prediction_id: str) -> int:
        from pyiceberg.expressions import EqualTo

        found = self.table.scan(row_filter=EqualTo("prediction_id", prediction_id)).to_arrow()
        return len(found.to_pylist())

    def _inside(self, start: datetime, end: datetime) -> Any:
        from pyiceberg.expressions import And, GreaterThanOrEqual, LessThan

        return And(
            GreaterThanOrEqual("event_time", start.isoformat()), LessThan("event_time", end.isoformat())
        )

    def aggregate(self, start: datetime, end: datetime) -> int:
        found = self.table.scan(
            row_filter=self._inside(start, end), selected_fields=("prediction",)
        ).to_arrow()
        pc.mean(found.column("prediction"))
        return int(found.num_rows)

    def full(self, start: datetime, end: datetime) -> int:
        return int(self.table.scan(row_filter=self._inside(start, end)).to_arrow().num_rows)


class Lance:
    """Its own files of the same rows, with a BTREE on the id and one on the time."""

    def __init__(self, table: str) -> None:
        import lance

        folder = Path(table).parents[1] / "lance"
        self.written_s, self.rows = 0.0, 0
        if not folder.exists():
            for path in sorted(Path(table).glob("*/*.parquet")):
                rows = pq.read_table(path, partitioning=None)
                started = time.process_time()
                lance.write_dataset(rows, str(folder), mode="append")
                self.written_s += time.process_time() - started
                self.rows += rows.num_rows
            made = lance.dataset(str(folder))
            made.create_scalar_index("prediction_id", "BTREE")
            made.create_scalar_index("event_time", "BTREE")
        self.data = lance.dataset(str(folder))
        self.size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())

    def look_up(self, prediction_id: str) -> int:
        found = self.data.to_table(filter=f"prediction_id = '{prediction_id}'")
        return len(found.to_pylist())

    def _inside(self, start: datetime, end: datetime) -> str:
        return f"event_time >= timestamp '{_plain(start)}' and event_time < timestamp '{_plain(end)}'"

    def aggregate(self, start: datetime, end: datetime) -> int:
        found = self.data.to_table(filter=self._inside(start, end), columns=["prediction"])
        pc.mean(found.column("prediction"))
        return int(found.num_rows)

    def full(self, start: datetime, end: datetime) -> int:
        return int(self.data.to_table(filter=self._inside(start, end)).num_rows)


def _plain(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(sep=" ")


ENGINES: dict[str, Callable[[str], Engine]] = {
    "duckdb, all files": DuckAll,
    "delta -> duckdb": DeltaDuck,
    "delta -> pyarrow": DeltaArrow,
    "polars": Polars,
    "pyiceberg": Iceberg,
    "lance": Lance,
}


def measured(calls: list[Callable[[], int]], wanted: int | None = None) -> tuple[float, int]:
    """Median CPU-ms and number of calls; the first call is not counted, and each must find something."""
    found: list[float] = []
    for number, call in enumerate(calls):
        started = time.process_time()
        rows = call()
        spent = time.process_time() - started
        assert rows and (wanted is None or rows == wanted), f"found {rows} rows"
        if number:
            found.append(spent)
        if sum(found) > BUDGET_S:
            break
    return statistics.median(found) * 1e3, len(found)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    facts = json.loads((folder / "facts.json").read_text())
    engine = ENGINES[name](facts["table"])
    hours = [datetime.fromisoformat(text) for text in facts["hours"]]
    hour = timedelta(hours=1)
    each = facts["rows"] // 240
    asked: dict[str, tuple[list[Callable[[], int]], int]] = {
        "look-up by id, CPU-ms": ([lambda i=i: engine.look_up(i) for i in facts["ids"]], 1),
        "one hour, aggregate, CPU-ms": ([lambda h=h: engine.aggregate(h, h + hour) for h in hours], each),
        "one hour, all rows, CPU-ms": ([lambda h=h: engine.full(h, h + hour) for h in hours], each),
    }
    figures = []
    for what, (calls, wanted) in asked.items():
        value, count = measured(calls, wanted)
        figures.append({"what": what, "engine": name, "value": value, "note": f"{count} calls"})
    if isinstance(engine, Lance):
        figures.append(
            {
                "what": "bytes per prediction, warm",
                "engine": name,
                "value": engine.size / facts["rows"],
                "note": "without its indexes",
            }
        )
        if engine.rows:
            figures.append(
                {
                    "what": "bulk write, k rows per CPU-s",
                    "engine": name,
                    "value": engine.rows / engine.written_s / 1e3,
                    "note": "Arrow rows in memory, without its indexes",
                }
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
