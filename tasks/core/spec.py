"""`pipeline.yaml` as typed records, with errors that name the file, the field and the fix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from tasks.core.errors import ConfigError, NotFound
from tasks.core.near_names import did_you_mean
from tasks.core.pools import RAY_POOL
from tasks.core.settings import Settings
from tasks.core.tenants import (
    TenantQuota,
    TenantSpec,
    load_tenant,
    ray_pool,
    refuse_out_of_bounds,
    refuse_over_quota,
    tenant_file,
)
from tasks.core.yaml_text import read_yaml

_NAME = r"^[a-z][a-z0-9_]{0,47}$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Column = Annotated[str, StringConstraints(min_length=1)]
TRIGGERS = ("new_data", "drift", "code")
"""What may start a training besides the clock and a person."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _as_text(value: object) -> object:
    """Numbers that stand as keys in YAML are the text of them; what YAML took for a truth value is not guessed at."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this key as {value}: write it in quotes")
    return str(value) if isinstance(value, int) else value


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _values(given: object) -> tuple[object, ...]:
    """A value, or a list of them, of which a column has one."""
    values = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not values:
        raise ValueError("the list is empty: name the values at which the feature may be null")
    for value in values:
        if not (value is None or isinstance(value, str | bool | int | float)):
            raise ValueError(
                f"{value!r} is a {type(value).__name__}: write a number, a text, true, false or null"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} equals nothing: write null for a value that is missing")
    return values


Values = Annotated[tuple[str | bool | int | float | None, ...], BeforeValidator(_values)]
NullWhen = Annotated[dict[Column, Values], Field(min_length=1)]
"""By column, the values at which a feature may be null; several columns: all at once."""


class SourceSpec(_Record):
    """Where rows come from.

    `parquet` and `csv` read every file under `uri` (a file, a folder or an `s3://` prefix). `python` calls
    `load(first_day, last_day) -> pyarrow.Table` of the file `uri` (relative to the pipeline folder).
    """

    kind: Literal["parquet", "csv", "python"]
    uri: str
    time_zone: str = "UTC"
    """IANA zone whose midnight divides daily partitions."""


class LabelSpec(_Record):
    """What is predicted: a column holding 0 / 1 / null (null: no outcome, for example a cancelled flight)."""

    column: Column
    delay_days: int = Field(1, ge=0)
    """Days after a partition's day until its labels are known."""
    outcome_columns: tuple[Column, ...] = ()
    """Columns known only afterwards, besides the label; they never reach a feature or a scoring snapshot."""

    @property
    def known_afterwards(self) -> frozenset[str]:
        """The label and the outcome columns: what is not known when a prediction is made."""
        return frozenset({self.column, *self.outcome_columns})

    def known_from(self, day: date) -> date:
        """The first date on which the labels of this day are known."""
        return day + timedelta(days=self.delay_days)


class CategoricalSpec(_Record):
    """One categorical feature: embedded, with one code kept for null and unseen values."""

    embedding_dim: int = Field(4, ge=1, le=256)
    min_count: int = Field(20, ge=1)
    """Categories rarer than this in training share the code of unseen ones."""


