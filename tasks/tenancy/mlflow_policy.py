"""Which of MLflow's experiments and registered models are whose, and what follows for the grants of a tenant's user. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tasks.core.mlflow_login import tenant_user
from tasks.core.mlflow_users import EXPERIMENT, MODEL, Grant, Resource


@dataclass(frozen=True)
class Owners:
    """What names say of owners."""

    tenants: frozenset[str]
    pipelines: Mapping[str, str]
    """Tenant by the name that a pipeline's model and experiment have (`PipelineSpec.model_name`)."""
    unread: frozenset[str] = frozenset()
    """Pipelines whose file cannot be read, so that nobody knows their tenant."""

    def of(self, name: str) -> str | None:
        """The tenant; None where it is nobody's.

        With `acme.` begins what is acme's, whether there is a pipeline of that name yet or not.
        """
        if name in self.pipelines:
            return self.pipelines[name]
        tenant, dot, _ = name.partition(".")
        return tenant if dot and tenant in self.tenants else None

    def unknown(self, name: str) -> bool:
        return name in self.unread


@dataclass(frozen=True)
class Changes:
    """What brings a user's grants in line; `taken` comes first, since a resource has one grant."""

    taken: tuple[Grant, ...]
    given: tuple[Grant, ...]


def changes(tenant: str, resources: Iterable[Resource], owners: Owners, held: Collection[Grant]) -> Changes:
    """To manage all that is the tenant's, and nothing else of these kinds, nor all of any kind.

    Args:
        tenant: Whose user it is.
        resources: Every experiment and model of MLflow.
        owners: Whose they are.
        held: What the user was granted.
    """
    known = {(item.kind, item.resource): item for item in resources}
    user = tenant_user(tenant)
    wanted = {Grant(user, *key) for key, item in known.items() if owners.of(item.name) == tenant}

    def too_much(grant: Grant) -> bool:
        if grant.resource == "*":
            return True
        found = known.get((grant.kind, grant.resource))
        return grant.kind in (EXPERIMENT, MODEL) and not (found and owners.unknown(found.name))

    surplus = set(held) - wanted
    return Changes(
        tuple(sorted(filter(too_much, surplus))),
        tuple(sorted(wanted - set(held))),
    )
