"""An installation's worth of rows, written by the calls that the steps make."""

from __future__ import annotations

import dataclasses
import functools
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import services
from children import at_once, die
from database_fixtures import put_sqlite_file, sqlite_file_after
from sqlalchemy import create_engine, text

from tasks.core import Finding, Settings, Verdict, utc_now
from tasks.metadata import CanaryStep, MetadataStore, ModelVersion, NewMetric, Scope, schema
from tasks.metadata.deployments import NewEvent
from tasks.metadata.records import Owner
from tasks.metadata.tables import metadata

TOY, OTHER = Scope("toy"), Scope("other", "acme")
DAY = date(2024, 3, 1)


def opened_at_once(settings: Settings, count: int) -> list[str]:
    """Open the store in so many processes at the same moment: `ok` from each, or its error."""

    def opened() -> str:
        MetadataStore.open(settings).head(TOY)
        return "ok"

    return at_once(*[opened] * count)


def dies_once_migrated(settings: Settings) -> None:
    """Open the store, and be killed when the schema is made and not yet committed."""
    migrate = schema._migrate

    def migrate_and_die(*arguments: Any, **more: Any) -> None:
        migrate(*arguments, **more)
        die()

    schema._migrate = migrate_and_die
    MetadataStore.open(settings)


def event(version: int, kind: str = "promote") -> NewEvent:
    return NewEvent(kind, version, f"{version:064x}", "1", version - 1 or None, "ada", "müde, “quoted”, 東京")


def register(store: MetadataStore, of: Owner, version: int, digest: str | None = None) -> None:
    digest = digest or f"{version:064x}"
    made = ModelVersion(
        version, digest, "1", "s", "t", of.name, None, None, "http://x", utc_now(), {"auc": 0.7}
    )
    store.record_model_version(of, made)


def verdict(subject: str, pipeline: str = "toy") -> Verdict:
    finding = Finding("rows", "pass", "détail", 1.0, 2.0)
    return Verdict(
        "data", pipeline, subject, "pass", (finding,), "2024-03-01T12:00:00.000Z", "e.json", "r.html"
    )


def populate(store: MetadataStore) -> None:
    """At least one row in every table, of two tenants."""
    for of in (TOY, OTHER):
        for version in (1, 2):
            register(store, of, version)
            store.append_events(of, lambda _, version=version: [event(version)])  # type: ignore[misc]
        store.append_events(of, lambda _: [event(1, "rollback"), event(2, "bar")])
        store.record_projection(of, "champion", 1, event_id=4)
        trained = dict.fromkeys(("bundle_digest", "snapshot_id", "feature_version"), "x")
        store.record_training(of, {**trained, "training_id": "t1", "loss": [0.1, 1e-300, 3]})
        for subject in ("s1", "s2", "s3"):
            store.record_verdict(of, verdict(subject, of.name), dag_run="run 1")
        store.record_link(of, dag_id="d", dag_run_id="r", task_id="t", kind="k", summary={"z": 1, "a": None})
        store.record_run(of, "r1", status="planned", first_day=DAY, rows=2**40, cpu_seconds=0.1 + 0.2)
        store.record_publication(of, "r1", table_version=3, rows=5, files=1, days=[DAY])
        store.record_signals(of, day=DAY, run_id="r1", model_version=1, signals={"psi": 0.25})
        store.record_decision(of, action="nothing", verdict="healthy", reasons=["quiet"], first_day=DAY)
        store.record_metrics(of, [NewMetric("auc", 1, DAY, 0.7 + 1e-16, "evaluation", "e.json", 0.6, 0.8, 9)])
        store.record_audit_action(of, kind="archived", day=DAY, rows=9, key="a.parquet")
        store.append_events(of, lambda _: [NewEvent("expose", 3, "b" * 64, "1", 1, "ada", "try", 0.01)])
        store.record_canary_step(of, CanaryStep(5, 3, 1, 0.01, "hold", ("early",), {"low": -1e-300}, "run 1"))
        key = {"tenant": of.tenant, "pipeline": of.name, "kind": "drift", "incident": "decision 1"}
        now = utc_now()
        states = {
            "severity": "warn",
            "status": "open",
            "headline": "moved",
            "since": "2024-03-01",
            "record": {},
        }
        moments = {"opened_at_utc": now, "observed_at_utc": now, "resolved_at_utc": None}
        told = {"channel": "mail", "phase": "opened", "status": "pending", "due_at_utc": now, "attempts": 0}
        store.keep_alerts([{**key, **states, **moments}], [{**key, **told}])
        with store.lease_ledger() as ledger:
            ledger.set_clock(ledger.clock_s + 1)
            for run_id in ("r1", "r2"):
                ledger.put(lease(of, run_id))
        with store.lease_ledger() as ledger:
            ledger.end((of.tenant, of.name, "r2"))
        for run_id in ("r1", "r2"):
            with store.lease_request(of.tenant, of.name, run_id) as request:
                request.ask(lease_request(run_id), 1.0)
        with store.lease_request(of.tenant, of.name, "r2") as request:
            request.end(request.last() or {}, "finished")
        with store.open_budget(of.tenant) as reserved:
            key = {"tenant": of.tenant, "pipeline": of.name, "kind": "scoring", "subject": "s"}
            reserved.put({**key, "cost": 12.5, "until_utc": now + timedelta(days=1)})
        store.put_stored(of, now.date(), {"models": 2**43, "other": 0})


