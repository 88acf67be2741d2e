"""After a rollback: which published predictions the bad version made, and how they are made anew.

The table itself says what is visible now; the metadata store says which version each run was scored with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from tasks.core import Settings
from tasks.core.errors import NotFound, TerminalError
from tasks.metadata import ScoringRun
from tasks.wiring.context import Context, open_context

_LISTED_DAYS = 12


@dataclass(frozen=True)
class _Affected:
    """A run of the version, and the days that show its rows."""

    run: ScoringRun
    visible: dict[date, int]
    """Day -> visible rows that the version made: an exposed challenger made its share of a run's."""


def blast_radius(settings: Settings, pipeline: str, *, version: int) -> dict[str, Any]:
    """Which predictions of a version were published, which of them are still what readers see, and what is on its way.

    Returns:
        `visible_rows`, `visible_days`, `first_day`, `last_day` of what the table shows now; `published_runs` and
        `published_rows` of all that was ever published; `unfinished_runs`: planned with this version and not
        published yet, and refused by `publish_run` while it is barred; `runs`: one entry a run that is visible.

    Raises:
        NotFound: The version is not registered.
    """
    from tasks.registry import version as registered

    context = open_context(settings, pipeline)
    registered(settings, context.spec, version)
    affected = _affected(context, version)
    visible = [item for item in affected if item.visible]
    days = sorted({day for item in visible for day in item.visible})
    published = {item.run_id: item for item in context.metadata.publications_of(context.spec, version)}
    runs = {item.run.run_id: item.run for item in affected}
    unfinished = [item.run.run_id for item in affected if item.run.run_id not in published]
    moments = [item.published_at_utc for item in published.values()]
    return {
        "version": version,
        "visible_rows": sum(sum(item.visible.values()) for item in visible),
        "visible_days": len(days),
        "first_day": days[0].isoformat() if days else None,
        "last_day": days[-1].isoformat() if days else None,
        "published_runs": len(published),
        "published_rows": sum(_rows_of(runs[item.run_id], version, item.rows) for item in published.values()),
        "first_published": f"{min(moments):%Y-%m-%dT%H:%M:%SZ}" if moments else None,
        "last_published": f"{max(moments):%Y-%m-%dT%H:%M:%SZ}" if moments else None,
        "table_versions": sorted({item.table_version for item in published.values()}),
        "unfinished_runs": unfinished,
        "runs": [
            {
                "run_id": item.run.run_id,
                "snapshot_id": item.run.snapshot_id,
                "rows": sum(item.visible.values()),
                "days": _span(item.visible),
            }
            for item in visible
        ],
    }


def in_short(radius: dict[str, Any]) -> dict[str, Any]:
    """A blast radius without its list of runs, for the result of a rollback and an evidence page."""
    return {
        "affected_rows": radius["visible_rows"],
        "affected_days": radius["visible_days"],
        "affected_first_day": radius["first_day"],
        "affected_last_day": radius["last_day"],
        "unfinished_runs": radius["unfinished_runs"],
    }


