"""How soon attribution drift sees a model that reads its inputs otherwise than in training, and how often it alarms for nothing.

    python benchmarks/attribution_drift.py

Trains the flight_delay network in this process on January to March, as `make demo` does on Ray, and scores and explains every day from May to
December with it. *Normal days* are all of these. A *skew* changes the encoded matrix alone: features, and so every channel of inputs, are what
they were. Each is planted for three days from five start days; the cell says on which of them a channel alarmed first. Labels are those of the
real flights, one day late. The cost is that of attribution sums in a scoring run of 100,000 rows, all explained, in the same process.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import tasks.model.profile as profiling
from tasks import wiring
from tasks.core import PipelineSpec, Settings, Snapshot
from tasks.core.partitions import save_snapshot, table_schema, write_partition
from tasks.core.rows import prediction_ids
from tasks.core.spec import Window
from tasks.data.snapshot import prepare_rows, split_days
from tasks.data.sources import open_source
from tasks.inference import plan, run_plan
from tasks.model import Profile, Scorer, fetch_bundle
from tasks.model.attribution_sums import ExplainedRows
from tasks.model.occurrences import Occurrences
from tasks.monitoring import DayPerformance, Monitor, judge_gaps, measure_days, performance
from tasks.training.in_process import fit_in_process
from tasks.training.trainer import train
from tasks.wiring.context import open_context

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results") / "attribution_drift.md"
REFERENCE = Window(first_day=date(2013, 4, 1), last_day=date(2013, 4, 30))
NORMAL = Window(first_day=date(2013, 5, 1), last_day=date(2013, 12, 31))
STARTS = (date(2013, 5, 2), date(2013, 5, 13), date(2013, 6, 5), date(2013, 8, 20), date(2013, 10, 10))
PLANTED_DAYS = 3

Matrix = npt.NDArray[np.float32]
Skew = Callable[[Matrix], Matrix]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=RESULTS, help="where the table is written")
    to: Path = parser.parse_args().to
    with tempfile.TemporaryDirectory(prefix="penstock-benchmark-") as home:
        to.write_text(_measured(Settings.at_home(Path(home), project=ROOT)))
    print(to.read_text())


def _measured(settings: Settings) -> str:
    context = open_context(settings, "flight_delay")
    spec = context.spec
    taken = wiring.step("snapshot_training")(settings, spec.name)
    started = time.process_time()
    trained = train(
        settings,
        spec,
        context.snapshot(taken["snapshot_id"]),
        validation_first_day=date.fromisoformat(taken["validation_first_day"]),
        fit=fit_in_process,
        show=lambda *_, **__: SimpleNamespace(run_id="", experiment_id="", model_uri=""),
    )
    training_s = time.process_time() - started
    bundle = fetch_bundle(context.store, trained.bundle_digest, settings.cache_dir)
    scorer = Scorer(bundle)
    monitor = Monitor.of(spec, bundle.profile_spec, bundle.reference_profiles)
    days = _days(settings, spec, NORMAL)
    usual = [_performance(spec, scorer, day, rows) for day, rows in _days(settings, spec, REFERENCE).items()]
    normal = {day: _profile(scorer, rows) for day, rows in days.items()}
    signals = measure_days(
        spec, monitor, profiles=normal, first_day=NORMAL.first_day, last_day=NORMAL.last_day
    )
    zs = [c.z for found in signals for c in found.drift if c.channel == "attributions"]
    alarms = sum(any(c.channel == "attributions" for c in found.alarms) for found in signals)
    lines = [
        "# Attribution drift on real flights",
        "",
        f"Python {platform.python_version()}, {platform.machine()}; `python benchmarks/attribution_drift.py`, whose docstring says how.",
        "",
        f"**Normal days.** {alarms} of {len(zs)} days alarmed; z: median {np.median(zs):.1f}, 99 % {np.quantile(zs, 0.99):.1f}, "
        f"highest {max(zs):.1f}. The form of the channel was chosen on these days, so expect more elsewhere.",
        "",
        "**Skews of the encoding**, first day of an alarm by start day (- : none within three days):",
        "",
        "| skew | attributions | any channel of inputs or scores | labels |",
        "|---|---|---|---|",
    ]
    for name, skew in _skews(scorer).items():
        cells = [_seen(spec, scorer, monitor, normal, days, start, skew, usual) for start in STARTS]
        lines.append(f"| {name} | {' | '.join(', '.join(column) for column in zip(*cells, strict=True))} |")
    run_s, sums_s = _cost(settings, spec, bundle, pa.concat_tables(days.values()).slice(0, 100_000))
    explained = sum(p.attributions.rows for p in bundle.reference_profiles.values() if p.attributions)
    return "\n".join(
        [
            *lines,
            "",
            f"**Cost.** Attribution sums take {sums_s / run_s:.1%} of the CPU time of a scoring run ({sums_s * 10:.2f} CPU-seconds for a million explained "
            f"rows). Training took {training_s:.1f} CPU-seconds, with {explained:,} rows of {len(bundle.reference_profiles)} reference days explained.",
            "",
        ]
    )


def _days(settings: Settings, spec: PipelineSpec, window: Window) -> dict[date, pa.Table]:
    raw = open_source(settings, spec).load(window.first_day, window.last_day)
    return split_days(prepare_rows(raw, spec, with_labels=True), spec, window)


def _profile(scorer: Scorer, rows: pa.Table, skew: Skew | None = None) -> Profile:
    features = scorer.features(rows)
    encoded = scorer.encode(features)
    encoded = skew(encoded) if skew else encoded
    every = ExplainedRows(np.ones(len(encoded), dtype=bool), scorer.explain(encoded).attributions)
    return Profile.of(scorer.bundle.profile_spec, features, scorer.predict(encoded), every)


def _performance(
    spec: PipelineSpec, scorer: Scorer, day: date, rows: pa.Table, skew: Skew | None = None
) -> DayPerformance:
    encoded = scorer.encode(scorer.features(rows))
    ids = prediction_ids(rows, spec)
    scores = scorer.predict(skew(encoded) if skew else encoded)
    return performance(
        spec,
        day=day,
        scored=pa.table({"prediction_id": ids, "prediction": scores}),
        labels=pa.table({"prediction_id": ids, "label": rows[spec.label.column]}),
        as_of=date.max,
    )


def _seen(
    spec: PipelineSpec,
    scorer: Scorer,
    monitor: Monitor,
    normal: Mapping[date, Profile],
    days: Mapping[date, pa.Table],
    start: date,
    skew: Skew,
    usual: list[DayPerformance],
) -> tuple[str, str, str]:
    """The day of the first alarm of attributions, of any other channel, and of labels."""
    planted = [start + timedelta(days=i) for i in range(PLANTED_DAYS)]
    profiles = {day: found for day, found in normal.items() if day < start}
    profiles |= {day: _profile(scorer, days[day], skew) for day in planted}
    signals = measure_days(spec, monitor, profiles=profiles, first_day=start, last_day=planted[-1])
    before = [start - timedelta(days=i) for i in range(1, 15) if start - timedelta(days=i) in days]
    history = [_performance(spec, scorer, day, days[day]) for day in before]
    history += [_performance(spec, scorer, day, days[day], skew) for day in planted]
    hurt = [gap.day for gap in judge_gaps(history, usual) if gap.alarm and gap.day >= start]
    own = [s.day for s in signals if any(c.channel == "attributions" for c in s.alarms)]
    other = [s.day for s in signals if s.faults or any(c.channel != "attributions" for c in s.alarms)]
    return tuple(str((min(found) - start).days + 1) if found else "-" for found in (own, other, hurt))  # type: ignore[return-value]


def _skews(scorer: Scorer) -> dict[str, Skew]:
    of_column = [scorer.feature_names[index] for index in scorer.encoder.column_features]

    def at(name: str) -> int:
        return of_column.index(name)

    def swap(one: str, other: str) -> Skew:
        def changed(x: Matrix) -> Matrix:
            x = x.copy()
            x[:, [at(one), at(other)]] = x[:, [at(other), at(one)]]
            return x

        return changed

    def shift(name: str) -> Skew:
        def changed(x: Matrix) -> Matrix:
            x = x.copy()
            codes = np.roll(np.arange(x[:, at(name)].max() + 1), 1)
            x[:, at(name)] = codes[x[:, at(name)].astype(int)]
            return x

        return changed

    def times(factor: float, *names: str) -> Skew:
        def changed(x: Matrix) -> Matrix:
            x = x.copy()
            x[:, [at(name) for name in names]] *= factor
            return x

        return changed

    recent = (
        "origin_recent_delay",
        "origin_recent_late_share",
        "carrier_recent_delay",
        "carrier_recent_late_share",
        "dest_recent_delay",
    )
    return {
        "`route_week_delay` and `dest_lat` swapped": swap("route_week_delay", "dest_lat"),
        "`sched_block_min` and `block_slack_min` swapped": swap("sched_block_min", "block_slack_min"),
        "`origin_recent_delay` and `carrier_recent_delay` swapped": swap(
            "origin_recent_delay", "carrier_recent_delay"
        ),
        "codes of `carrier` shifted by one": shift("carrier"),
        "codes of `dest` shifted by one": shift("dest"),
        "five features of recent delays constant": times(0.0, *recent),
        "wind 2.2 times too strong": times(2.2, "wind_mph"),
    }


def _cost(settings: Settings, spec: PipelineSpec, bundle: Any, rows: pa.Table) -> tuple[float, float]:
    """CPU-seconds of a scoring run and of the attribution sums in it; the median of five runs after one."""
    store = open_context(settings, spec.name).store
    table = rows.drop_columns([name for name in rows.column_names if name in spec.label.known_afterwards])
    part, schema = write_partition(store, NORMAL.first_day, table), table_schema(table)
    identity = Snapshot.identity(spec.name, "scoring", schema, (part,))
    snapshot = save_snapshot(
        store, Snapshot(identity, spec.name, "scoring", schema, (part,), "2024-01-01T00:00:00.000Z")
    )
    found = []
    for version in range(1, 7):
        planned = plan(
            settings,
            spec,
            snapshot,
            model_version=version,
            bundle_digest=bundle.digest,
            feature_version=bundle.manifest.feature_version,
        )
        with _timed_sums() as spent:
            started = time.process_time()
            run_plan(settings, spec, planned.run_id, local=True, audit_table="tasks.audit:audit_table")
            found.append((time.process_time() - started, sum(spent)))
    run_s, sums_s = np.median(np.array(found[1:]), axis=0)
    return float(run_s), float(sums_s)


@contextmanager
def _timed_sums() -> Iterator[list[float]]:
    """CPU-seconds of each step of the sums meanwhile: the cells of values, and adding up."""
    spent: list[float] = []
    steps = {
        (Occurrences, "each"): Occurrences.each,
        (profiling, "_sum_attributions"): profiling._sum_attributions,
    }

    def timed(plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            started = time.process_time()
            result = plain(*arguments)
            spent.append(time.process_time() - started)
            return result

        return step

    for (owner, name), plain in steps.items():
        setattr(owner, name, timed(plain))
    try:
        yield spent
    finally:
        for (owner, name), plain in steps.items():
            setattr(owner, name, plain)


if __name__ == "__main__":
    main()
