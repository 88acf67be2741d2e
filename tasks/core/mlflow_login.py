"""How programs log in to an MLflow that asks for a login, and what they say when it refuses them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tasks.core.errors import ConfigError

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
"""The variables that MLflow's own client reads as well."""


def mlflow_login(environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """User and password; None where not both are set, as for an MLflow that asks for none."""
    env = os.environ if environ is None else environ
    user, password = env.get(USER), env.get(PASSWORD)
    return (user, password) if user and password else None


def login_refused(url: str, *, user: str | None) -> ConfigError:
    """MLflow at `url` answered 401 to `user`, or to nobody."""
    return ConfigError(
        f"MLflow refuses the password of {user}" if user else "MLflow asks for a login, and none is given",
        which=url,
        fix=f"set {USER} and {PASSWORD} for this process; the admin's password is in the file mlflow_password of "
        ".penstock (`make up`), .penstock/production/secrets or secrets (docker-compose.yml)",
    )


def not_permitted(url: str, *, user: str | None) -> ConfigError:
    """MLflow at `url` answered 403 to a user whom it knows."""
    return ConfigError(
        f"MLflow does not permit this to {user or 'a user without a login'}",
        which=url,
        fix=f"let MLflow's admin grant it, or set {USER} and {PASSWORD} to a user who may",
    )