def plan_rescoring(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    rescore: bool = True,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Plan the rows that `version` still shows for the version that is live now: the same rows of the same snapshots.

    Of a version that was exposed, whole days: the rows beside its own are scored again to the same predictions. A day that another version's run has replaced meanwhile is left alone. With `rescore` false, or nothing to do,
    `nothing_to_do` says why.

    Raises:
        TerminalError: `version` is live: its rows would be scored by itself.
    """
    context = open_context(settings, pipeline)
    live = context.require_champion()
    if not rescore:
        return _nothing(context, dag_run, "re-scoring was not asked for")
    if live.version == version:
        raise TerminalError(
            "is live, so that its rows would be scored by itself",
            which=f"{context.spec.name} version {version}",
            fix=f"roll it back first: `penstock registry rollback {context.spec.name} --leaving {version}`",
        )
    run_ids, rows = [], 0
    for item in _affected(context, version):
        if item.visible:
            planned = _plan(context, item, dag_run)
            run_ids.append(planned["run_id"])
            rows += planned["rows"]
    if not run_ids:
        return _nothing(context, dag_run, f"no row of version {version} is visible")
    result = {
        "nothing_to_do": False,
        "run_ids": run_ids,
        "rows": rows,
        "model_version": live.version,
        "instead_of": version,
    }
    context.evidence(dag_run, "re-scoring plan", result)
    return result


def rescore_version(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    local: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Score anew what `version` still shows, and put each run in its place in one transaction; verified.

    Call it again after any crash: what has been replaced no longer shows, and what was scored is found.
    """
    from tasks.wiring.score import publish_run, score_run, verify_run

    planned = plan_rescoring(settings, pipeline, version=version, dag_run=dag_run)
    replaced = 0
    for run_id in planned.get("run_ids", ()):
        score_run(settings, pipeline, run_id=run_id, local=local, dag_run=dag_run)
        # The live version may have scored these rows before the bad one did: then its run comes back.
        published = publish_run(settings, pipeline, run_id=run_id, replace_newer=True, dag_run=dag_run)
        verify_run(settings, pipeline, run_id=run_id, dag_run=dag_run)
        replaced += published["rows"]
    left = blast_radius(settings, pipeline, version=version)
    result = {
        "version": version,
        "runs": len(planned.get("run_ids", ())),
        "rows": replaced,
        "model_version": planned.get("model_version"),
        "visible_rows_left": left["visible_rows"],
        "unfinished_runs": left["unfinished_runs"],
    }
    context = open_context(settings, pipeline)
    context.evidence(dag_run, "re-scoring", result)
    return result


def _nothing(context: Context, dag_run: str | None, reason: str) -> dict[str, Any]:
    result = {"nothing_to_do": True, "reason": reason, "reasons": [reason]}
    context.evidence(dag_run, "re-scoring plan", result)
    return result


def _affected(context: Context, version: int) -> list[_Affected]:
    """Every run that was scored with `version`, oldest first, with the days on which its rows are visible."""
    from tasks.inference import visible_rows

    shown: dict[str, dict[date, int]] = {}
    for (run_id, day), rows in sorted(visible_rows(context.settings, context.spec).items()):
        shown.setdefault(run_id, {})[day] = rows
    return [
        _Affected(
            run,
            {
                day: made
                for day, rows in shown.get(run.run_id, {}).items()
                if (made := _rows_of(run, version, rows, day))
            },
        )
        for run in context.metadata.runs_of(context.spec, version)
    ]


def _rows_of(run: ScoringRun, version: int, rows: int, day: date | None = None) -> int:
    """How many of `rows` of a run, or of one of its days, the version made."""
    found = run.record.get("exposed")
    if found is None:
        return rows
    exposed = int(found["rows"] if day is None else found["days"].get(day.isoformat(), 0))
    return exposed if run.exposed_version == version else rows - exposed


def _plan(context: Context, item: _Affected, dag_run: str | None) -> dict[str, Any]:
    from tasks.core.partitions import derive_snapshot
    from tasks.wiring.score import plan_scoring

    snapshot_id = item.run.snapshot_id
    if snapshot_id is None:
        raise NotFound(
            "has no recorded snapshot",
            which=f"run {item.run.run_id}",
            fix="score its days with `penstock inference plan` on a new snapshot",
        )
    parent = context.snapshot(snapshot_id)
    kept = [part for part in parent.partitions if part.day in item.visible]
    chosen = derive_snapshot(context.store, parent, kept)
    return plan_scoring(
        context.settings, context.spec.name, snapshot_id=chosen.snapshot_id, expose=False, dag_run=dag_run
    )


def _span(days: Iterable[date]) -> str:
    ordered = sorted(days)
    if (ordered[-1] - ordered[0]).days == len(ordered) - 1:
        return f"{ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else f"{ordered[0]}"
    shown = ", ".join(map(str, ordered[:_LISTED_DAYS]))
    return shown if len(ordered) <= _LISTED_DAYS else f"{shown} and {len(ordered) - _LISTED_DAYS} more"
