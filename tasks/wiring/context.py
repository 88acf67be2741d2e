"""What every step stands on: settings, the pipeline, its store and the metadata store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.core import (
    ObjectStore,
    PipelineSpec,
    Settings,
    Verdict,
    load_pipeline,
    open_store,
    pipeline_names,
)
from tasks.core.day_span import every_day
from tasks.core.errors import ConfigError, NotFound, PenstockError
from tasks.core.partitions import load_snapshot
from tasks.core.records import Snapshot
from tasks.core.spec import Window

if TYPE_CHECKING:
    from tasks.metadata import MetadataStore
    from tasks.registry import Deployment

_DAYS_NAMED = 5


@dataclass(frozen=True)
class Context:
    """One pipeline of one installation."""

    settings: Settings
    spec: PipelineSpec

    @cached_property
    def store(self) -> ObjectStore:
        """The pipeline's store: its keys cannot leave the tenant's prefix (I10)."""
        return open_store(self.settings, prefix=self.spec.prefix)

    @cached_property
    def metadata(self) -> MetadataStore:
        from tasks.metadata import MetadataStore

        return MetadataStore.open(self.settings)

    def snapshot(self, snapshot_id: str) -> Snapshot:
        return load_snapshot(self.store, snapshot_id)

    def require_champion(self) -> Deployment:
        """The live version. Raises `NotFound` before the first promotion."""
        from tasks.registry import champion

        live = champion(self.settings, self.spec)
        if live is None:
            raise NotFound(
                "has no champion yet, so nothing can be scored",
                which=self.spec.name,
                fix=f"run {self.spec.name}.train in Airflow and let it promote a model",
            )
        return live

    def evidence(self, dag_run: str | None, kind: str, summary: Mapping[str, Any]) -> None:
        """Put something on the page of the DAG run `<dag_id>/<run_id>`; by hand (None) there is no page."""
        if dag_run:
            dag_id, _, dag_run_id = dag_run.partition("/")
            self.metadata.record_link(
                self.spec,
                dag_id=dag_id,
                dag_run_id=dag_run_id,
                task_id=kind,
                kind=kind,
                summary=summary,
            )

    def report_url(self, key: str | None) -> str:
        """Where Airflow serves a report of this pipeline; empty without one."""
        return f"{self.settings.airflow_url}/penstock/report/{self.spec.name}/{key}" if key else ""


def open_context(settings: Settings, pipeline: str) -> Context:
    """Raises `NotFound` or `ConfigError` when the pipeline's folder or file is not right."""
    return Context(settings, load_pipeline(settings, pipeline))


def readable_pipelines(settings: Settings) -> tuple[list[PipelineSpec], list[dict[str, str]]]:
    """Every pipeline by name; and of those that cannot be read `pipeline` and `error`."""
    specs, broken = [], []
    for name in pipeline_names(settings):
        try:
            specs.append(load_pipeline(settings, name))
        except PenstockError as error:
            broken.append({"pipeline": name, "error": str(error)})
    return specs, broken


def in_short(verdict: Verdict) -> dict[str, Any]:
    """A verdict for a page: how many checks passed, and as reasons only the findings that did not."""
    bad = [finding for finding in verdict.findings if finding.status != "pass"]
    total = len(verdict.findings)
    waived = f", {len(verdict.waived)} waived" if verdict.waived else ""
    return {
        "checks": f"{total - len(bad)} of {total} checks passed{waived}",
        "reasons": verdict.reasons() if bad or not verdict.passed else [],
    }


def parse_day(text: str | date | None, name: str) -> date | None:
    """A day from `YYYY-MM-DD`; raises `ConfigError` naming the argument."""
    if text is None or isinstance(text, date):
        return text
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"is not a day: {text!r}", which=name, fix="write it as YYYY-MM-DD") from error


def parse_moment(text: str, name: str) -> datetime:
    """A moment from ISO 8601, UTC when it says no zone; raises `ConfigError` naming the argument."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"is not a moment: {text!r}", which=name, fix="write it as ISO 8601") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def days_without_rows(first: date, last: date, present: Sequence[date], before: Sequence[date] = ()) -> str:
    """The days of a window, both included, that the source gave no row of: `2: 2024-01-03, 2024-01-04`; empty when there is none.

    `before` are days of earlier windows that it gave no row of either. A source may leave days out by nature, as weekends; one that was not delivered looks the same, so it is said.
    """
    there = set(present)
    return listed_days([*before, *(day for day in every_day(first, last) if day not in there)])


def listed_days(days: Sequence[date]) -> str:
    """`2: 2024-01-03, 2024-01-04`, the first few of many; empty of none."""
    if not days:
        return ""
    more = ", ..." if len(days) > _DAYS_NAMED else ""
    return f"{len(days)}: {', '.join(map(str, days[:_DAYS_NAMED]))}{more}"


def window(first_day: date, last_day: date) -> Window:
    """Both days included; raises `ConfigError` when they are in the wrong order."""
    if last_day < first_day:
        raise ConfigError(
            f"{last_day} is before first_day {first_day}", which="last_day", fix="swap the two days"
        )
    return Window(first_day=first_day, last_day=last_day)
