"""What is kept, how it is asked for, and what a repeat does."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from sqlalchemy import text

from tasks.core import Finding, PipelineSpec, Settings, Verdict
from tasks.metadata import MetadataStore, Scope

TOY = Scope("toy")
NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def verdict(outcome: str = "pass", *, subject: str = "s1", gate: str = "data", value: float = 1.0) -> Verdict:
    finding = Finding("rows", outcome, "détail", value, 2.0)
    return Verdict(gate, "toy", subject, outcome, (finding,), "2024-03-01T12:00:00.000Z", "e.json", "r.html")


def test_a_verdict_comes_back_whole_and_a_retry_adds_none(store: MetadataStore, toy: PipelineSpec) -> None:
    assert store.record_verdict(toy, verdict(), dag_run="run 1")
    assert not store.record_verdict(toy, verdict(), dag_run="run 1")
    assert store.record_verdict(toy, verdict(), dag_run="run 2")
    kept = store.verdicts(toy)
    assert [item.dag_run for item in kept] == ["run 2", "run 1"]
    assert kept[0].verdict == verdict()


def test_verdicts_are_found_by_subject_gate_and_dag_run(store: MetadataStore) -> None:
    store.record_verdict(TOY, verdict(subject="a"), dag_run="x")
    store.record_verdict(TOY, verdict("fail", subject="a", gate="evaluation"), dag_run="x")
    store.record_verdict(TOY, verdict(subject="b"), dag_run="y")
    assert [item.verdict.gate for item in store.verdicts(TOY, subject="a")] == ["evaluation", "data"]
    assert [item.verdict.subject for item in store.verdicts(TOY, gate="data", limit=1)] == ["b"]
    assert len(store.verdicts(TOY, dag_run="x")) == 2


def test_a_verdict_is_refused_under_another_pipelines_name(store: MetadataStore) -> None:
    with pytest.raises(ValueError, match="toy"):
        store.record_verdict(Scope("other"), verdict())


def test_not_a_number_is_kept_as_null(store: MetadataStore) -> None:
    store.record_verdict(TOY, verdict(value=math.nan))
    store.record_signals(
        TOY,
        day=date(2024, 3, 1),
        run_id="r",
        model_version=1,
        signals={"z": np.float64("inf"), "n": np.int64(3)},
    )
    assert store.verdicts(TOY)[0].verdict.findings[0].value is None
    assert store.signals(TOY)[0].signals == {"z": None, "n": 3}


def test_a_tenant_sees_only_its_own_rows(store: MetadataStore) -> None:
    store.record_verdict(Scope("toy", "blue"), verdict())
    store.record_training(Scope("toy", "blue"), TRAINED)
    assert store.verdicts(Scope("toy", "red")) == []
    assert store.training(Scope("toy", "red"), "t1") is None
    assert store.training(Scope("toy", "blue"), "t1") is not None


TRAINED = {
    "training_id": "t1",
    "bundle_digest": "b" * 64,
    "snapshot_id": "s1",
    "feature_version": "1+abc",
    "mlflow_run_id": None,
    "mlflow_model_uri": None,
    "metrics": {"auc": 0.7},
    "epochs": 4,
}


def test_a_training_is_kept_once(store: MetadataStore) -> None:
    assert store.record_training(TOY, TRAINED, dag_run="d1")
    assert not store.record_training(TOY, {**TRAINED, "epochs": 9}, dag_run="d2")
    assert [item.record for item in store.trainings(TOY)] == [TRAINED]


def test_moments_are_utc_whatever_zone_they_came_in(settings: Settings) -> None:
    tokyo = NOON.astimezone(timezone(timedelta(hours=9))) + timedelta(microseconds=7)
    store = MetadataStore.open(settings, clock=lambda: tokyo)
    store.record_training(TOY, TRAINED)
    kept = store.trainings(TOY)[0].recorded_at_utc
    assert kept == tokyo and kept.utcoffset() == timedelta(0)


def test_a_moment_without_a_zone_is_refused(settings: Settings) -> None:
    store = MetadataStore.open(settings, clock=lambda: datetime(2024, 1, 1))
    with pytest.raises(Exception, match="no time zone"):
        store.record_training(TOY, TRAINED)


def test_a_run_advances_and_never_goes_back(store: MetadataStore) -> None:
    store.record_run(TOY, "r1", status="planned", snapshot_id="s", model_version=3, shards=2, record={"a": 1})
    store.record_run(TOY, "r1", status="published", rows=10, cpu_seconds=1.5, record={"b": 2})
    late = store.record_run(TOY, "r1", status="scored", dead_letters=0)
    assert late == store.run(TOY, "r1")
    assert (late.status, late.model_version, late.rows, late.dead_letters) == ("published", 3, 10, 0)
    assert late.record == {"a": 1, "b": 2}
    assert [run.run_id for run in store.runs(TOY, status="published")] == ["r1"]
    with pytest.raises(ValueError, match="planned, scored"):
        store.record_run(TOY, "r1", status="lost")


def test_a_published_day_belongs_to_the_newest_table_version_in_any_order(store: MetadataStore) -> None:
    first, second = date(2024, 3, 1), date(2024, 3, 2)
    assert store.record_publication(TOY, "new", table_version=5, rows=1, files=1, days=[second])
    assert store.record_publication(TOY, "old", table_version=4, rows=1, files=1, days=[first, second])
    assert not store.record_publication(TOY, "old", table_version=4, rows=1, files=1, days=[first, second])
    assert store.published_days(TOY) == {first: "old", second: "new"}
    assert {item.run_id: item.days for item in store.publications(TOY)} == {
        "new": (second,),
        "old": (first, second),
    }


def test_signals_of_a_day_are_replaced_by_a_later_measurement(store: MetadataStore) -> None:
    for z in (1.0, 2.0):
        store.record_signals(TOY, day=date(2024, 3, 2), run_id="r", model_version=1, signals={"z": z})
    store.record_signals(TOY, day=date(2024, 3, 1), run_id="q", model_version=1, signals={"z": 0.5})
    assert [item.signals["z"] for item in store.signals(TOY)] == [0.5, 2.0]
    assert len(store.signals(TOY, first_day=date(2024, 3, 2), last_day=date(2024, 3, 2))) == 1


def test_decisions_and_audit_actions_are_kept_once(store: MetadataStore) -> None:
    for _ in range(2):
        store.record_decision(
            TOY, action="none", verdict="ok", reasons=["quiet"], first_day=date(2024, 3, 1), dag_run="d"
        )
        store.record_audit_action(TOY, kind="archive", day=date(2024, 3, 1), rows=9, key="archive/a.parquet")
    decision = store.decisions(TOY)[0]
    assert (len(store.decisions(TOY)), decision.reasons, decision.first_day) == (
        1,
        ("quiet",),
        date(2024, 3, 1),
    )
    assert [item.key for item in store.audit_actions(TOY, day=date(2024, 3, 1))] == ["archive/a.parquet"]


def test_a_re_run_task_replaces_its_evidence(store: MetadataStore) -> None:
    for url in ("one", "two"):
        store.record_link(
            TOY,
            dag_id="toy.train",
            dag_run_id="r",
            task_id="gate",
            kind="report",
            url=url,
            summary={"auc": 0.7},
        )
    links = store.links(TOY, dag_id="toy.train", dag_run_id="r", task_id="gate")
    assert [(link.url, link.summary) for link in links] == [("two", {"auc": 0.7})]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            "SELECT * FROM penstock_deployment_events WHERE tenant='t' AND pipeline='p' AND moves_pointer IS 1 "
            "ORDER BY event_id DESC LIMIT 1",
            "ix_penstock_deployment_events_latest",
        ),
        (
            "SELECT * FROM penstock_deployment_events WHERE tenant='t' AND pipeline='p' AND moves_pointer IS 1 "
            "AND at_utc <= 'x' ORDER BY at_utc DESC, event_id DESC LIMIT 1",
            "ix_penstock_deployment_events_live_at",
        ),
        (
            "SELECT * FROM penstock_deployment_events WHERE tenant='t' AND pipeline='p' AND at_utc >= 'x'",
            "ix_penstock_deployment_events_recent",
        ),
        (
            "SELECT * FROM penstock_verdicts WHERE tenant='t' AND pipeline='p' AND subject='s' ORDER BY id DESC",
            "ix_penstock_verdicts_subject",
        ),
    ],
)
def test_the_frequent_questions_are_answered_by_an_index(
    sqlite_settings: Settings, query: str, index: str
) -> None:
    store = MetadataStore.open(sqlite_settings)
    with store._database.read() as connection:
        plan = str(connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all())
    assert index in plan


def test_records_survive_json(store: MetadataStore) -> None:
    store.record_verdict(TOY, verdict(), dag_run="d")
    store.record_publication(TOY, "r", table_version=1, rows=1, files=1, days=[date(2024, 3, 1)])
    store.record_run(TOY, "r", status="planned", first_day=date(2024, 3, 1))
    for record in (store.verdicts(TOY)[0], store.publications(TOY)[0], store.runs(TOY)[0]):
        assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record
