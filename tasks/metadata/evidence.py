"""Trainings, gate verdicts and the evidence shown on the page of a DAG run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select

from tasks.core.records import Verdict
from tasks.metadata.access import (
    StorePart,
    insert_new,
    owned,
    owner_values,
    record_digest,
    upsert,
    without_owner,
)
from tasks.metadata.records import DagLink, Owner, StoredVerdict, Training
from tasks.metadata.tables import dag_links, trainings, verdicts


class Evidence(StorePart):
    """What was trained, how it was judged and where to look."""

    def record_training(self, of: Owner, trained: Mapping[str, Any], *, dag_run: str | None = None) -> bool:
        """Keep a finished training (a TrainedModel as JSON); False when its `training_id` is there already."""
        values = {
            **owner_values(of),
            "training_id": trained["training_id"],
            "bundle_digest": trained["bundle_digest"],
            "snapshot_id": trained["snapshot_id"],
            "feature_version": trained["feature_version"],
            "mlflow_run_id": trained.get("mlflow_run_id"),
            "mlflow_model_uri": trained.get("mlflow_model_uri"),
            "dag_run": dag_run,
            "record": dict(trained),
            "recorded_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            return insert_new(connection, trainings, values)

    def training(self, of: Owner, training_id: str) -> Training | None:
        """A finished training by its id."""
        query = select(trainings).where(owned(trainings, of), trainings.c.training_id == training_id)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return Training(**without_owner(row)) if row else None

    def trainings(self, of: Owner, *, limit: int = 100) -> list[Training]:
        """Finished trainings, newest first."""
        query = select(trainings).where(owned(trainings, of)).order_by(trainings.c.recorded_at_utc.desc())
        with self._database.read() as connection:
            return [
                Training(**without_owner(row)) for row in connection.execute(query.limit(limit)).mappings()
            ]

    def record_verdict(self, of: Owner, verdict: Verdict, *, dag_run: str | None = None) -> bool:
        """Keep a verdict; False when the newest one of the same gate, subject and DAG run says the same.

        Of a DAG run, the moment does not count: a task that is tried again, or beside an attempt taken for dead, judges
        once; a gate that is asked again after another answer does not. Without a DAG run each judgement is one of its own.

        Raises:
            ValueError: The verdict is about another pipeline.
        """
        if verdict.pipeline != of.name:
            raise ValueError(f"a verdict on {verdict.pipeline!r} cannot be kept under {of.name!r}")
        record = verdict.to_json()
        said = {name: value for name, value in record.items() if name != "decided_at_utc"}
        values = {
            **owner_values(of),
            "gate": verdict.gate,
            "subject": verdict.subject,
            "outcome": verdict.outcome,
            "decided_at_utc": datetime.fromisoformat(verdict.decided_at_utc),
            "dag_run": dag_run,
            "record": record,
            "recorded_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            if dag_run is None:
                return insert_new(
                    connection, verdicts, {**values, "record_digest": record_digest([record, None])}
                )
            table = verdicts
            same = (
                table.c.gate == verdict.gate,
                table.c.subject == verdict.subject,
                table.c.dag_run == dag_run,
            )
            query = select(table.c.record).where(owned(table, of), *same).order_by(table.c.id.desc())
            before = list(connection.execute(query).scalars())
            if before and {**before[0], "decided_at_utc": None} == {**said, "decided_at_utc": None}:
                return False
            # Of two that judge at once both are the next one: the second finds the first's row by this digest.
            digest = record_digest([said, dag_run, len(before)])
            return insert_new(connection, verdicts, {**values, "record_digest": digest})

    def verdicts(
        self,
        of: Owner,
        *,
        subject: str | None = None,
        gate: str | None = None,
        dag_run: str | None = None,
        limit: int = 100,
    ) -> list[StoredVerdict]:
        """Verdicts, newest first, narrowed by what is given."""
        query = select(verdicts).where(owned(verdicts, of)).order_by(verdicts.c.id.desc()).limit(limit)
        for column, wanted in (("subject", subject), ("gate", gate), ("dag_run", dag_run)):
            if wanted is not None:
                query = query.where(verdicts.c[column] == wanted)
        with self._database.read() as connection:
            return [
                StoredVerdict(Verdict.from_json(row.record), row.dag_run, row.recorded_at_utc)
                for row in connection.execute(query)
            ]

    def record_link(
        self,
        of: Owner,
        *,
        dag_id: str,
        dag_run_id: str,
        task_id: str,
        kind: str,
        url: str = "",
        summary: Mapping[str, Any] | None = None,
        map_index: int = -1,
    ) -> None:
        """Put a piece of evidence on a DAG run's page; a re-run task replaces what it put there before."""
        values = {
            **owner_values(of),
            "dag_id": dag_id,
            "dag_run_id": dag_run_id,
            "task_id": task_id,
            "map_index": map_index,
            "kind": kind,
            "url": url,
            "summary": dict(summary or {}),
            "recorded_at_utc": self._clock(),
        }
        with self._database.write() as connection:
            upsert(connection, dag_links, values)

    def links(self, of: Owner, *, dag_id: str, dag_run_id: str, task_id: str | None = None) -> list[DagLink]:
        """The evidence of a DAG run (or of one task in it), oldest first."""
        table = dag_links
        query = select(table).where(
            owned(table, of), table.c.dag_id == dag_id, table.c.dag_run_id == dag_run_id
        )
        if task_id is not None:
            query = query.where(table.c.task_id == task_id)
        query = query.order_by(table.c.recorded_at_utc, table.c.task_id, table.c.map_index, table.c.kind)
        with self._database.read() as connection:
            return [DagLink(**without_owner(row)) for row in connection.execute(query).mappings()]
