"""`penstock tenancy mlflow` and the user of Penstock's programs: made once, put right again, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from share_files import say
from tenancy_support import pipeline_of
from toy_installation import install_toy
from typer.testing import CliRunner

from tasks import wiring
from tasks.cli.app import app
from tasks.core import Settings, load_pipeline
from tasks.core.errors import ConfigError, LoginRefused, NotFound, ServiceUnavailable
from tasks.core.mlflow_login import SERVICE_USER, Login, mlflow_login, tenant_user
from tasks.core.mlflow_rest import MlflowRest
from tasks.core.mlflow_users import (
    EXPERIMENT,
    MODEL,
    SERVICE_GRANTS,
    Grant,
    Held,
    MlflowUsers,
    Resource,
    ensure_service_user,
    lets_in,
)
from tasks.local import credentials
from tasks.local.services import mlflow_admin
from tasks.registry.registered_model import ensure_model
from tasks.tenancy.mlflow_policy import Owners, changes
from tasks.training.experiments import ensure_experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses: the MLflow server is shared."""
    return "t" + "".join(c for c in request.node.name.lower() if c.isalnum())[-30:]


@pytest.fixture
def here(with_logins: Settings, tmp_path: Path, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation elsewhere, with one tenant and its pipeline, that was told the admin of the running MLflow."""
    settings = dataclasses.replace(install_toy(tmp_path), mlflow_url=with_logins.mlflow_url)
    say(settings, None, **{tenant: "{}"})
    pipeline_of(settings, tenant, "{}")
    user, password = mlflow_admin(with_logins)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", user)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
    return settings


@pytest.fixture
def admin(with_logins: Settings) -> Iterator[MlflowUsers]:
    with MlflowUsers(with_logins.mlflow_url, mlflow_admin(with_logins)) as users:
        yield users


@pytest.fixture
def service(with_logins: Settings) -> Login:
    found = mlflow_login(credentials(with_logins))
    assert found is not None
    return found


def login_in(path: Path) -> Login:
    found = mlflow_login(dict(line.split("=", 1) for line in path.read_text().splitlines()))
    assert found is not None
    return found


def own(admin: MlflowUsers, tenant: str, *names: str) -> frozenset[Grant]:
    """To manage the experiments and models of these names."""
    return frozenset(
        Grant(tenant_user(tenant), item.kind, item.resource)
        for item in admin.resources()
        if item.name in names
    )


def held(admin: MlflowUsers, tenant: str) -> Held:
    found = admin.held_by(tenant_user(tenant))
    assert found is not None
    return found


def test_a_tenants_login_is_made_once_and_told_to_a_file_of_its_owner_alone(
    here: Settings, with_logins: Settings, admin: MlflowUsers, tenant: str, tmp_path: Path
) -> None:
    name = f"{tenant}.{tenant}_toy"
    arguments = ["tenancy", "mlflow", "--to", str(tmp_path / "logins")]
    first = CliRunner().invoke(app, [*arguments, "--json"], env=here.as_environment())
    assert first.exit_code == 0, first.output
    (row,) = json.loads(first.stdout)["tenants"]
    file = tmp_path / "logins" / f"{tenant}.env"
    assert row == {
        "tenant": tenant,
        "user": f"penstock_{tenant}",
        "login": "made",
        "file": str(file),
        "made": [f"experiment {name}", f"model {name}"],
        "given": [f"experiment {name}", f"model {name}"],
        "taken": [],
        "roles": [],
    }
    login = login_in(file)
    assert file.stat().st_mode & 0o777 == 0o600 and lets_in(here.mlflow_url, login)
    assert held(admin, tenant) == Held(own(admin, tenant, name), frozenset())
    assert len(own(admin, tenant, name)) == 2

    again = CliRunner().invoke(app, arguments, env=here.as_environment())
    assert again.exit_code == 0 and "as it was" in again.stdout
    (row,) = wiring.sync_mlflow(here, tmp_path / "logins")["tenants"]
    assert not [row[part] for part in ("made", "given", "taken") if row[part]] and login_in(file) == login
    for said in (first, again):
        assert login[1] not in said.output
        assert mlflow_admin(with_logins)[1] not in said.output


def test_new_passwords_end_the_old_ones(here: Settings, tenant: str, tmp_path: Path) -> None:
    file = tmp_path / f"{tenant}.env"
    wiring.sync_mlflow(here, tmp_path)
    before = login_in(file)
    (row,) = wiring.sync_mlflow(here, tmp_path, new_passwords=True)["tenants"]
    assert row["login"] == "new password" and login_in(file) != before
    assert lets_in(here.mlflow_url, login_in(file)) and not lets_in(here.mlflow_url, before)


def test_what_is_made_later_is_the_tenants_too_whoever_makes_it(
    here: Settings,
    admin: MlflowUsers,
    service: Login,
    tenant: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = load_pipeline(here, f"{tenant}_toy").model_copy(update={"name": "later"})
    with MlflowRest(here.mlflow_url, login=service) as ours:
        assert ensure_experiment(ours, spec).made and ensure_model(ours, spec), "nobody has a user yet"
        wiring.sync_mlflow(here, tmp_path)
        first = f"{tenant}.{tenant}_toy"
        assert held(admin, tenant).grants == own(admin, tenant, first, f"{tenant}.later")
        ours.call("DELETE", "registered-models/delete", json={"name": f"{tenant}.later"})
        assert ensure_model(ours, spec), "MLflow forgets grants with the model"
        newest = spec.model_copy(update={"name": "newest"})
        assert ensure_experiment(ours, newest).made and not ensure_experiment(ours, newest).made
    with MlflowRest(here.mlflow_url, login=login_in(tmp_path / f"{tenant}.env")) as theirs:
        assert ensure_model(theirs, newest) and not ensure_model(theirs, newest)
    names = (first, f"{tenant}.later", f"{tenant}.newest")
    assert held(admin, tenant).grants == own(admin, tenant, *names)
    assert len(own(admin, tenant, *names)) == 6 and not caplog.records


def test_rights_that_a_tenant_should_not_have_are_taken_and_those_it_lacks_given(
    here: Settings, admin: MlflowUsers, service: Login, tenant: str, tmp_path: Path
) -> None:
    user, name = tenant_user(tenant), f"{tenant}.{tenant}_toy"
    wiring.sync_mlflow(here, tmp_path)
    right = held(admin, tenant)
    with MlflowRest(here.mlflow_url, login=service) as ours:
        ours.call("POST", "registered-models/create", json={"name": f"x{tenant}"})
    mine = Grant(user, MODEL, name)
    admin.revoke(mine)
    for grant in (
        Grant(user, MODEL, name, "READ"),
        Grant(user, MODEL, f"x{tenant}", "READ"),
        Grant(user, EXPERIMENT, "0", "EDIT"),
        Grant(user, EXPERIMENT, "*", "READ"),
        Grant(user, "run", "*"),
    ):
        admin.grant(grant)
    admin.call("PATCH", "users/update-admin", json={"username": user, "is_admin": True})
    role = admin.call(
        "POST", "roles/create", version="3.0", json={"workspace": "default", "name": f"r{tenant}"}
    )
    readable = {"resource_type": "prompt", "resource_pattern": "*", "permission": "READ"}
    role_id = role["role"]["id"]
    admin.call("POST", "roles/permissions/add", version="3.0", json={"role_id": role_id, **readable})
    admin.call("POST", "roles/assign", version="3.0", json={"role_id": role_id, "username": user})
    (row,) = wiring.sync_mlflow(here, tmp_path)["tenants"]
    assert row["given"] == [f"model {name}"] and row["roles"] == [f"r{tenant}"]
    assert row["taken"] == [
        "experiment * (READ)",
        "experiment Default (EDIT)",
        f"model {name} (READ)",
        f"model x{tenant} (READ)",
        "run *",
        "to be MLflow's admin",
    ]
    assert held(admin, tenant) == Held(right.grants, frozenset({f"r{tenant}"}))


def test_a_pipeline_that_cannot_be_read_is_told_and_stays_as_it_is(
    here: Settings, admin: MlflowUsers, tenant: str, tmp_path: Path
) -> None:
    wiring.sync_mlflow(here, tmp_path)
    before = held(admin, tenant)
    (here.pipelines_dir / f"{tenant}_toy" / "pipeline.yaml").write_text("name: [")
    found = wiring.sync_mlflow(here, tmp_path)
    assert [item["pipeline"] for item in found["broken"]] == [f"{tenant}_toy"]
    assert held(admin, tenant) == before and not found["tenants"][0]["taken"]


def test_whose_a_name_is_and_what_follows() -> None:
    owners = Owners(
        frozenset({"acme", "default"}), {"churn": "default", "acme.toy": "acme"}, frozenset({"torn"})
    )
    names = ("churn", "acme.toy", "acme.next", "scratch", "Default", "red.toy", "torn")
    assert [owners.of(name) for name in names] == ["default", "acme", "acme", None, None, None, None]
    resources = [Resource(EXPERIMENT, str(number), name) for number, name in enumerate(names)]
    user = tenant_user("default")
    had = {Grant(user, EXPERIMENT, number) for number in ("3", "6", "99")} | {Grant(user, "prompt", "p")}
    followed = changes("default", resources, owners, had)
    assert followed.given == (Grant(user, EXPERIMENT, "0"),)
    assert followed.taken == (Grant(user, EXPERIMENT, "3"), Grant(user, EXPERIMENT, "99"))
    settled = had - set(followed.taken) | set(followed.given)
    assert changes("default", resources, owners, settled) == changes("acme", [], owners, [])


# -- what is refused


def test_a_name_that_is_no_tenants_is_told_with_those_there_are(
    here: Settings, tenant: str, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=rf"nobody: is no tenant.*nobody\.yaml\n.*use one of: {tenant}"):
        wiring.sync_mlflow(here, tmp_path / "logins", tenants=["nobody"])
    assert not (tmp_path / "logins").exists()


def test_only_the_tenants_that_were_named_are_touched(
    here: Settings, admin: MlflowUsers, tenant: str, tmp_path: Path
) -> None:
    say(here, None, other="{}")
    (row,) = wiring.sync_mlflow(here, tmp_path, tenants=[tenant])["tenants"]
    assert row["tenant"] == tenant and admin.held_by("penstock_other") is None


def test_an_mlflow_that_is_away_is_named(here: Settings, tmp_path: Path) -> None:
    away = dataclasses.replace(here, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    with pytest.raises(ServiceUnavailable, match=r"does not accept connections(?s:.*)make up"):
        wiring.sync_mlflow(away, tmp_path)


def test_the_admins_login_is_needed_and_no_others(
    here: Settings, service: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "another-password")
    with pytest.raises(LoginRefused, match=r"password of its admin admin(?s:.*)MLFLOW_AUTH_ADMIN_PASSWORD"):
        wiring.sync_mlflow(here, tmp_path)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", service[0])
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", service[1])
    with pytest.raises(ConfigError, match=r"penstock: is not an admin of MLflow's(?s:.*)Fix: take the login"):
        wiring.sync_mlflow(here, tmp_path)
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD")
    with pytest.raises(ConfigError, match=r"password is not set(?s:.*)Fix: set MLFLOW_AUTH_ADMIN_PASSWORD"):
        wiring.sync_mlflow(here, tmp_path)


def test_of_the_mlflow_of_penstock_up_the_admin_is_known(with_logins: Settings, tmp_path: Path) -> None:
    assert wiring.sync_mlflow(with_logins, tmp_path / "logins")["broken"] == []


def test_a_user_whose_password_is_another_or_known_to_nobody_is_named_with_what_to_do(
    here: Settings, tenant: str, tmp_path: Path
) -> None:
    wiring.sync_mlflow(here, tmp_path)
    file = tmp_path / f"{tenant}.env"
    kept = file.read_text()
    file.write_text(kept.replace(login_in(file)[1], "a-password-of-before"))
    with pytest.raises(
        ConfigError, match=rf"penstock_{tenant} .*its password is another(?s:.*)--new-passwords"
    ):
        wiring.sync_mlflow(here, tmp_path)
    with pytest.raises(ConfigError, match=r"nobody knows its password(?s:.*)--new-passwords"):
        wiring.sync_mlflow(here, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    file.write_text("MLFLOW_TRACKING_USERNAME=penstock_other\nMLFLOW_TRACKING_PASSWORD=x\n")
    with pytest.raises(ConfigError, match=rf"{tenant}\.env: holds no login of penstock_{tenant}"):
        wiring.sync_mlflow(here, tmp_path)
    file.write_text(kept)
    (row,) = wiring.sync_mlflow(here, tmp_path)["tenants"]
    assert row["login"] == "as it was"


def test_the_user_of_penstocks_programs_has_what_it_needs_and_gets_it_back(
    with_logins: Settings, admin: MlflowUsers, service: Login
) -> None:
    url, right = with_logins.mlflow_url, Held(SERVICE_GRANTS, frozenset())

    def ensured() -> bool:
        return ensure_service_user(url, admin=mlflow_admin(with_logins), password=service[1])

    def now() -> Held | None:
        found = admin.held_by(SERVICE_USER)
        assert found is not None
        return dataclasses.replace(found, grants=frozenset(g for g in found.grants if g.resource == "*"))

    assert now() == right and not ensured()
    wrong = ("admin", "not-asked-for-where-all-is-well")
    assert not ensure_service_user(url, admin=wrong, password=service[1])
    admin.set_password(SERVICE_USER, "an-older-password")
    assert not lets_in(url, service) and ensured() and lets_in(url, service)
    admin.revoke(Grant(SERVICE_USER, MODEL, "*"))
    admin.grant(Grant(SERVICE_USER, MODEL, "*", "READ"))
    admin.call("PATCH", "users/update-admin", json={"username": SERVICE_USER, "is_admin": True})
    assert ensured() and now() == right and not ensured()
    with pytest.raises(LoginRefused, match="password of its admin admin"):
        ensure_service_user(url, admin=wrong, password="another-password-of-its")


def test_the_container_makes_the_user_of_penstocks_programs_and_says_what_it_lacks(
    with_logins: Settings, service: Login, admin: MlflowUsers
) -> None:
    given = {
        **{
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PENSTOCK_"))
        },
        "PYTHONPATH": str(ROOT),
        "PENSTOCK_HOME": str(with_logins.home),
        "PENSTOCK_MLFLOW_URL": with_logins.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": service[0],
        "MLFLOW_TRACKING_PASSWORD": service[1],
        "MLFLOW_AUTH_ADMIN_PASSWORD": mlflow_admin(with_logins)[1],
    }

    def run(**changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "docker" / "prepare_mlflow.py")]
        return subprocess.run(command, env={**given, **changed}, capture_output=True, text=True)

    kept = run()
    assert (kept.returncode, kept.stderr) == (0, "") and "penstock is as it was" in kept.stdout
    admin.set_password(SERVICE_USER, "an-older-password")
    mended = run()
    assert mended.returncode == 0 and "has what it needs now" in mended.stdout
    assert lets_in(with_logins.mlflow_url, service)
    for changed, says, code in (
        ({"MLFLOW_TRACKING_USERNAME": "admin"}, "are not those of MLflow's admin and of penstock", 2),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "are not those of MLflow's admin and of penstock", 2),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "x", "MLFLOW_TRACKING_PASSWORD": "y"}, "of its admin admin", 2),
        ({"PENSTOCK_MLFLOW_URL": "http://127.0.0.1:9"}, "does not accept connections", 75),
    ):
        refused = run(**changed)
        assert refused.returncode == code and says in refused.stderr and refused.stdout == ""
        assert not [
            secret for secret in (service[1], given["MLFLOW_AUTH_ADMIN_PASSWORD"]) if secret in refused.stderr
        ]
