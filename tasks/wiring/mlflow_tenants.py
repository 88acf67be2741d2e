"""A login of MLflow's for each tenant, with rights on the experiments and models of its own pipelines."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.core import Settings
from tasks.core.errors import ConfigError, NotFound
from tasks.core.mlflow_login import (
    ADMIN,
    ADMIN_PASSWORD,
    ADMIN_USER,
    PASSWORD,
    USER,
    Login,
    admin_login,
    mlflow_login,
    tenant_user,
)
from tasks.core.mlflow_users import EXPERIMENT, MANAGE, MODEL, Grant, Held, MlflowUsers, lets_in
from tasks.core.spec import PipelineSpec
from tasks.core.tenants import tenant_file, tenant_names
from tasks.local.parts import write_for_owner
from tasks.tenancy.mlflow_policy import Changes, Owners, changes
from tasks.wiring.context import readable_pipelines

_WORD = {EXPERIMENT: "experiment", MODEL: "model"}


def sync_mlflow(
    settings: Settings, to: Path, *, tenants: Sequence[str] = (), new_passwords: bool = False
) -> dict[str, Any]:
    """Make each tenant's user, its experiments and models, and its grants what the files say; may be run again and again.

    A login is written into `<tenant>.env` in the folder `to`, for its owner alone, before MLflow is told of it.

    Args:
        settings: This installation.
        to: The folder of the logins.
        tenants: Only these; none: every tenant that has a file.
        new_passwords: Give their users new ones.

    Returns:
        `tenants`: what was made, given and taken of each; `broken`: pipelines that cannot be read, whose experiments and
        models stay as they are.

    Raises:
        NotFound: A tenant has no file.
        ConfigError: The login is not that of MLflow's admin, or a user exists whose password is not in its file.
        ServiceUnavailable: MLflow does not answer.
    """
    names = _asked(settings, tenants)
    specs, broken = readable_pipelines(settings)
    owners = Owners(
        frozenset(tenant_names(settings)),
        {spec.model_name: spec.tenant for spec in specs},
        frozenset(item["pipeline"] for item in broken),
    )
    rows = []
    with MlflowUsers(settings.mlflow_url, _admin(settings)) as users:
        made = {name: _make(users, [spec for spec in specs if spec.tenant == name]) for name in names}
        resources = users.resources()
        shown = {(item.kind, item.resource): item.name for item in resources}
        for name in names:
            state, held = _log_in(users, name, to / f"{name}.env", new_password=new_passwords)
            followed = changes(name, resources, owners, held.grants)
            _follow(users, tenant_user(name), held, followed)
            rows.append(
                {
                    "tenant": name,
                    "user": tenant_user(name),
                    "login": state,
                    "file": str(to / f"{name}.env"),
                    "made": made[name],
                    "given": [_said(grant, shown) for grant in followed.given],
                    "taken": [_said(grant, shown) for grant in followed.taken]
                    + (["to be MLflow's admin"] if held.is_admin else []),
                    "roles": sorted(held.roles),
                }
            )
    return {"tenants": rows, "broken": broken}


def _asked(settings: Settings, tenants: Sequence[str]) -> list[str]:
    known = tenant_names(settings)
    for name in tenants:
        if name not in known:
            raise NotFound(
                f"is no tenant: there is no {tenant_file(settings, name)}",
                which=name,
                fix=f"use one of: {', '.join(known) or 'none yet'}",
            )
    return sorted(set(tenants)) or known


def _admin(settings: Settings) -> Login:
    """Of the environment; where that has none, of the MLflow that `penstock up` has started."""
    from tasks.local.services import local_settings, mlflow_admin

    if found := admin_login():
        return found
    if settings.mlflow_url == local_settings(settings).mlflow_url:
        return mlflow_admin(settings)
    raise ConfigError(
        "makes users for its admin alone, and the admin's password is not set",
        which=f"MLflow at {settings.mlflow_url}",
        fix=f"set {ADMIN_PASSWORD}, and {ADMIN_USER} where it is not {ADMIN}",
    )


def _make(users: MlflowUsers, specs: Sequence[PipelineSpec]) -> list[str]:
    """What pipelines train and register into, before anybody else takes its name."""
    from tasks.registry.registered_model import ensure_model
    from tasks.training.experiments import ensure_experiment

    made = []
    for spec in specs:
        if ensure_experiment(users, spec).made:
            made.append(f"experiment {spec.model_name}")
        if ensure_model(users, spec):
            made.append(f"model {spec.model_name}")
    return made


def _log_in(users: MlflowUsers, tenant: str, path: Path, *, new_password: bool) -> tuple[str, Held]:
    """How it comes that the tenant's user logs in with what the file says; and what it was granted."""
    user = tenant_user(tenant)
    held = users.held_by(user)
    login = _read(path, user)
    if held is None:
        users.ensure(user, (login or _write(path, user))[1])
        return "made", Held(frozenset(), frozenset())
    if new_password:
        users.set_password(user, _write(path, user)[1])
        return "new password", held
    if login is None or not lets_in(users.public_url, login):
        raise ConfigError(
            f"exists in MLflow, and {'its password is another' if login else 'nobody knows its password'}",
            which=f"{user} ({path})",
            fix=f"write {USER}={user} and {PASSWORD}=... into that file, or make a new one with --new-passwords",
        )
    return "as it was", held


def _read(path: Path, user: str) -> Login | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    login = mlflow_login(dict(line.partition("=")[::2] for line in lines))
    if login is None or login[0] != user:
        raise ConfigError(
            f"holds no login of {user}",
            which=str(path),
            fix=f"remove it, or write {USER}={user} and {PASSWORD}=... into it",
        )
    return login


def _write(path: Path, user: str) -> Login:
    login = user, secrets.token_hex(24)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_for_owner(path, f"{USER}={login[0]}\n{PASSWORD}={login[1]}\n")
    return login


def _follow(users: MlflowUsers, user: str, held: Held, followed: Changes) -> None:
    if held.is_admin:
        users.make_no_admin(user)
    for grant in followed.taken:
        users.revoke(grant)
    for grant in followed.given:
        users.grant(grant)


def _said(grant: Grant, names: Mapping[tuple[str, str], str]) -> str:
    name = names.get((grant.kind, grant.resource), grant.resource)
    return f"{_WORD.get(grant.kind, grant.kind)} {name}" + (
        "" if grant.permission == MANAGE else f" ({grant.permission})"
    )
