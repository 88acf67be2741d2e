"""Write a random secret into each file of `secrets/` that is missing (`make secrets`); what is there stays."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path

NAMES = (
    "postgres_password",
    "airflow_secret_key",
    "airflow_jwt_secret",
    "airflow_fernet_key",
    "ray_auth_token",
    "mlflow_password",
    "mlflow_service_password",
    "mlflow_secret_key",
    "s3_access_key",
    "s3_secret_key",
    "grafana_password",
)


def make(folder: Path) -> list[str]:
    """Names of the secrets that were made.

    Containers of several users read the files, so that anybody may, inside a folder that only its owner may enter.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    made = []
    for name in NAMES:
        key = base64.urlsafe_b64encode(os.urandom(32)).decode()
        value = key if name == "airflow_fernet_key" else secrets.token_hex(24)
        try:
            with (folder / name).open("x") as file:
                file.write(value)
        except FileExistsError:
            continue
        (folder / name).chmod(0o444)
        made.append(name)
    return made


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "secrets")
    print(f"made {', '.join(made)} in {target}/" if (made := make(target)) else f"{target}/ is complete")
