"""What batch inference costs above a bare loop: CPU seconds of everything that runs, engine processes included.

    python benchmarks/inference_overhead.py --rows 10100000 --repeats 3

Takes the champion and the days of May from this installation (run `make demo` first), copies every row until there
are `--rows`, and scores them in fresh processes, the engines in turn:

- `bare`: read, features, encode, forward, and the scores as Parquet. The floor: nothing says whose scores they are.
- `bare + table`: the same, and for each row what the predictions table has: ids, keys, versions.
- `bare + table + profile`: the same, and the profile that the monitor needs: all that Penstock leaves of a row, by a loop.
- `shards`: Penstock's shard worker in one process, and publication.
- `shards, 1 % exposed`, `shards, 25 % exposed`: as `shards`, while a challenger of the champion's size scores that share of the
  entities beside it. Every copied flight is an entity of its own, the dearest case for the choice of the share.
- `shards + audit`: as `shards`, with every prediction explained and its provenance kept.
- `penstock`: as `shards`, on Ray with one actor; `penstock x2` with two.
- `penstock, killed at half`: the driver is killed when half of the shards are committed, and a second one finishes.
- `penstock + audit`: as `shards + audit`, on Ray with one actor.
- `ray data, shards`: the same shard worker as a Ray Data stage whose rows are shard numbers, one actor.
- `ray data, rows`: Ray Data's read_parquet, map_batches, write_parquet, one actor; writes a row number and the score.
- `ray data, rows, checkpoint`: the same with Ray Data's checkpointing.

`--hidden 256 128` scores with a network of those layers and random weights instead of the champion's.
`--data FOLDER` keeps the copied rows for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import Usage, measured, python

from tasks.core import PipelineSpec, Settings, Snapshot, load_pipeline, open_store
from tasks.core.partitions import load_snapshot, read_partition, save_snapshot, write_partition
from tasks.core.sampling import CountedRows, rows_counted_as_one
from tasks.inference import Plan
from tasks.metadata import MetadataStore

PIPELINE = "flight_delay"
SHARD_ROWS = 170_000
ROW = "row_id"
RESULTS = Path(__file__).parent / "results" / "inference_overhead.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--hidden", nargs="*", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", metavar="ENGINE", choices=list(ENGINES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        settings, spec, facts = _prepared(asked.data)
        ENGINES[asked.child](settings, spec, facts)
        return
    scratch = (asked.data or Path(tempfile.mkdtemp(prefix="penstock-benchmark-"))).resolve()
    try:
        rows = prepare(Settings.from_environment(), scratch, asked.rows, asked.hidden)
        runs: dict[str, list[Usage]] = {engine: [] for engine in asked.engines}
        for _ in range(asked.repeats):
            for engine in asked.engines:
                runs[engine].append(run(engine, scratch))
                print(f"{engine:28s} CPU {runs[engine][-1].cpu_s:7.1f} s", flush=True)
        report(runs, rows, asked)
    finally:
        if not asked.data:
            shutil.rmtree(scratch, ignore_errors=True)


def prepare(settings: Settings, scratch: Path, wanted: int, hidden: list[int] | None = None) -> int:
    """A store of its own with a bundle and a snapshot of about `wanted` rows; returns its rows."""
    asked = {"rows": wanted, "hidden": hidden}
    facts_file = scratch / "facts.json"
    if facts_file.exists() and (facts := json.loads(facts_file.read_text()))["asked"] == asked:
        return int(facts["rows"])
    spec = load_pipeline(settings, PIPELINE)
    source = open_store(settings, prefix=spec.prefix)
    metadata = MetadataStore.open(settings)
    live = metadata.live(spec)
    if live is None:
        sys.exit("this installation has no champion: run `make demo` first")
    run_id = next(iter(metadata.published_days(spec).values()))
    run_record = metadata.run(spec, run_id)
    assert run_record is not None and run_record.snapshot_id is not None
    snapshot = load_snapshot(source, run_record.snapshot_id)
    scratch.mkdir(parents=True, exist_ok=True)
    target_settings = _scratch_settings(settings, scratch)
    target = open_store(target_settings, prefix=spec.prefix)
    for info in source.list(f"bundles/{live.bundle_digest}"):
        target.put(info.key, source.get(info.key))
    digest = live.bundle_digest
    challenger = _other_network(target_settings, spec, digest, (33,), scratch / "challenger")
    if hidden:
        digest = _other_network(target_settings, spec, digest, tuple(hidden), scratch / "bundle")
    copies = max(1, round(wanted / snapshot.rows))
    partitions, first_row = [], 0
    for part in snapshot.partitions:
        rows = _replicated(read_partition(source, part), copies, first_row)
        first_row += rows.num_rows
        partitions.append(write_partition(target, part.day, rows))
    identity = Snapshot.identity(snapshot.pipeline, snapshot.kind, snapshot.schema, tuple(partitions))
    saved = save_snapshot(target, replace(snapshot, snapshot_id=identity, partitions=tuple(partitions)))
    facts = {
        "asked": asked,
        "rows": saved.rows,
        "snapshot_id": saved.snapshot_id,
        "version": live.version,
        "bundle_digest": digest,
        "challenger_digest": challenger,
        "feature_version": live.feature_version,
    }
    facts_file.write_text(json.dumps(facts))
    return saved.rows


def _replicated(rows: pa.Table, copies: int, first_row: int) -> pa.Table:
    """`copies` copies that differ in the flight number, so that every row keeps an identity of its own."""
    number = rows.schema.get_field_index("flight")
    flights = rows.column("flight").to_numpy()
    made = pa.concat_tables(
        rows.set_column(number, rows.schema.field(number), pa.array(flights + np.int64(10_000 * copy)))
        for copy in range(copies)
    )
    return made.append_column(ROW, pa.array(np.arange(first_row, first_row + made.num_rows)))


def _other_network(
    settings: Settings, spec: PipelineSpec, digest: str, hidden: tuple[int, ...], folder: Path
) -> str:
    """The champion's bundle with other layers and random weights; returns its digest."""
    import torch

    from tasks.model import build_network, fetch_bundle, upload_bundle, write_bundle
    from tasks.model.bundle import SCORE_COLUMN, weights_bytes
    from tasks.model.execution import predict
    from tasks.model.scorer import Scorer

    store = open_store(settings, prefix=spec.prefix)
    bundle = fetch_bundle(store, digest, settings.cache_dir)
    manifest = replace(bundle.manifest, network=replace(bundle.manifest.network, hidden=hidden), files={})
    torch.manual_seed(7)
    network = build_network(bundle.model_source, manifest.network, origin="model.py").eval()
    scores = predict(network, Scorer(bundle).golden_encoded(), manifest.calibration)
    golden = bundle.golden
    at = golden.schema.get_field_index(SCORE_COLUMN)
    golden = golden.set_column(at, golden.schema.field(at), pa.array(scores, golden.schema.field(at).type))
    write_bundle(
        folder,
        manifest=manifest,
        spec=bundle.spec,
        feature_code=bundle.feature_code,
        model_source=bundle.model_source,
        encoder=bundle.encoder,
        weights=weights_bytes(network.state_dict()),
        golden=golden,
        profile_spec=bundle.profile_spec,
        reference=bundle.reference_profiles,
    )
    return upload_bundle(store, folder)


