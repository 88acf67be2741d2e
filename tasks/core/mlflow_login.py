"""How programs log in to an MLflow that asks for a login, and what they say when it refuses them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tasks.core.errors import ConfigError, LoginRefused

Login = tuple[str, str]
"""User and password."""

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
"""The variables that MLflow's own client reads as well."""
ADMIN_USER, ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD"
"""The variables by which MLflow's server makes its first user."""
ADMIN = "admin"
SERVICE_USER = "penstock"
"""Who Penstock's own programs are."""
_TENANT_USER = "penstock_{}"


def tenant_user(tenant: str) -> str:
    """The user of a tenant's programs; its login of PostgreSQL has the same name."""
    return _TENANT_USER.format(tenant)


def mlflow_login(environ: Mapping[str, str] | None = None) -> Login | None:
    """The login of this program; None where not both are set, as for an MLflow that asks for none."""
    env = os.environ if environ is None else environ
    user, password = env.get(USER), env.get(PASSWORD)
    return (user, password) if user and password else None


def admin_login(environ: Mapping[str, str] | None = None) -> Login | None:
    """The login of MLflow's admin; None where its password is not set."""
    env = os.environ if environ is None else environ
    password = env.get(ADMIN_PASSWORD)
    return (env.get(ADMIN_USER) or ADMIN, password) if password else None


def login_refused(url: str, *, user: str | None) -> LoginRefused:
    """MLflow at `url` answered 401 to `user`, or to nobody."""
    return LoginRefused(
        f"MLflow refuses the password of {user}" if user else "MLflow asks for a login, and none is given",
        which=url,
        fix=f"set {USER} and {PASSWORD} for this process; the password of {SERVICE_USER} is in the file "
        "mlflow_service_password of .penstock (`make up`), .penstock/production/secrets or secrets (docker-compose.yml)",
    )


def admin_refused(url: str, *, user: str | None) -> LoginRefused:
    """MLflow at `url` answered 401 to its admin."""
    return LoginRefused(
        f"MLflow refuses the password of its admin {user}",
        which=url,
        fix=f"set {ADMIN_PASSWORD} for this process, and {ADMIN_USER} where it is not {ADMIN}; of `make up` and "
        "docker-compose.yml the file mlflow_password holds the password, and has to be what MLflow was given last",
    )


def not_permitted(url: str, *, user: str | None) -> ConfigError:
    """MLflow at `url` answered 403 to a user whom it knows."""
    return ConfigError(
        f"MLflow does not permit this to {user or 'a user without a login'}",
        which=url,
        fix=f"let MLflow's admin grant it (`penstock tenancy mlflow`), or set {USER} and {PASSWORD} to a user who may",
    )