class FeatureSpec(_Record):
    """The columns that `features.py` returns."""

    numeric: tuple[Column, ...] = ()
    categorical: dict[Column, CategoricalSpec] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Numeric first, then categorical: the column order of the encoded matrix."""
        return (*self.numeric, *self.categorical)

    @model_validator(mode="after")
    def _distinct(self) -> FeatureSpec:
        if not self.names:
            raise ValueError("name at least one feature")
        twice = sorted({name for name in self.numeric if name in self.categorical})
        if twice or len(set(self.numeric)) != len(self.numeric):
            raise ValueError(f"feature names must be distinct; repeated: {twice or sorted(self.numeric)}")
        return self


class Window(_Record):
    """Days, first and last included."""

    first_day: date
    last_day: date

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.last_day < self.first_day:
            raise ValueError(f"last_day {self.last_day} is before first_day {self.first_day}")
        return self


class SplitSpec(_Record):
    """Training and validation windows: fixed days, or counts of days that end at the newest labelled day."""

    train: Window | None = None
    validation: Window | None = None
    train_days: int | None = Field(None, ge=1)
    validation_days: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_form(self) -> SplitSpec:
        fixed, rolling = (self.train, self.validation), (self.train_days, self.validation_days)
        if all(fixed) and not any(rolling):
            if self.train and self.validation and self.validation.first_day <= self.train.last_day:
                raise ValueError("validation must start after train ends")
            return self
        if all(rolling) and not any(fixed):
            return self
        raise ValueError("give both train and validation windows, or both train_days and validation_days")


class ValidationSpec(_Record):
    """The data gate. `suite` names `great_expectations/expectations/<suite>.json`."""

    suite: Name
    max_quarantined_share: Share = 0.05
    """Above this share of quarantined rows the gate fails: the fault is not in single rows any more."""
    min_rows: int = Field(1, ge=1)
    """Floor on the rows of one daily partition."""


class TrainingSpec(_Record):
    """How the network is trained."""

    epochs: int = Field(20, ge=1)
    patience: int = Field(3, ge=1)
    batch_rows: int = Field(1024, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = Field(0.1, ge=0, lt=1)
    refit: bool = True
    """After early stopping, train again from the start on all training days, for as many epochs."""
    seed: int = 7
    workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0.0, ge=0)
    memory_gib_per_worker: float | None = Field(None, gt=0, exclude=True)
    """Asked of Ray, and the most that a worker may have; no part of its identity."""
    placement_timeout_s: float = Field(900, gt=0, exclude=True)
    """Then a training whose workers Ray has not placed ends with what is missing; no part of its identity."""
    triggers: tuple[Literal["new_data", "drift", "code"], ...] = Field((), exclude=True)
    """What starts a training by itself; no part of its identity: the same inputs are trained once, whoever asked."""


class GateSpec(_Record):
    """When a model may be registered as challenger."""

    min_auc: Share = 0.6
    max_ece: Share = 0.05
    auc_margin_baseline: float = 0.0
    """The lower bound of (AUC - AUC of logistic regression) must exceed this."""
    noninferiority_margin_auc: float = Field(0.01, ge=0)
    """The lower bound of (AUC - AUC of champion) must exceed minus this."""
    slices: tuple[Column, ...] = ()
    """Columns to evaluate by; a source column or a feature."""
    slice_min_rows: int = Field(200, ge=10)
    slice_min_auc: Share = 0.5
    slice_noninferiority_margin_auc: float = Field(0.02, ge=0)
    """A slice's (AUC - AUC of champion) that is shown to be below minus this fails."""
    max_waiver_days: int = Field(30, ge=1)
    """Longest time for which a person may waive a finding."""
    bootstrap_samples: int = Field(400, ge=100)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_single_feature_auc: Share = 0.85
    """A feature that alone ranks the validation labels better than this is taken for a leak."""
    known_at: dict[Column, Column] = Field(default_factory=dict)
    """Feature -> source column with the time since when its value is known."""
    prediction_lead_minutes: float = Field(0.0, ge=0)
    """A prediction is made this long before its event time; what is known later is a leak."""
    max_repeated_share: Share = 0.9
    """Most rows, as a share, that may get the same prediction."""
    max_extreme_share: Share = 0.05
    """Most rows, as a share, whose predicted odds may be beyond a thousand times the label rate's, either way."""
    max_mean_ratio: float = Field(2.0, gt=1)
    """Mean prediction and label rate may differ by this factor."""
    max_champion_distance: Share = 0.5
    """Kolmogorov-Smirnov distance between the predictions of candidate and champion on the same rows."""
    max_staleness_days: int | None = Field(None, ge=0)
    """Age of the newest labelled day when the verdict is given; null: any."""
    max_latency_ms_p99: float = Field(1000.0, gt=0)
    """Wall time of one row in a process of its own, 99th percentile."""
    max_memory_mb: float = Field(2048.0, gt=0)
    """Peak resident size of a process that has loaded nothing but the model, under load."""
    max_latency_ratio: float | None = Field(2.0, gt=1)
    """CPU time of candidate over champion, one row and a batch; null: any."""
    require_tests: bool = False
    """Whether a folder without tests is refused."""
    tests_timeout_s: float = Field(300.0, gt=0)
    """Then the folder's tests are ended, and have failed."""
    forbidden_licences: tuple[str, ...] = ()
    """Licences, `*` for any text, that no distribution which the model's process imports may have."""
    reproducibility_tolerance: float = Field(0.001, ge=0)
    """Largest difference of the AUC between two trainings with the same seed and data."""