def _scratch_settings(settings: Settings, scratch: Path) -> Settings:
    return replace(Settings.at_home(scratch, project=settings.project), store_url=str(scratch / "store"))


def run(engine: str, scratch: Path) -> Usage:
    """One engine in fresh processes, on a store without runs and tables."""
    for leftover in (scratch / "store" / "default" / PIPELINE).glob("*"):
        if leftover.name in ("runs", "tables", "scores", "checkpoints", "audit"):
            shutil.rmtree(leftover)
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    return measured(python(__file__, "--child", engine, "--data", str(scratch)), env)


def _prepared(scratch: Path) -> tuple[Settings, PipelineSpec, dict[str, Any]]:
    settings = _scratch_settings(Settings.from_environment(), scratch)
    spec = load_pipeline(settings, PIPELINE)
    inference = spec.inference.model_copy(update={"shard_rows": SHARD_ROWS})
    facts = json.loads((scratch / "facts.json").read_text())
    return settings, spec.model_copy(update={"inference": inference}), facts


def _snapshot(settings: Settings, spec: PipelineSpec, facts: dict[str, Any]) -> Snapshot:
    return load_snapshot(open_store(settings, prefix=spec.prefix), facts["snapshot_id"])


def _planned(settings: Settings, spec: PipelineSpec, facts: dict[str, Any], exposed: float = 0.0) -> Plan:
    from tasks.inference import Exposed, plan

    challenger = Exposed(facts["version"] + 1, facts["challenger_digest"], facts["feature_version"], exposed)
    return plan(
        settings,
        spec,
        _snapshot(settings, spec, facts),
        model_version=facts["version"],
        bundle_digest=facts["bundle_digest"],
        feature_version=facts["feature_version"],
        exposed=challenger if exposed else None,
    )


