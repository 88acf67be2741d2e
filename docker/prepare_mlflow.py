"""Make the user of Penstock's own programs in MLflow, or bring its password and rights in line with the secrets."""

from __future__ import annotations

import sys

from tasks.core import Settings
from tasks.core.errors import ConfigError, PenstockError
from tasks.core.mlflow_login import (
    ADMIN_PASSWORD,
    PASSWORD,
    SERVICE_USER,
    USER,
    admin_login,
    mlflow_login,
)
from tasks.core.mlflow_users import ensure_service_user


def main() -> int:
    settings = Settings.from_environment()
    try:
        admin, login = admin_login(), mlflow_login()
        if admin is None or login is None or login[0] != SERVICE_USER:
            raise ConfigError(
                f"are not those of MLflow's admin and of {SERVICE_USER}",
                which=f"{ADMIN_PASSWORD}, {USER} and {PASSWORD}",
                fix="set them",
            )
        made = ensure_service_user(settings.mlflow_url, admin=admin, password=login[1])
    except PenstockError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        f"{settings.mlflow_url}: the user {SERVICE_USER} {'has what it needs now' if made else 'is as it was'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
