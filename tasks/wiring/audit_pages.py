"""What the audit pages need besides the records: which run of Airflow made a prediction, and what training looked like."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote
from zoneinfo import ZoneInfo

from tasks.core import Settings, load_pipeline, pipeline_names
from tasks.core.errors import ConfigError, NotFound, PenstockError
from tasks.core.records import JsonRecord
from tasks.wiring.context import open_context

if TYPE_CHECKING:
    from tasks.audit import AuditFilter, AuditPage, AuditRecord

_RUNS_LOOKED_AT = 1000
_PAGE_ROWS = 5_000


@dataclass(frozen=True)
class AuditedPipeline(JsonRecord):
    """A pipeline whose predictions can be asked for."""

    name: str
    description: str
    first_day: date | None
    """First day with published predictions; null when there is none yet."""
    last_day: date | None


@dataclass(frozen=True)
class Links:
    """Where a prediction leads: addresses in MLflow and Airflow, empty where nothing is known."""

    model_version: str
    dag_run: str
    dag_run_name: str


@dataclass(frozen=True)
class RunWindow:
    """The window of event time that a DAG run's predictions are about."""

    run_id: str
    first_day: date
    last_day: date
    model_version: int | None


@dataclass(frozen=True)
class FeatureDistribution(JsonRecord):
    """How a feature was distributed over the training rows of one model.

    Numeric: `edges` are bounds of bins, `counts[0]` is below the first edge and `counts[-1]` from the last one up.
    Categorical: `counts` follows `categories`, most frequent first.
    """

    name: str
    kind: str
    """`numeric` or `categorical`."""
    rows: int
    nulls: int
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    mean: float | None = None

    def share_below(self, value: float) -> float:
        """Share of the training values below `value`, within a bin in proportion; 0 to 1."""
        total = sum(self.counts)
        if not total or not self.edges:
            return 0.0
        at = bisect_right(self.edges, value)
        below: float = sum(self.counts[:at])
        if 0 < at < len(self.edges):
            left, right = self.edges[at - 1], self.edges[at]
            below += self.counts[at] * (value - left) / (right - left)
        elif at == len(self.edges):
            below = total
        return below / total

    def shares_beside(self, value: float) -> tuple[float, float]:
        """Shares of the training values in the bins below and above the one that holds `value`; each 0 to 1."""
        total = max(sum(self.counts), 1)
        at = bisect_right(self.edges, value)
        return sum(self.counts[:at]) / total, sum(self.counts[at + 1 :]) / total


@dataclass(frozen=True)
class TrainingDistribution(JsonRecord):
    """Distributions of all features over the rows that a model was trained on."""

    first_day: date
    last_day: date
    rows: int
    features: tuple[FeatureDistribution, ...]


def audited_pipelines(settings: Settings, names: list[str]) -> list[AuditedPipeline]:
    """Those of `names` that there are, with the days that have predictions."""
    return [_audited(settings, name) for name in pipeline_names(settings) if name in names]


def audit_record(
    settings: Settings, pipeline: str, prediction_id: str, run_id: str | None = None
) -> AuditRecord:
    """As `tasks.audit.by_prediction`, by the pipeline's name."""
    from tasks.audit import by_prediction

    return by_prediction(settings, open_context(settings, pipeline).spec, prediction_id, run_id=run_id)


def audit_window(
    settings: Settings,
    pipeline: str,
    start: datetime,
    end: datetime,
    *,
    filter: AuditFilter,
    limit: int,
    cursor: str | None = None,
) -> AuditPage:
    """As `tasks.audit.by_window`, by the pipeline's name."""
    from tasks.audit import by_window

    spec = open_context(settings, pipeline).spec
    return by_window(settings, spec, start, end, filter=filter, limit=limit, cursor=cursor)


def audit_records(
    settings: Settings, pipeline: str, start: datetime, end: datetime, *, filter: AuditFilter, most: int
) -> Iterator[tuple[AuditRecord, ...]]:
    """A window's records in blocks, at most `most + 1` of them: the one too many says that there are more."""
    cursor, seen = None, 0
    while True:
        limit = min(_PAGE_ROWS, most + 1 - seen)
        page = audit_window(settings, pipeline, start, end, filter=filter, limit=limit, cursor=cursor)
        yield page.records
        seen += len(page.records)
        cursor = page.cursor
        if cursor is None or seen > most:
            return


