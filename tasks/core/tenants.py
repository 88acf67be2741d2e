"""What a tenant says for all of its pipelines: `tenants/<tenant>.yaml` in the project folder; without it nothing.

```yaml
explanations:
  warm_days: 14          # defaults of the tenant's pipelines: a pipeline's own pipeline.yaml comes first
  expire_days: 365
  cold_values: false
  top_k: 3
  min_expire_days: 180   # bounds: a pipeline that exceeds them is refused
  max_expire_days: 730
quota:
  ray_jobs: 2            # at a time: a pool of the tenant's own in Airflow
  max_workers: 8         # of one run or training
  max_gpus: 4            # of one run or training
budget:
  month_soft: 200        # in the currency of tenants/_prices.yaml: a warning
  month_hard: 400        # nothing new is planned or trained
share:                   # with tenants/_cluster.yaml: see tasks/core/shares.py
  guarantee: {gpus: 8}
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.core.errors import ConfigError
from tasks.core.pools import POOLS, RAY_POOL, Pool
from tasks.core.settings import Settings
from tasks.core.shares import ClusterSpec, TenantShare, cluster_file, load_cluster, refuse_over_promised
from tasks.core.tenant_files import read_record

_DEFAULTS = ("warm_days", "expire_days", "cold_values", "top_k")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantExplanations(_Record):
    """How long the tenant's explanation data stays, where a pipeline does not say; and how long it may."""

    warm_days: int | None = Field(None, ge=1)
    expire_days: int | None = Field(None, ge=1)
    cold_values: bool | None = None
    top_k: int | None = Field(None, ge=1)
    min_expire_days: int | None = Field(None, ge=1)
    """Explanation data must not be deleted sooner."""
    max_expire_days: int | None = Field(None, ge=1)
    """Explanation data must be deleted by then."""

    @model_validator(mode="after")
    def _ordered(self) -> TenantExplanations:
        if self.min_expire_days and self.max_expire_days and self.max_expire_days < self.min_expire_days:
            raise ValueError(
                f"max_expire_days {self.max_expire_days} is below min_expire_days {self.min_expire_days}"
            )
        return self

    def defaults(self) -> dict[str, Any]:
        """The fields of a pipeline's `explanations` that the tenant gives."""
        return {name: value for name in _DEFAULTS if (value := getattr(self, name)) is not None}


class TenantQuota(_Record):
    """How much of the cluster the tenant's pipelines may take."""

    ray_jobs: int | None = Field(None, ge=1)
    """Ray jobs at a time; left out, the tenant shares the pool of all that have none of their own."""
    max_workers: int | None = Field(None, ge=1)
    """Of one run or training."""
    max_gpus: float | None = Field(None, ge=0)
    """Of one run or training: workers times GPUs a worker."""
    database_connections: int = Field(20, ge=2)
    """At a time, of the tenant's own login of the metadata database, where it has one."""


class TenantBudget(_Record):
    """What a month (UTC) may cost, in the currency of the price table."""

    month_soft: float | None = Field(None, gt=0)
    """Above it, runs are warned of."""
    month_hard: float | None = Field(None, gt=0)
    """From it on, no run is planned and no model trained; what runs goes on."""

    @model_validator(mode="after")
    def _ordered(self) -> TenantBudget:
        if self.month_soft and self.month_hard and self.month_hard < self.month_soft:
            raise ValueError(f"month_hard {self.month_hard:g} is below month_soft {self.month_soft:g}")
        return self


class TenantSpec(_Record):
    """One tenant, as its file says."""

    explanations: TenantExplanations = TenantExplanations()
    quota: TenantQuota = TenantQuota()
    budget: TenantBudget = TenantBudget()
    share: TenantShare = TenantShare()


def tenant_file(settings: Settings, tenant: str) -> Path:
    return settings.project / "tenants" / f"{tenant}.yaml"