class CanarySpec(_Record):
    """Paired comparison of challenger and champion on labelled days after the validation window."""

    days: int = Field(7, ge=1)
    margin_brier: float = Field(0.005, gt=0)
    """Non-inferiority margin on the mean paired difference of Brier losses."""
    alpha: float = Field(0.025, gt=0, lt=0.5)
    slice_share: Share = 1.0
    """Share of entities, by hash, that the challenger scores."""
    ramp: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of entities that get the challenger's predictions, one after the other, before it is promoted."""
    ramp_days: int = Field(1, ge=1)
    """Published and labelled days that each share needs before the next."""
    max_error_share: Share = 0.001
    """Of the exposed rows: more that only the champion could score end the exposure."""
    max_latency_ratio: float = Field(3.0, gt=1)
    """Seconds a row, challenger over champion on the same rows: more end the exposure."""

    @model_validator(mode="after")
    def _rising(self) -> CanarySpec:
        if list(self.ramp) != sorted(set(self.ramp)):
            raise ValueError(f"ramp {list(self.ramp)} must rise from share to share")
        return self


class PromotionSpec(_Record):
    """Who moves the champion."""

    mode: Literal["automatic", "approval"] = "automatic"
    approval_timeout_hours: float = Field(48, gt=0)
    approvers: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Ids of the Airflow users of whom any may answer; empty: whoever may answer at all."""
    alias_policy: Literal["revert", "adopt"] = "revert"
    """What becomes of a `champion` alias that somebody moved by hand in MLflow."""


class InferenceSpec(_Record):
    """Batch scoring."""

    shard_rows: int = Field(200_000, ge=1)
    """Most rows of a shard; a shard is what is committed, retried and skipped as one."""
    shard_bytes: int = Field(128 << 20, ge=1)
    """Most bytes of a shard in its partition file; wide rows make shards of fewer rows."""
    batch_rows: int = Field(16_384, ge=1)
    min_workers: int = Field(1, ge=1)
    max_workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0.0, ge=0)
    cpus_per_worker: float = Field(1.0, gt=0)
    memory_gib_per_worker: float | None = Field(None, gt=0)
    """Asked of Ray, and the most that a worker may have: beyond it the worker fails, and no other process."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products. bfloat16 is faster on a GPU and moves probabilities in the third digit."""
    compile: bool = False
    """Whether workers compile the network with `torch.compile` before they score."""
    placement_timeout_s: float = Field(600, gt=0)
    """Then a run that Ray has placed no worker for ends with what is missing."""
    deadline_hours: float | None = Field(None, gt=0)
    """On a shared cluster: a run asks for as many workers as end it so long after it was planned; None: for one per two shards."""
    slow_shard_factor: float = Field(3.0, ge=0)
    """An idle worker scores a shard as well that takes this many times the median; 0: never."""
    max_dead_letter_share: Share = 0.01
    max_days_per_run: int = Field(31, ge=1)
    """A run without explicit days scores the oldest unpublished days, at most this many."""
    shard_timeout_s: float = Field(1800, gt=0)
    shard_attempts: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> InferenceSpec:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers {self.max_workers} is below min_workers {self.min_workers}")
        return self