def bare(
    settings: Settings,
    spec: PipelineSpec,
    facts: dict[str, Any],
    *,
    table: bool = False,
    profile: bool = False,
) -> None:
    from tasks.model import Profile, Scorer, fetch_bundle

    store = open_store(settings, prefix=spec.prefix)
    bundle = fetch_bundle(store, facts["bundle_digest"], settings.cache_dir)
    scorer, grid = Scorer(bundle), bundle.profile_spec
    whole = Profile.empty(grid)
    out = Path(store.url("scores"))
    out.mkdir(exist_ok=True)
    for number, partition in enumerate(_snapshot(settings, spec, facts).partitions):
        file = pq.ParquetFile(store.url(partition.key))
        one_of = rows_counted_as_one(spec, partition.rows)
        with pq.ParquetWriter(out / f"{number}.parquet", _score_schema(table), compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=spec.inference.batch_rows):
                rows = pa.Table.from_batches([batch])
                features = scorer.features(rows)
                scores = scorer.predict(scorer.encode(features))
                if profile:
                    whole = whole.merge(
                        Profile.of(grid, features, scores, counted=CountedRows.among(features, one_of))
                    )
                columns = {"score": pa.array(scores)}
                writer.write_table(_with_identity(columns, rows, spec, facts) if table else pa.table(columns))


def _score_schema(table: bool) -> pa.Schema:
    names = ("pipeline", "bundle_digest", "feature_version", "run_id", "source_snapshot", "entity_id")
    fields: list[tuple[str, pa.DataType]] = [("score", pa.float32())]
    if table:
        fields += [("prediction_id", pa.string()), *((name, pa.string()) for name in names)]
        fields += [("event_time", pa.timestamp("us", tz="UTC")), ("model_version", pa.int32())]
        fields += [("carrier", pa.string()), ("flight", pa.int64()), ("origin", pa.string())]
    return pa.schema(fields)