def load_tenant(settings: Settings, tenant: str) -> TenantSpec:
    """What the tenant says; nothing when it has no file.

    Raises:
        ConfigError: The file is not YAML, or a field is unknown or wrong.
    """
    return _said(tenant_file(settings, tenant))


def _said(path: Path) -> TenantSpec:
    fix = "correct the fields named; docs/pipeline.md lists all of them"
    return read_record(path, TenantSpec, fix=fix, empty={}) or TenantSpec()


def tenant_names(settings: Settings) -> list[str]:
    """Names of the tenants that have a file, sorted."""
    return sorted(_files(settings))


def _files(settings: Settings) -> dict[str, Path]:
    return {path.stem: path for path in (settings.project / "tenants").glob("[a-z]*.yaml")}


def load_shares(settings: Settings) -> tuple[ClusterSpec, dict[str, TenantShare]] | None:
    """The cluster and the share of every tenant that has a file; None where runs are not admitted.

    Raises:
        ConfigError: A file is wrong, or the guarantees add up to more than the cluster has.
    """
    cluster = load_cluster(settings)
    if cluster is None:
        return None
    shares = {name: _said(path).share for name, path in sorted(_files(settings).items())}
    refuse_over_promised(cluster, shares, where=cluster_file(settings))
    return cluster, shares


def require_shares(settings: Settings) -> tuple[ClusterSpec, dict[str, TenantShare]]:
    """`load_shares`, for what makes no sense without a cluster. Raises `ConfigError` also where there is none."""
    found = load_shares(settings)
    if found is None:
        raise ConfigError(
            "is not there, so there is nothing to share out",
            which=str(cluster_file(settings)),
            fix="say what the cluster has; docs/tenancy.md",
        )
    return found


def pools_of(settings: Settings) -> dict[str, Pool]:
    """Every pool that the DAGs of this installation run in: the shared ones, and one for each tenant with `quota.ray_jobs`."""
    pools = dict(POOLS)
    for name in tenant_names(settings):
        slots = load_tenant(settings, name).quota.ray_jobs
        if slots is not None:
            pools[ray_pool(name)] = Pool(slots, True, f"Ray jobs of tenant {name} at a time")
    return pools


def ray_pool(tenant: str) -> str:
    """The pool of a tenant's Ray jobs, where it has one of its own."""
    return f"{RAY_POOL}_{tenant}"


def refuse_over_quota(
    quota: TenantQuota,
    *,
    field: str,
    workers: int,
    gpus_per_worker: float,
    pipeline_file: str,
    tenant_path: Path,
) -> None:
    """Raises `ConfigError`, naming both files, when a pipeline asks for more than its tenant may ever get."""
    gpus = workers * gpus_per_worker
    if quota.max_workers is not None and workers > quota.max_workers:
        asked, limit = f"{workers} workers", f"quota.max_workers {quota.max_workers}"
    elif quota.max_gpus is not None and gpus > quota.max_gpus:
        asked, limit = f"{gpus:g} GPUs", f"quota.max_gpus {quota.max_gpus:g}"
    else:
        return
    raise ConfigError(
        f"asks for {asked}, above the tenant's {limit} ({tenant_path})",
        which=f"{pipeline_file}: {field}",
        fix="ask for less, or have the tenant's quota changed",
    )


def refuse_out_of_bounds(
    tenant: TenantSpec, expire_days: int, *, pipeline_file: str, tenant_path: Path
) -> None:
    """Raises `ConfigError`, naming both files, when a pipeline keeps its data shorter or longer than it may."""
    low, high = tenant.explanations.min_expire_days, tenant.explanations.max_expire_days
    if low is not None and expire_days < low:
        bound = f"min_expire_days {low}"
    elif high is not None and expire_days > high:
        bound = f"max_expire_days {high}"
    else:
        return
    raise ConfigError(
        f"is {expire_days}, outside the tenant's {bound} ({tenant_path})",
        which=f"{pipeline_file}: explanations.expire_days",
        fix="change expire_days, or have the tenant's bound changed",
    )
