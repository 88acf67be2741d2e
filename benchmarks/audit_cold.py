"""What a prediction costs in the warm table and in the archive, and what writing and reading the archive takes.

    python benchmarks/audit_cold.py                       # needs an installation whose `make demo` has run
    python benchmarks/audit_cold.py --table flights.parquet

A day of `--hours` times 83,000 predictions, drawn at random from the 336,776 real flights of 2013 with the demo's
features and attributions (with repetition when the day has more rows than there are flights), with event times spread
over the day; and the real flights once each as one day. 20 features: 16 numeric, 4 categorical. Drawn flights have
neighbours of other seasons: real days repeat more from row to row, and cost less. `--table` is what an earlier call
with `--keep` wrote: `entity_id`, `prediction`, `residual`, `f_<feature>` and `a_<feature>` for each feature.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.audit import cold
from tasks.audit.archive import ArchivedDate, data_key
from tasks.audit.cold import COLD_FORMAT, cold_rows, encode
from tasks.audit.rows import audit_table
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.delta import FileName
from tasks.core.ids import digest_bytes
from tasks.core.object_store import LocalStore
from tasks.core.prediction_ids import PredictionIds
from tasks.core.scored import ScoredRows
from tasks.core.table_files import AUDIT_GROUP_ROWS, write_table_file

DAY = date(2013, 6, 1)
HOUR_ROWS = 83_000
NUMERIC = 16
TOP_K = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--lookups", type=int, default=30)
    parser.add_argument("--group-rows", type=int, nargs="*", default=[cold.COLD_GROUP_ROWS])
    asked = parser.parse_args()
    flights = pq.read_table(asked.table) if asked.table else _flights()
    if asked.keep:
        pq.write_table(flights, asked.keep)
    print(
        "| rows | event times | rows of a group | warm, bytes | cold with values | cold without | write, CPU us a row "
        "| read one id, CPU ms | read an hour, CPU us a row |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(7)
    day = HOUR_ROWS * asked.hours
    for n, spread in ((flights.num_rows, True), (day, True), (day, False)):
        drawn = rng.integers(0, flights.num_rows, n) if n > flights.num_rows else rng.permutation(n)
        for cold.COLD_GROUP_ROWS in asked.group_rows:
            measure_cold(flights.take(pa.array(drawn)), rng, spread, asked.lookups)


def measure_cold(flights: pa.Table, rng: np.random.Generator, spread: bool, lookups: int) -> None:
    """Print one line of the table."""
    n = flights.num_rows
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        scored = _scored(flights, rng, spread)
        warm = audit_table(store, scored)
        size = 0
        for shard, start in enumerate(range(0, n, HOUR_ROWS)):
            name = FileName(DAY, "b" * 16, DAY, shard, "a" * 8)
            part = warm.slice(start, HOUR_ROWS)
            size += write_table_file(
                store, "tables/audit", name, part, group_rows=AUDIT_GROUP_ROWS
            ).size_bytes
        plain = pa.table({c: _plain(warm.column(c)) for c in warm.column_names})
        begun = time.process_time()
        whole = encode(plain, top_k=TOP_K, values=True)
        write_us = (time.process_time() - begun) / n * 1e6
        bare = encode(plain, top_k=TOP_K, values=False)
        archived = _put(store, whole, n)
        ids = plain.column("prediction_id")
        taken = []
        for at in rng.integers(0, n, lookups):
            wanted = ids[int(at)].as_py()
            begun = time.process_time()
            found = cold_rows(store, archived, wanted, wanted)
            taken.append(time.process_time() - begun)
            assert found.num_rows >= 1 and set(found.column("prediction_id").to_pylist()) == {wanted}
        first = int(rng.integers(0, max(1, n - HOUR_ROWS)))
        last = min(n - 1, first + HOUR_ROWS - 1)
        begun = time.process_time()
        hour = cold_rows(store, archived, ids[first].as_py(), ids[last].as_py())
        read_us = (time.process_time() - begun) / hour.num_rows * 1e6
        print(
            f"| {n:,} | {'spread over the day' if spread else 'all equal'} "
            f"| {cold.COLD_GROUP_ROWS:,} | {size / n:.1f} | {len(whole) / n:.1f} "
            f"| {len(bare) / n:.1f} | {write_us:.1f} | {statistics.median(taken) * 1e3:.0f} | {read_us:.1f} |"
        )
        sys.stdout.flush()


def _put(store: LocalStore, data: bytes, rows: int) -> ArchivedDate:
    sha256 = digest_bytes(data)
    key = data_key(DAY, sha256)
    store.put(key, data)
    return ArchivedDate(DAY, 1, "archived", key, rows, len(data), sha256, (), "", format=COLD_FORMAT)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _scored(flights: pa.Table, rng: np.random.Generator, spread: bool) -> ScoredRows:
    n = flights.num_rows
    start = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp() * 1000)
    millis = start + (np.sort(rng.integers(0, 86_400_000, n)) if spread else np.zeros(n, np.int64))
    entities = flights.column("entity_id").combine_chunks()
    if not spread:  # one entity is scored once at one time
        entities = pa.array([f"{one}|{place}" for place, one in enumerate(entities.to_pylist())])
    ids = PredictionIds.of_parts("flight_delay", entities, millis)
    order = ids.order()
    flights = flights.take(pa.array(order))
    columns = [name for name in flights.column_names if name.startswith("f_")]
    numeric = [name for name in columns if pa.types.is_floating(flights.schema.field(name).type)][:NUMERIC]
    names = numeric + [name for name in columns if not pa.types.is_floating(flights.schema.field(name).type)]
    everything = np.stack([flights.column(f"a_{name[2:]}").to_numpy() for name in columns], axis=1)
    attributions = np.stack([flights.column(f"a_{name[2:]}").to_numpy() for name in names], axis=1)
    p = flights.column("prediction").to_numpy().astype(np.float64)
    logits = np.log(p) - np.log1p(-p)
    base = float(np.median(logits - everything.sum(axis=1) - flights.column("residual").to_numpy()))
    return ScoredRows(
        pipeline="flight_delay",
        run_id="b" * 16,
        shard=0,
        day=DAY,
        model_version=1,
        bundle_digest="a" * 64,
        feature_version="1+" + "c" * 16,
        source_snapshot="d" * 16,
        source_key=f"data/{DAY}/{'e' * 16}.parquet",
        scored_at=datetime(2013, 6, 2, tzinfo=UTC),
        prediction_ids=ids.take(order),
        event_times=pa.array(millis[order] * 1000, pa.timestamp("us", tz="UTC")),
        entity_ids=entities.take(pa.array(order)),
        source_rows=rng.permutation(n),  # the worst case: sources are often in order of time
        output_names=(),
        outputs=np.zeros((n, 0), np.float32),
        scores=flights.column("prediction").to_numpy().astype(np.float32),
        features=flights.select(names).rename_columns([name[2:] for name in names]),
        explained=np.ones(n, np.bool_),
        attributions=attributions.astype(np.float32),
        base_value=base,
        residual=(logits - base - attributions.sum(axis=1, dtype=np.float64)).astype(np.float32),
        explainer="deeplift",
        explainer_version="1",
        background_id="f" * 16,
    )


def _flights() -> pa.Table:
    """All real flights as the demo's first model sees them, with its attributions."""
    from tasks.core.rows import entity_column
    from tasks.model import Scorer, fetch_bundle

    settings = Settings.from_environment()
    spec = load_pipeline(settings, "flight_delay")
    store = open_store(settings, prefix=spec.prefix)
    digest = next(iter(store.list("bundles"))).key.split("/")[1]
    scorer = Scorer(fetch_bundle(store, digest, settings.cache_dir))
    sys.path.insert(0, str(settings.pipelines_dir / "flight_delay"))
    import source

    rows = source.load(date(2013, 1, 1), date(2013, 12, 31))
    features = scorer.features(rows)
    encoded = scorer.encode(features)
    explained = scorer.explain(encoded)
    columns = {
        "entity_id": entity_column(rows, spec),
        "prediction": pa.array(scorer.predict(encoded)),
        "residual": pa.array(explained.residual),
    }
    columns |= {f"f_{name}": features.column(name) for name in features.column_names}
    columns |= {
        f"a_{name}": pa.array(explained.attributions[:, place])
        for place, name in enumerate(scorer.feature_names)
    }
    return pa.table(columns)


if __name__ == "__main__":
    main()
