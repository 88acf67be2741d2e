"""What the pages in the Airflow UI and the terminal show, and `penstock new`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.core import Settings, pipeline_names
from tasks.core.errors import NotFound, PenstockError
from tasks.wiring.context import in_short, open_context

_REPORT_KEY = re.compile(r"(validation|evaluation|canary|monitoring)/[A-Za-z0-9_.\-/]+\.html")
_TITLES = {
    "started by": "Started by",
    "trigger new_data": "Is there new data?",
    "trigger drift": "Does drift ask for a training?",
    "trigger code": "Has the code changed?",
    "snapshot": "Snapshot",
    "data gate": "Data gate",
    "training": "Training",
    "evaluation": "Evaluation",
    "evaluation gate": "Evaluation gate",
    "registration": "Registered as challenger",
    "canary": "Canary",
    "promotion": "Promoted to champion",
    "approval": "Approval",
    "rollback": "Rolled back",
    "re-scoring plan": "Re-scoring plan",
    "re-scoring": "Scored anew",
    "plan": "Plan",
    "scoring": "Scoring",
    "publication": "Publication",
    "verification": "Verification",
    "measurement": "Measurement",
    "labels": "Labels",
    "decision": "Decision",
    "report": "Report",
    "archive": "Archive",
    "maintenance": "Maintenance",
}


def overview(
    settings: Settings, may_read: Callable[[str], bool] = lambda _name: True
) -> list[dict[str, Any]]:
    """One entry a pipeline that may be read: champion, newest verdict of each gate and of the monitor, last published day."""
    return [_overview_line(settings, name) for name in filter(may_read, pipeline_names(settings))]


def dag_run_evidence(settings: Settings, dag_id: str, dag_run_id: str) -> list[dict[str, Any]]:
    """What the steps of a DAG run put on its page, oldest first.

    Each entry has kind, title, outcome (may be empty), summary (field -> value), reasons and links
    (label -> URL). An unknown DAG or run has no evidence.
    """
    pipeline = dag_id.rsplit(".", 1)[0]
    if pipeline not in pipeline_names(settings):
        return []
    context = open_context(settings, pipeline)
    return [
        _entry(link.kind, link.summary)
        for link in context.metadata.links(context.spec, dag_id=dag_id, dag_run_id=dag_run_id)
    ]


def read_report(settings: Settings, pipeline: str, key: str) -> bytes:
    """A static HTML report of a pipeline.

    Raises:
        NotFound: The key is not a report's, or there is none.
    """
    if not _REPORT_KEY.fullmatch(key) or ".." in key:
        raise NotFound("is not a report", which=key, fix="follow a link from a task or a DAG run's page")
    return open_context(settings, pipeline).store.get(key)


def new_pipeline(
    settings: Settings,
    name: str,
    *,
    source: str,
    label: str,
    time: str,
    keys: Sequence[str],
    time_zone: str = "UTC",
) -> Path:
    """Write a working pipeline folder and suite for the user's own file; returns the folder."""
    from tasks.data import scaffold

    return scaffold(settings, name, source=source, label=label, time=time, keys=keys, time_zone=time_zone)


def _overview_line(settings: Settings, name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"pipeline": name, "champion": None, "verdicts": [], "published": None}
    try:
        from tasks.wiring.decided import decided_days

        context = open_context(settings, name)
        spec = context.spec
        line |= {"description": spec.description, "owner": spec.owner}
        metadata = context.metadata
        live = metadata.live(spec)
        if live:
            line["champion"] = {"version": live.version, "at": f"{live.at_utc:%Y-%m-%d %H:%M} UTC"}
        for gate in ("data", "evaluation", "canary"):
            line["verdicts"] += [
                {
                    "gate": gate,
                    "outcome": stored.verdict.outcome,
                    "at": f"{stored.recorded_at_utc:%Y-%m-%d %H:%M}",
                    "reasons": in_short(stored.verdict)["reasons"],
                }
                for stored in metadata.verdicts(spec, gate=gate, limit=1)
            ]
        line["verdicts"] += [
            {
                "gate": ", ".join(filter(None, ("monitor", decided_days(found)))),
                "outcome": found.verdict,
                "at": f"{found.decided_at_utc:%Y-%m-%d %H:%M}",
                "reasons": list(found.reasons)[:5],
            }
            for found in metadata.decisions(spec, limit=1)
        ]
        published = metadata.published_days(spec)
        if published:
            line["published"] = {"last_day": max(published).isoformat(), "days": len(published)}
    except PenstockError as error:
        line["error"] = str(error)
    return line


def _entry(kind: str, summary: dict[str, Any]) -> dict[str, Any]:
    links = {
        _words(key.removesuffix("_url") or "open"): value
        for key, value in summary.items()
        if key.endswith("url") and isinstance(value, str) and value.startswith("http")
    }
    hidden = {"outcome", "reasons", "verdict", *(key for key in summary if key.endswith("url"))}
    return {
        "kind": kind,
        "title": _TITLES.get(kind, kind.capitalize()),
        "outcome": str(summary.get("outcome") or summary.get("verdict") or ""),
        "summary": {_words(key): value for key, value in summary.items() if key not in hidden},
        "reasons": list(summary.get("reasons") or []),
        "links": links,
    }


def _words(key: str) -> str:
    return key.replace("_", " ")
