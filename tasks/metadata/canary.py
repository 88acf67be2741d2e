"""The steps of canaries: each look at an exposed challenger, and what followed. Lines are only ever added."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from tasks.metadata.access import StorePart, insert_new, owned, owner_values, record_digest, without_owner
from tasks.metadata.records import CanaryStep, Owner
from tasks.metadata.tables import canary_steps


class CanarySteps(StorePart):
    """How challengers came through their exposure."""

    def record_canary_step(self, of: Owner, step: CanaryStep) -> bool:
        """Keep a step; False when the very same look of the same DAG run is there already."""
        values = {
            **owner_values(of),
            "exposure": step.exposure,
            "version": step.version,
            "champion_version": step.champion_version,
            "share": step.share,
            "action": step.action,
            "reasons": list(step.reasons),
            "evidence": dict(step.evidence),
            "dag_run": step.dag_run,
        }
        kept = {**values, "record_digest": record_digest(values.values()), "recorded_at_utc": self._clock()}
        with self._database.write() as connection:
            return insert_new(connection, canary_steps, kept)

    def canary_steps(self, of: Owner, *, version: int | None = None, limit: int = 100) -> list[CanaryStep]:
        """Steps, newest first; of one version, or of all."""
        table = canary_steps
        query = select(table).where(owned(table, of)).order_by(table.c.id.desc()).limit(limit)
        if version is not None:
            query = query.where(table.c.version == version)
        with self._database.read() as connection:
            return [_step(dict(row)) for row in connection.execute(query).mappings()]


def _step(row: dict[str, Any]) -> CanaryStep:
    values = without_owner(row)
    del values["record_digest"]
    values |= {"step_id": values.pop("id"), "reasons": tuple(values["reasons"])}
    return CanaryStep(**values)
