"""A tenant's training and promotion, from its own snapshot to the champion's alias, with that tenant's user of MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from wiring_support import Chain, edit, install, pipeline_file, step, train_here

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import ConfigError
from tasks.core.mlflow_login import Login, mlflow_login
from tasks.local import credentials
from tasks.local.services import mlflow_admin
from tasks.registry.mlflow_api import MlflowRegistry

NAME = "amber.toy"


class Once(Chain):
    """Each step once."""

    def __call__(self, step: str, **arguments: Any) -> dict[str, Any]:
        return wiring.step(step)(self.settings, "toy", **arguments)


@pytest.fixture(scope="module")
def site(
    with_logins: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, dict[str, Login]]]:
    """The toy pipeline is amber's; teal has none: names of their own on the MLflow that is shared. The logins by who they are of."""
    root = tmp_path_factory.mktemp("site")
    settings = install(root, with_logins.mlflow_url)
    edit(pipeline_file(settings), {"name: toy\n": "name: toy\ntenant: amber\n"})
    (settings.project / "tenants").mkdir()
    for tenant in ("amber", "teal"):
        (settings.project / "tenants" / f"{tenant}.yaml").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.training.train", train_here(), raising=False)
        user, password = mlflow_admin(with_logins)
        patch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", user)
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
        wiring.sync_mlflow(settings, root / "logins")
        logins = {"service": mlflow_login(credentials(with_logins))}
        for tenant in ("amber", "teal"):
            lines = (root / "logins" / f"{tenant}.env").read_text().splitlines()
            logins[tenant] = mlflow_login(dict(line.split("=", 1) for line in lines))
        yield settings, {name: login for name, login in logins.items() if login}


def log_in(monkeypatch: pytest.MonkeyPatch, login: Login) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", login[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", login[1])


def aliases(settings: Settings) -> dict[str, int]:
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        return mlflow.aliases(NAME)


def test_a_tenants_own_login_trains_registers_promotes_and_puts_aliases_right(
    site: tuple[Settings, dict[str, Login]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, logins = site
    chain = Once(settings)
    log_in(monkeypatch, logins["amber"])
    challenger = chain.train()
    assert aliases(settings) == {"challenger": 1}
    assert not chain.release(challenger)["alias_pending"]
    assert aliases(settings) == {"champion": 1}
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        mlflow.delete_alias(NAME, "champion")
    step(settings, "maintain")
    assert aliases(settings) == {"champion": 1}

    log_in(monkeypatch, logins["service"])
    later = chain.train(
        train_last_day="2024-02-04", validation_first_day="2024-02-05", validation_last_day="2024-02-11"
    )
    chain("canary_model", **later)
    chain("promote_model", version=2, actor="ada", reason="better", expected=1)
    log_in(monkeypatch, logins["amber"])
    assert aliases(settings) == {"champion": 2}, "what the platform moves, the tenant sees"
    chain("rollback_model", expected=2, actor="ada", reason="worse")
    assert aliases(settings) == {"champion": 1}, "and moves itself"


def test_with_anothers_login_nothing_is_trained_and_the_error_says_who_may_not(
    site: tuple[Settings, dict[str, Login]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, logins = site
    log_in(monkeypatch, logins["teal"])
    chain = Once(settings)
    later = {
        "train_last_day": "2024-02-11",
        "validation_first_day": "2024-02-12",
        "validation_last_day": "2024-02-18",
    }
    with pytest.raises(
        ConfigError, match=r"does not permit this to penstock_teal(?s:.*)penstock tenancy mlflow"
    ):
        chain.train(**later)
    with pytest.raises(ConfigError, match="does not permit this to penstock_teal"):
        aliases(settings)