def _with_identity(
    columns: dict[str, Any], rows: pa.Table, spec: PipelineSpec, facts: dict[str, Any]
) -> pa.Table:
    from tasks.core.prediction_ids import PredictionIds
    from tasks.core.rows import entity_column, event_micros

    schema = _score_schema(True)
    entities = entity_column(rows, spec)
    columns = {
        **columns,
        "prediction_id": PredictionIds.of(entities, event_micros(rows, spec), spec).texts(),
        "entity_id": entities,
        "event_time": rows[spec.event_time].cast(pa.timestamp("us", tz="UTC"), safe=False),
        **{name: rows[name].cast(schema.field(name).type) for name in spec.entity_key},
        "pipeline": pa.repeat(spec.name, len(rows)),
        "bundle_digest": pa.repeat(facts["bundle_digest"], len(rows)),
        "feature_version": pa.repeat(facts["feature_version"], len(rows)),
        "run_id": pa.repeat("0123456789abcdef", len(rows)),
        "source_snapshot": pa.repeat(facts["snapshot_id"], len(rows)),
        "model_version": pa.repeat(pa.scalar(facts["version"], pa.int32()), len(rows)),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def penstock(
    settings: Settings,
    spec: PipelineSpec,
    facts: dict[str, Any],
    *,
    local: bool = False,
    audit: bool = False,
    workers: int = 1,
    exposed: float = 0.0,
) -> None:
    from tasks.inference import publish, run_plan

    inference = spec.inference.model_copy(update={"min_workers": workers, "max_workers": workers})
    spec = spec.model_copy(update={"inference": inference})
    planned = _planned(settings, spec, facts, exposed)
    table = "tasks.audit:audit_table" if audit else None
    with _protocol_timed() if local else nullcontext():
        run_plan(settings, spec, planned.run_id, local=local, audit_table=table)
    publish(settings, spec, planned.run_id)


@contextmanager
def _protocol_timed() -> Iterator[None]:
    """Print which share of this process's CPU seconds fences, look-ups, records and digests of shards take."""
    from tasks.core import table_files
    from tasks.inference import shard

    spent = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*given: Any) -> Any:
            nonlocal spent
            started = time.thread_time()
            try:
                return call(*given)
            finally:
                spent += time.thread_time() - started

        return wrapper

    places = (
        (shard, "check_fence"),
        (shard, "read_shard_record"),
        (shard, "commit_shard"),
        (table_files, "digest_bytes"),
    )
    for module, name in places:
        setattr(module, name, timed(getattr(module, name)))
    yield
    print(f"protocol {spent:.3f} of {time.process_time():.3f}")


def penstock_killed(settings: Settings, spec: PipelineSpec, facts: dict[str, Any]) -> None:
    """Two drivers, the first of which gets SIGKILL at half of the shards."""
    from tasks.inference.records import committed_shards

    store = open_store(settings, prefix=spec.prefix)
    first = subprocess.Popen(python(__file__, "--child", "penstock", "--data", str(settings.home)))
    while first.poll() is None:
        for plan_file in Path(store.url("runs")).glob("*/plan.json"):
            run_id = plan_file.parent.name
            shards = len(json.loads(plan_file.read_text())["shards"])
            if len(committed_shards(store, run_id)) >= shards // 2:
                first.kill()
        time.sleep(0.02)
    assert first.returncode == -signal.SIGKILL, "the first driver was not killed in time"
    penstock(settings, spec, facts)


class _ShardStage:
    """Penstock's actor as a stage of Ray Data."""

    def __init__(self, arguments: Any) -> None:
        from tasks.inference.actor import ShardActor

        self._actor = ShardActor(arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"outcome": [self._actor.outcome(int(shard)) for shard in batch["shard"]]}


def ray_data_shards(settings: Settings, spec: PipelineSpec, facts: dict[str, Any]) -> None:
    import ray

    from tasks.inference import publish
    from tasks.inference.actor import ActorArguments
    from tasks.inference.commit import take_token
    from tasks.inference.shard import DEFAULT_MODEL

    planned = _planned(settings, spec, facts)
    token = take_token(open_store(settings, prefix=spec.prefix), planned.run_id)
    _local_ray()
    shards = [{"shard": task.shard} for task in planned.shards]
    stage = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        _ShardStage,
        fn_constructor_args=(ActorArguments(settings, spec, planned.run_id, token, DEFAULT_MODEL, None),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
    )
    outcomes = [json.loads(row["outcome"]) for row in stage.iter_rows()]
    assert all("ok" in outcome for outcome in outcomes), outcomes[0]
    publish(settings, spec, planned.run_id)


class _RowStage:
    """Rows in, row numbers and scores out."""

    def __init__(self, settings: Settings, spec: PipelineSpec, digest: str) -> None:
        from tasks.model import Scorer, fetch_bundle

        store = open_store(settings, prefix=spec.prefix)
        self._scorer = Scorer(fetch_bundle(store, digest, settings.cache_dir))

    def __call__(self, rows: pa.Table) -> pa.Table:
        scorer = self._scorer
        scores = scorer.predict(scorer.encode(scorer.features(rows)))
        return pa.table({ROW: rows[ROW], "score": scores})


