"""The monitor's questions are answered by an index on both databases: the plan of each is read, none is timed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.engine import Engine

from tasks.core import Settings
from tasks.metadata import MetadataStore, NewMetric, Scope
from tasks.metadata.tables import deployment_events

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
QUESTIONS = {
    "what is live": lambda store, of: store.live(of),
    "what was live at T": lambda store, of: store.live_at(of, NOON + timedelta(minutes=30)),
    "newest events": lambda store, of: store.history(of, limit=20),
    "what is live everywhere": lambda store, of: store.live_everywhere(),
    "what was live everywhere at T": lambda store, of: store.live_everywhere(at=NOON + timedelta(minutes=30)),
    "the last 24 hours everywhere": lambda store, of: store.events_everywhere(
        since=NOON + timedelta(minutes=190)
    ),
    "the last 24 hours": lambda store, of: store.history(of, since=NOON + timedelta(minutes=190)),
    "newest events before T": lambda store, of: store.history(
        of, until=NOON + timedelta(minutes=30), limit=5
    ),
    "events of an hour": lambda store, of: store.history(
        of, since=NOON + timedelta(minutes=10), until=NOON + timedelta(minutes=15)
    ),
}

SERIES = {
    "of a version": lambda store, of: store.series(of, "auc", model_version=3),
    "of a version, some days": lambda store, of: store.series(of, "auc", model_version=3, since=NOON.date()),
    "of all versions, some days": lambda store, of: store.series(of, "auc", since=NOON.date()),
    "newest of every pipeline": lambda store, of: store.latest_metric("auc"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_of_the_monitor_never_reads_the_whole_log(settings: Settings, question: str) -> None:
    store = MetadataStore.open(settings)
    with store._database.write() as connection:
        connection.execute(
            insert(deployment_events), [_row(f"p{of}", n) for of in range(20) for n in range(200)]
        )
        connection.execute(text("ANALYZE"))
    plan = _plan_of(store, QUESTIONS[question])
    if "at T" in question or "24 hours" in question:  # a range of time, not the whole history
        assert "at_utc<" in plan or "at_utc >=" in plan or "at_utc <=" in plan or "at_utc>" in plan, plan
    assert "Seq Scan" not in plan and "SCAN penstock_deployment_events" not in plan, plan
    assert "penstock_deployment_events" in plan and "Index" in plan.replace("INDEX", "Index"), plan


@pytest.mark.parametrize("question", SERIES)
def test_a_metric_series_is_read_from_an_index_by_metric(settings: Settings, question: str) -> None:
    store = MetadataStore.open(settings)
    for of in range(12):
        points = [
            NewMetric(name, version, (NOON + timedelta(days=day)).date(), day / 100, "monitor", "r")
            for name in ("auc", "brier", "drift_alarms")
            for version in (1, 2, 3)
            for day in range(-30, 10)
        ]
        assert store.record_metrics(Scope(f"p{of}"), points) == 360
    with store._database.write() as connection:
        connection.execute(text("ANALYZE"))
    plan = _plan_of(store, SERIES[question])
    assert "Seq Scan" not in plan and "SCAN penstock_metrics" not in plan, plan
    assert "(metric)::text = " in plan or "metric=?" in plan, plan
    if "some days" in question:
        assert "day >= " in plan or "day>?" in plan, plan


def _asked(
    store: MetadataStore, question: Callable[[MetadataStore, Scope], object]
) -> list[tuple[str, object]]:
    """The statements by which the store answers, with their values."""
    asked: list[tuple[str, object]] = []
    engine = store._database._engine

    def keep(_c: object, _cursor: object, statement: str, values: object, *_rest: object) -> None:
        if not statement.startswith("SET LOCAL"):  # the deadlines of every transaction
            asked.append((statement, values))

    event.listen(engine, "before_cursor_execute", keep)
    question(store, Scope("p7"))
    event.remove(engine, "before_cursor_execute", keep)
    return asked


def _plan_of(store: MetadataStore, question: Callable[[MetadataStore, Scope], object]) -> str:
    asked = _asked(store, question)
    [(statement, values)] = [(said, given) for said, given in asked if said.startswith(("SELECT", "WITH"))]
    return _plan(store._database._engine, statement, values)


def _plan(engine: Engine, statement: str, values: object) -> str:
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"{explain} {statement}", values)  # type: ignore[arg-type]
        return "\n".join(str(row[-1]) for row in found)


def _row(pipeline: str, number: int) -> dict[str, object]:
    return {
        "tenant": "default",
        "pipeline": pipeline,
        "event_id": number,
        "kind": "promote",
        "moves_pointer": True,
        "version": number,
        "bundle_digest": "b" * 64,
        "feature_version": "1",
        "expected_version": None,
        "previous_version": None,
        "actor": "tests",
        "reason": "because",
        "at_utc": NOON + timedelta(minutes=number),
    }


def test_what_is_live_everywhere_costs_seeks_and_not_rows(settings: Settings) -> None:
    store = MetadataStore.open(settings)
    with store._database.write() as connection:
        connection.execute(
            insert(deployment_events), [_row(f"p{of}", n) for of in range(20) for n in range(200)]
        )
        connection.execute(text("ANALYZE"))
    engine = store._database._engine
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite does not count the rows it reads; this runs on PostgreSQL")
    live: list[str] = []
    [(statement, values)] = _asked(store, lambda store, _of: live.extend(store.live_everywhere()))
    assert len(live) == 20
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).scalar_one()  # type: ignore[arg-type]
    assert sum(_read(found[0]["Plan"])) < 200, found


def _read(node: dict[str, object]) -> list[float]:
    """Rows of the log that each scan of a plan took out of it."""
    own = [float(node["Actual Rows"]) * float(node["Actual Loops"])] if "Relation Name" in node else []  # type: ignore[arg-type]
    return own + [rows for inner in node.get("Plans", []) for rows in _read(inner)]  # type: ignore[attr-defined]
