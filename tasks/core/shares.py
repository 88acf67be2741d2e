"""What a cluster has, and which part of it a tenant is promised: `tenants/_cluster.yaml` and `share:` of a tenant's file.

```yaml
# tenants/_cluster.yaml: with this file runs are admitted before they take workers; without it nothing is
gpus: 64
cpus: 512
memory_gib: 4096         # left out: memory is not counted
nodes:                   # left out: nothing is known of nodes, and only sums are checked
  - {count: 8, gpus: 8, cpus: 64, memory_gib: 512}

# tenants/<tenant>.yaml
share:
  guarantee: {gpus: 8}   # a resource left out: the same share of the cluster as the largest that is named
  borrow: {gpus: 16}     # at most so much above it, of what others leave idle; left out: all of it
  weight: 2
  priority: 1
  max_runs: 4
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.errors import ConfigError
from tasks.core.settings import Settings
from tasks.core.tenant_files import read_record

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_ROUNDING = 1e-9


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(NamedTuple):
    """An amount of each resource that is shared out."""

    gpus: float = 0.0
    cpus: float = 0.0
    memory_gib: float = 0.0

    def times(self, count: float) -> Resources:
        return Resources(self.gpus * count, self.cpus * count, self.memory_gib * count)

    def plus(self, other: Resources) -> Resources:
        return Resources(self.gpus + other.gpus, self.cpus + other.cpus, self.memory_gib + other.memory_gib)

    def within(self, limit: Resources) -> bool:
        """Whether no resource is above the limit's."""
        return all(
            mine <= theirs + _ROUNDING * max(1.0, theirs) for mine, theirs in zip(self, limit, strict=True)
        )

    def dominant(self, whole: Resources) -> float:
        """The largest share that this is of any resource of `whole`."""
        return max(
            (mine / theirs for mine, theirs in zip(self, whole, strict=True) if theirs > 0), default=0.0
        )

    def shown(self) -> str:
        """What there is of it, in words."""
        units = (("GPU", "GPUs"), ("CPU", "CPUs"), ("GiB of memory", "GiB of memory"))
        parts = [
            f"{value:g} {one if value == 1 else many}"
            for value, (one, many) in zip(self, units, strict=True)
            if value
        ]
        return ", ".join(parts) or "nothing"


class PartOf(_Record):
    """Some resources by name; what is left out is for the reader to fill in."""

    gpus: _Amount | None = None
    cpus: _Amount | None = None
    memory_gib: _Amount | None = None


class NodeType(_Record):
    """Nodes that are alike."""

    count: int = Field(1, ge=1)
    gpus: _Amount = 0.0
    cpus: _Amount
    memory_gib: _Amount = 0.0


class ClusterSpec(_Record):
    """The cluster that the tenants share, and how it is shared."""

    gpus: _Amount = 0.0
    cpus: float = Field(gt=0, allow_inf_nan=False)
    memory_gib: _Amount | None = None
    """None: memory is not counted."""
    nodes: tuple[NodeType, ...] = ()
    beat_s: float = Field(5.0, gt=0)
    """A run tells that it lives, and asks for its width, at least so often."""
    lease_s: float = Field(60.0, gt=0)
    """A run that has not been heard of for so long is taken for dead, and what it held is free."""
    give_back_s: float = Field(900.0, gt=0)
    """What a run does not give back counts as its own for so long: more than a shard takes."""
    ageing_s: float = Field(600.0, gt=0)
    """A step of priority is worth so many seconds of waiting."""
    patience_s: float = Field(3600.0, gt=0)
    """A run that has waited longer gets its first workers before anything more is lent."""
    gang_wait_s: float = Field(86_400.0, gt=0)
    """A training that has waited longer for its workers ends, and says for what."""
    autoscaled: bool = False
    """Whether Ray's autoscaler brings nodes until there is so much; it is told what is asked for."""

    @property
    def resources(self) -> Resources:
        return Resources(self.gpus, self.cpus, self.memory_gib or 0.0)

    def at_most(self, there: Resources) -> ClusterSpec:
        """The same, no larger than `there`; of memory it counts what it counted."""
        gpus, cpus = min(self.gpus, there.gpus), min(self.cpus, there.cpus)
        memory = None if self.memory_gib is None else min(self.memory_gib, there.memory_gib)
        return self.model_copy(update={"gpus": gpus, "cpus": cpus, "memory_gib": memory})

    def counted(self, amount: Resources) -> Resources:
        """`amount` without what this cluster does not count."""
        if self.memory_gib is not None or not amount.memory_gib:
            return amount
        return Resources(amount.gpus, amount.cpus)


class TenantShare(_Record):
    """What a tenant is promised of the cluster, and how it stands when more is there."""

    guarantee: PartOf = PartOf()
    """Its own whenever it asks for it, at the latest when borrowers have finished the shards they are at."""
    borrow: PartOf | None = None
    """The most above the guarantee; a resource left out, or None: no limit but the cluster."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Idle capacity goes to the lowest dominant share over weight."""
    priority: int = Field(0, ge=-10, le=10)
    """Idle capacity goes to a higher priority first; runs of one tenant start in the order of priority and age."""
    max_runs: int | None = Field(None, ge=1)
    """Runs with workers at a time."""

    def guaranteed(self, cluster: ClusterSpec) -> Resources:
        """The guarantee with what it leaves out: the same share as the largest that is named."""
        whole, named = cluster.resources, self.guarantee
        pairs = list(zip((named.gpus, named.cpus, named.memory_gib), whole, strict=True))
        share = max((said / there for said, there in pairs if said is not None and there > 0), default=0.0)
        return cluster.counted(Resources(*(there * share if said is None else said for said, there in pairs)))

    def most(self, cluster: ClusterSpec) -> Resources:
        """What the tenant may have at all."""
        whole = cluster.resources
        if self.borrow is None:
            return whole
        guarantee = self.guaranteed(cluster)
        said = (self.borrow.gpus, self.borrow.cpus, self.borrow.memory_gib)
        return Resources(
            *(
                there if more is None else min(there, own + more)
                for there, own, more in zip(whole, guarantee, said, strict=True)
            )
        )


def cluster_file(settings: Settings) -> Path:
    return settings.project / "tenants" / "_cluster.yaml"


def load_cluster(settings: Settings) -> ClusterSpec | None:
    """The cluster; None where the installation has no such file, and so no admission.

    Raises:
        ConfigError: The file is not YAML, or a field is missing, unknown or wrong.
    """
    return read_record(
        cluster_file(settings), ClusterSpec, fix="correct the fields named; docs/tenancy.md lists them"
    )


def refuse_over_promised(cluster: ClusterSpec, shares: Mapping[str, TenantShare], *, where: Path) -> None:
    """Raises `ConfigError`, with every tenant's figure, when guarantees add up to more than there is."""
    promised = {name: share.guaranteed(cluster) for name, share in sorted(shares.items())}
    for index, (unit, there) in enumerate(zip(Resources._fields, cluster.resources, strict=True)):
        total = sum(amount[index] for amount in promised.values())
        if total > there * (1 + _ROUNDING):
            parts = ", ".join(
                f"{name} {amount[index]:g}" for name, amount in promised.items() if amount[index]
            )
            raise ConfigError(
                f"has {unit} {there:g}, and the tenants' guarantees add up to {total:g}: {parts}",
                which=str(where),
                fix="lower a share.guarantee, or add nodes and say so in this file",
            )