class StrataSpec(_Record):
    """Shares of explained predictions that differ by the value of one column."""

    column: Column
    """A categorical feature, or a column of the entity key."""
    shares: dict[Annotated[str, BeforeValidator(_as_text)], Share] = Field(min_length=1)
    """Share by value of `column`; every other value keeps `explanations.share`."""


class ExplanationSpec(_Record):
    """Which predictions are explained, and how long explanation data stays where.

    A prediction is explained when any of `share` (with `strata`), `score_bands` and `canary` chooses it. Each of them
    looks at nothing but the row, so a retry, another batch or the online path choose the same.
    """

    share: Share = 1.0
    """Share of predictions with attributions, chosen by hash of the prediction id; provenance is always kept."""
    strata: StrataSpec | None = None
    """Shares that differ by the value of one column."""
    score_bands: tuple[tuple[Share, Share], ...] = ()
    """Scores that are always explained: pairs of lowest and highest, both included, in ascending order."""
    canary: bool = False
    """Whether all predictions of the entities that the canary scores (`canary.slice_share`) are explained."""
    top_k: int = Field(5, ge=1)
    warm_days: int = Field(30, ge=1)
    """After this age a day moves to the archive."""
    expire_days: int = Field(730, ge=1)
    """After this age an archived day is deleted."""
    cold_values: bool = True
    """Whether the archive keeps feature values; without them its rows cost half and cannot be reproduced."""

    @field_validator("score_bands")
    @classmethod
    def _ascending(cls, bands: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for low, high in bands:
            if high < low:
                raise ValueError(f"the band goes from {low} down to {high}: write the lowest score first")
        for (_, before), (low, _) in pairwise(bands):
            if low <= before:
                raise ValueError(
                    f"the band from {low} begins before the one up to {before} ends: join the two"
                )
        return bands

    @model_validator(mode="after")
    def _ordered(self) -> ExplanationSpec:
        if self.expire_days <= self.warm_days:
            raise ValueError(f"expire_days {self.expire_days} must be above warm_days {self.warm_days}")
        return self


class DriftSpec(_Record):
    """Thresholds of the monitor; the defaults are calibrated (docs/monitoring.md)."""

    z_alarm: float = Field(5.0, gt=0)
    z_persistent: float = Field(3.5, gt=0)
    pairs: tuple[tuple[Column, Column], ...] = ()
    """Pairs of categorical features whose joint distribution is watched."""
    null_when: dict[Column, NullWhen] = Field(default_factory=dict)
    """Feature -> where it may be null as a fact: column -> value or values, None for null."""
    min_rows: int = Field(200, ge=1)
    volume_tolerance: float = Field(0.2, gt=0)
    rollback: Literal["automatic", "ask"] | None = None
    """Whether the monitor may leave a damaged champion by itself; left out: as `promotion.mode` has it."""
    responders: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Ids of the Airflow users of whom any may answer a case; empty: whoever may answer at all."""
    answer_days: float = Field(7, gt=0)
    """A case about drift that nobody answers is closed after this; others wait."""
    max_mute_days: int = Field(30, ge=1)
    """Days of data that a mute may last, from the newest day of its case on."""


class ScheduleSpec(_Record):
    """Cron expressions in UTC; null means: only by asset or by hand."""

    train: str | None = None
    score: str | None = None
    monitor: str | None = None


class PipelineSpec(_Record):
    """One pipeline, as its `pipeline.yaml` says."""

    name: Name
    description: str
    owner: str
    tenant: Name = "default"
    tags: tuple[str, ...] = ()
    source: SourceSpec
    entity_key: tuple[Column, ...] = Field(min_length=1)
    """Columns that, with the event time, identify a row."""
    event_time: Column
    """Timestamp column: the moment the prediction is about."""
    label: LabelSpec
    features: FeatureSpec
    split: SplitSpec
    validation: ValidationSpec
    training: TrainingSpec = TrainingSpec()
    gates: GateSpec = GateSpec()
    canary: CanarySpec = CanarySpec()
    promotion: PromotionSpec = PromotionSpec()
    inference: InferenceSpec = InferenceSpec()
    explanations: ExplanationSpec = ExplanationSpec()
    drift: DriftSpec = DriftSpec()
    schedule: ScheduleSpec = ScheduleSpec()

    _quota: TenantQuota = PrivateAttr(TenantQuota())

    @property
    def prefix(self) -> str:
        """Where this pipeline's objects live in the store: tenant first, so that one policy covers a tenant."""
        return f"{self.tenant}/{self.name}"

    @property
    def model_name(self) -> str:
        """The registered model's name in MLflow."""
        return self.name if self.tenant == "default" else f"{self.tenant}.{self.name}"

    @property
    def quota(self) -> TenantQuota:
        """What its tenant may take of the cluster."""
        return self._quota

    @property
    def ray_pool(self) -> str:
        """The Airflow pool of its Ray jobs: its tenant's own, or the one that tenants without a quota share."""
        return RAY_POOL if self._quota.ray_jobs is None else ray_pool(self.tenant)

    @property
    def rolls_back(self) -> Literal["automatic", "ask"]:
        """Whether the monitor may leave a damaged champion by itself."""
        by_mode: Literal["automatic", "ask"] = "automatic" if self.promotion.mode == "automatic" else "ask"
        return self.drift.rollback or by_mode

    @model_validator(mode="after")
    def _no_leak_by_name(self) -> PipelineSpec:
        leaks = sorted(self.label.known_afterwards & set(self.features.names))
        if leaks:
            raise ValueError(f"features {leaks} are outcomes: they are not known when a prediction is made")
        return self

    @model_validator(mode="after")
    def _dated_features(self) -> PipelineSpec:
        self._refuse_other_features("gates.known_at", self.gates.known_at)
        return self

    @model_validator(mode="after")
    def _known_null_conditions(self) -> PipelineSpec:
        self._refuse_other_features("drift.null_when", self.drift.null_when)
        for feature, when in self.drift.null_when.items():
            if feature in when:
                raise ValueError(
                    f"drift.null_when.{feature} asks the feature itself: name another column that says why it is null"
                )
            later = sorted(set(when) & self.label.known_afterwards)
            if later:
                raise ValueError(
                    f"drift.null_when.{feature} asks {later}, which are outcomes: rows that are scored do not have them"
                )
        return self

    def _refuse_other_features(self, field: str, named: Iterable[str]) -> None:
        unknown = sorted(set(named) - set(self.features.names))
        if unknown:
            raise ValueError(
                f"{field} names {unknown}, which are no features; use some of: {', '.join(self.features.names)}"
            )

    @model_validator(mode="after")
    def _known_stratum(self) -> PipelineSpec:
        strata = self.explanations.strata
        usable = list(dict.fromkeys((*self.features.categorical, *self.entity_key)))
        if strata is not None and strata.column not in usable:
            raise ValueError(
                f"explanations.strata.column {strata.column!r} is neither a categorical feature nor of the entity key; "
                f"use one of: {', '.join(usable)}"
            )
        return self


def pipeline_names(settings: Settings) -> list[str]:
    """Names of all folders under `pipelines/` that hold a `pipeline.yaml`, sorted."""
    return sorted(path.parent.name for path in settings.pipelines_dir.glob("*/pipeline.yaml"))


def pipeline_folder(settings: Settings, name: str) -> Path:
    """The folder of a pipeline.

    Raises:
        NotFound: There is none of that name; the message lists those there are.
    """
    folder = settings.pipelines_dir / name
    if not (folder / "pipeline.yaml").is_file():
        known = ", ".join(pipeline_names(settings)) or "none yet"
        raise NotFound(
            "is not a pipeline",
            which=name,
            fix=f"use one of: {known}; or create it with `penstock new {name} --from PATH ...`",
        )
    return folder


def load_pipeline(settings: Settings, name: str) -> PipelineSpec:
    """Read and check `pipelines/<name>/pipeline.yaml`; what its `explanations` do not say is as its tenant says.

    Raises:
        NotFound: No such pipeline.
        ConfigError: The file or the tenant's is not YAML, or a field is unknown, missing or wrong; every problem is
            listed. Or explanation data is kept shorter or longer than the tenant's bounds.
    """
    path = pipeline_folder(settings, name) / "pipeline.yaml"
    spec = parse_pipeline(path.read_text(encoding="utf-8"), origin=str(path), settings=settings)
    if spec.name != name:
        raise ConfigError(
            f"says {spec.name!r} but its folder is {name!r}", which=f"{path}: name", fix=f"set name: {name}"
        )
    return spec


def parse_pipeline(text: str, *, origin: str, settings: Settings | None = None) -> PipelineSpec:
    """A `PipelineSpec` from YAML text, with what its tenant says in `settings`; `origin` names it in errors.

    Raises:
        ConfigError: See `load_pipeline`.
    """
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(
            f"is not valid YAML: {getattr(error, 'problem', error)}", which=where, fix="correct that line"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            "must be a mapping of fields", which=origin, fix="start from another pipeline's pipeline.yaml"
        )
    tenant = _tenant_of(raw, settings)
    if tenant is not None:
        own = raw.get("explanations") or {}
        if isinstance(own, dict):
            raw = {**raw, "explanations": {**tenant.explanations.defaults(), **own}}
    try:
        spec = PipelineSpec.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        field, message = problems[0]
        single = len(problems) == 1
        raise ConfigError(
            message if single else "; ".join(f"{field}: {message}" for field, message in problems),
            which=f"{origin}: {field}" if single else origin,
            fix="correct the field" + ("" if single else "s named") + "; docs/pipeline.md lists all of them",
        ) from error
    if tenant is not None and settings is not None:
        refuse_out_of_bounds(
            tenant,
            spec.explanations.expire_days,
            pipeline_file=origin,
            tenant_path=tenant_file(settings, spec.tenant),
        )
        asked = (
            ("inference.max_workers", spec.inference.max_workers, spec.inference.gpus_per_worker),
            ("training.workers", spec.training.workers, spec.training.gpus_per_worker),
        )
        for field, workers, gpus in asked:
            refuse_over_quota(
                tenant.quota,
                field=field,
                workers=workers,
                gpus_per_worker=gpus,
                pipeline_file=origin,
                tenant_path=tenant_file(settings, spec.tenant),
            )
        spec._quota = tenant.quota
    return spec


def _tenant_of(raw: dict[str, Any], settings: Settings | None) -> TenantSpec | None:
    """What the pipeline's tenant says; None where that is not asked for, or the name is none."""
    name = raw.get("tenant", "default")
    if settings is None or not isinstance(name, str) or not re.fullmatch(_NAME, name):
        return None
    return load_tenant(settings, name)


def _problem(item: Any) -> tuple[str, str]:
    location = [str(part) for part in item["loc"]]
    field = ".".join(location) or "(whole file)"
    if item["type"] == "extra_forbidden":
        return field, f"unknown key{did_you_mean(location[-1], _fields_at(location[:-1]))}"
    if item["type"] == "missing":
        return field, "is required"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return field, f"{message}{shown}"


def _fields_at(location: list[str]) -> list[str]:
    model: Any = PipelineSpec
    for part in location:
        fields = getattr(model, "model_fields", {})
        model = fields[part].annotation if part in fields else None
    return list(getattr(model, "model_fields", {}))