def prediction_links(settings: Settings, pipeline: str, record: AuditRecord) -> Links:
    """Addresses of a record's model version and, when the metadata store knows it, of the DAG run that scored it."""
    context = open_context(settings, pipeline)
    model = f"{settings.mlflow_url}/#/models/{quote(context.spec.model_name)}/versions/{record.model_version}"
    try:
        run = context.metadata.run(context.spec, record.run_id)
    except PenstockError:  # the record itself came from the store: it is shown without this link
        run = None
    if run is None or not run.dag_run:
        return Links(model, "", "")
    dag_id, _, dag_run_id = run.dag_run.partition("/")
    address = f"{settings.airflow_url}/dags/{quote(dag_id, safe='')}/runs/{quote(dag_run_id, safe='')}"
    return Links(model, address, run.dag_run)


def run_window(settings: Settings, dag_id: str, dag_run_id: str) -> RunWindow | None:
    """What a DAG run of `<pipeline>.score` predicted; None when it has made no predictions that are recorded."""
    pipeline, _, kind = dag_id.rpartition(".")
    if kind != "score" or pipeline not in pipeline_names(settings):
        return None
    context = open_context(settings, pipeline)
    for run in context.metadata.runs(context.spec, limit=_RUNS_LOOKED_AT):
        if run.dag_run == f"{dag_id}/{dag_run_id}" and run.first_day and run.last_day:
            return RunWindow(run.run_id, run.first_day, run.last_day, run.model_version)
    return None


def utc_bounds(
    settings: Settings, pipeline: str, first_day: date, last_day: date
) -> tuple[datetime, datetime]:
    """The window of event time that these days of the source, both included, cover."""
    zone = ZoneInfo(load_pipeline(settings, pipeline).source.time_zone)
    start = datetime.combine(first_day, time(), zone)
    end = datetime.combine(last_day + timedelta(days=1), time(), zone)
    return start.astimezone(UTC), end.astimezone(UTC)


def training_distribution(
    settings: Settings, pipeline: str, bundle_digest: str
) -> TrainingDistribution | None:
    """Distributions of the features over a model's training rows; None when its bundle is not in the store.

    Raises:
        DigestMismatch: The bundle differs from its digest.
        StoreUnavailable: The store does not answer.
    """
    try:
        return _distribution(settings, pipeline, bundle_digest)
    except NotFound:
        return None


@lru_cache(maxsize=16)  # a bundle is named by its content
def _distribution(settings: Settings, pipeline: str, bundle_digest: str) -> TrainingDistribution:
    from tasks.model import Profile, fetch_bundle

    bundle = fetch_bundle(open_context(settings, pipeline).store, bundle_digest, settings.cache_dir)
    first, last = bundle.manifest.train_first_day, bundle.manifest.train_last_day
    days = [profile for day, profile in bundle.reference_profiles.items() if first <= day <= last]
    whole = Profile.merged(bundle.profile_spec, days)
    numeric = {
        name: FeatureDistribution(
            name,
            "numeric",
            whole.rows,
            counts.nulls,
            tuple(counts.counts.tolist()),
            edges=counts.grid.edges,
            low=counts.low,
            high=counts.high,
            mean=counts.mean,
        )
        for name, counts in whole.numeric.items()
    }
    categorical = {
        name: FeatureDistribution(
            name,
            "categorical",
            whole.rows,
            counts.nulls,
            tuple(counts.counts.tolist()),
            categories=counts.grid.categories,
        )
        for name, counts in whole.categorical.items()
    }
    return TrainingDistribution(first, last, whole.rows, (*numeric.values(), *categorical.values()))


def _audited(settings: Settings, name: str) -> AuditedPipeline:
    try:
        context = open_context(settings, name)
        days = context.metadata.published_days(context.spec)
    except ConfigError:  # its DAGs are missing for the same reason, and Airflow shows why
        return AuditedPipeline(name, "", None, None)
    return AuditedPipeline(name, context.spec.description, min(days, default=None), max(days, default=None))