def open_filled(settings: Settings) -> MetadataStore:
    """The store of `settings`, whose database is a copy of one that `populate` has filled once."""
    if settings.metadata_url.startswith("sqlite"):
        put_sqlite_file(settings, populated_file())
    else:
        server = settings.metadata_url.rpartition("/")[0]
        services.make_postgres_database_anew(settings.metadata_url, like=_populated_database(server))
    return MetadataStore.open(settings)


@functools.cache
def populated_file() -> bytes:
    """The file of an SQLite database that `populate` has filled."""
    return sqlite_file_after(lambda settings: populate(MetadataStore.open(settings)))


@functools.cache
def _populated_database(server: str) -> str:
    """The name of a database on a PostgreSQL server that `populate` has filled."""
    url = services.new_postgres_database(f"{server}/postgres")
    populate(MetadataStore.open(dataclasses.replace(Settings.at_home(Path("/nowhere")), metadata_url=url)))
    return url.rpartition("/")[2]


_ASKED = {
    "kind": "scoring",
    "holder": "h",
    "gpus": 1.0,
    "cpus": 0.1 + 0.2,
    "memory_gib": 0.0,
    "least": 1,
    "most": 4,
    "reclaimable": True,
    "workers": 2,
}


def lease(of: Scope, run_id: str) -> dict[str, Any]:
    """A row of the ledger of leases."""
    granted = {"priority": 0, "since_s": 1.5, "width": 2, "over_since_s": None, "granted": 7}
    return {"tenant": of.tenant, "pipeline": of.name, "run_id": run_id, **_ASKED, **granted}


def lease_request(run_id: str) -> dict[str, Any]:
    """What a run says of itself."""
    times = {"allocated_s": 9.5, "used_s": 5.25, "wasted_s": 1e-9}
    made = {
        "rows": 2**40,
        "bytes_read": 2**42,
        "bytes_written": 2**41,
        "cpu_seconds": 3.75,
        "gpu_seconds": 0.5,
    }
    said = {"heard": 7, "pause_s": 0.0, "ends_in_s": None, "starts_in_s": 90.5, "reason": "wartet"}
    return {"run_id": run_id, **_ASKED, **times, **made, **said}


def held(url: str) -> dict[str, int]:
    """Rows of each table, by plain SQL."""
    with create_engine(url).connect() as connection:
        return {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in metadata.tables
        }