def ray_data_rows(
    settings: Settings, spec: PipelineSpec, facts: dict[str, Any], *, checkpoint: bool = False
) -> None:
    import ray

    store = open_store(settings, prefix=spec.prefix)
    _local_ray()
    if checkpoint:
        from ray.data.checkpoint import CheckpointConfig

        folder = Path(store.url("checkpoints"))
        folder.mkdir(parents=True)
        context = ray.data.DataContext.get_current()
        context.checkpoint_config = CheckpointConfig(id_column=ROW, checkpoint_path=str(folder))
    paths = [store.url(partition.key) for partition in _snapshot(settings, spec, facts).partitions]
    ray.data.read_parquet(paths).map_batches(
        _RowStage,
        fn_constructor_args=(settings, spec, facts["bundle_digest"]),
        batch_format="pyarrow",
        batch_size=spec.inference.batch_rows,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    ).write_parquet(store.url("scores"))


def _local_ray() -> None:
    import ray

    ray.init(include_dashboard=False, object_store_memory=1 << 30)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


ENGINES = {
    "bare": bare,
    "bare + table": lambda *given: bare(*given, table=True),
    "bare + table + profile": lambda *given: bare(*given, table=True, profile=True),
    "shards": lambda *given: penstock(*given, local=True),
    "shards, 1 % exposed": lambda *given: penstock(*given, local=True, exposed=0.01),
    "shards, 25 % exposed": lambda *given: penstock(*given, local=True, exposed=0.25),
    "shards + audit": lambda *given: penstock(*given, local=True, audit=True),
    "penstock": penstock,
    "penstock x2": lambda *given: penstock(*given, workers=2),
    "penstock, killed at half": penstock_killed,
    "penstock + audit": lambda *given: penstock(*given, audit=True),
    "ray data, shards": ray_data_shards,
    "ray data, rows": ray_data_rows,
    "ray data, rows, checkpoint": lambda *given: ray_data_rows(*given, checkpoint=True),
}


def report(runs: dict[str, list[Usage]], rows: int, asked: argparse.Namespace) -> None:
    network = (
        f"layers {asked.hidden}, random weights" if asked.hidden else "the demo's champion (one layer of 32)"
    )
    lines = [
        f"## {rows:,} rows, {network}",
        "",
        f"Medians of {asked.repeats} runs, the engines in turn; {os.cpu_count()} shared cores, {platform.system()}, "
        f"Python {platform.python_version()}, local disk.",
        "",
        "| engine | CPU s | least to most | above bare | µs a row above bare | wall s | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    base = statistics.median(item.cpu_s for item in runs["bare"]) if "bare" in runs else float("nan")
    for engine, found in runs.items():
        cpu = [item.cpu_s for item in found]
        above = statistics.median(cpu) - base
        lines.append(
            f"| {engine} | {statistics.median(cpu):.1f} | {min(cpu):.1f} to {max(cpu):.1f} "
            f"| {above:+.1f} | {above / rows * 1e6:.2f} | {statistics.median(item.wall_s for item in found):.1f} "
            f"| {max(item.peak_gb for item in found):.2f} |"
        )
    for engine, found in runs.items():
        shares = [item.output.split() for item in found if item.output.startswith("protocol")]
        if shares:
            share = statistics.median(float(words[1]) / float(words[3]) for words in shares)
            lines.append(
                f"\nFences, look-ups, records and digests take {share:.1%} of the CPU seconds of `{engine}`."
            )
    given = [word for word in sys.argv[1:] if not word.startswith(("--data=", "--results="))]
    lines += ["", f"`python benchmarks/inference_overhead.py {' '.join(given)}`", ""]
    print("\n".join(lines))
    with asked.results.open("a") as file:
        file.write("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
