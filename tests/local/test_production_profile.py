"""The profile `production` before anything of it runs: what it refuses, whose store it takes, which secrets it makes."""

from __future__ import annotations

import configparser
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from share_files import say

from tasks import wiring
from tasks.cli.app import up
from tasks.core import Settings
from tasks.core.errors import ConfigError
from tasks.local import credentials, parts, production, profile_of, services, start_services
from tasks.local.services import local_settings, mlflow_admin

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]


def quiet(_message: str) -> None:
    return


@pytest.fixture
def chosen(settings: Settings) -> Settings:
    """An installation whose profile is `production`, with ports."""
    parts.choose_profile(settings, parts.PRODUCTION)
    parts.choose_ports(settings)
    return settings


@pytest.fixture
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a service of the installation."""
    settings.home.mkdir(exist_ok=True)
    process = subprocess.Popen(SLEEP, env=parts.marks(settings, "mlflow"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_new_installation_is_embedded_and_a_damaged_record_counts_as_that(settings: Settings) -> None:
    assert profile_of(settings) == "embedded"
    parts.choose_profile(settings, "production")
    assert profile_of(settings) == "production"
    (settings.home / "profile").write_text("prod")
    assert profile_of(settings) == "embedded"


def test_going_back_to_embedded_takes_nothing_of_the_other_profile_along(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORE", "METADATA_URL", "S3_ENDPOINT", "MLFLOW_URL", "RAY_JOBS_URL", "AIRFLOW_URL"):
        monkeypatch.delenv(f"PENSTOCK_{name}", raising=False)
    monkeypatch.setenv("PENSTOCK_HOME", str(chosen.home))
    monkeypatch.setenv("PENSTOCK_PROJECT", str(chosen.project))
    begun: list[tuple[Settings, str | None]] = []
    monkeypatch.setattr("tasks.cli.services.start", lambda given, profile: begun.append((given, profile)))
    up("embedded")
    ((given, profile),) = begun
    plain = Settings.at_home(chosen.home, project=chosen.project)
    assert profile == "embedded"
    assert (given.store_url, given.metadata_url, given.s3_endpoint) == (
        plain.store_url,
        plain.metadata_url,
        plain.s3_endpoint,
    )


def test_an_unknown_profile_is_refused_with_those_there_are(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"(?s)staging.*is not a profile.*embedded, production"):
        start_services(settings, quiet, profile="staging")


def test_a_profile_is_not_changed_under_running_services(
    settings: Settings, running: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)services of the profile embedded run.*penstock down"):
        start_services(settings, quiet, profile="production")
    assert profile_of(settings) == "embedded"
    assert running.poll() is None


def test_services_that_are_to_be_kept_are_not_ended(
    settings: Settings, running: subprocess.Popen[bytes]
) -> None:
    assert services.stop_services(settings, quiet, grace_s=1, keep={"mlflow"}) == 0
    assert running.poll() is None
    assert services.stop_services(settings, quiet, grace_s=1, only={"ray"}) == 0
    assert running.poll() is None
    assert services.stop_services(settings, quiet, grace_s=5, only={"mlflow"}) == 1
    assert running.wait(timeout=10) != 0


def test_what_was_ended_is_forgotten_and_what_runs_on_is_not(settings: Settings) -> None:
    settings.home.mkdir()
    services._record_session(settings, "ray", 1 << 29)
    services._record_session(settings, "mlflow", (1 << 29) + 1)
    services._forget_sessions(settings, {"ray"})
    assert set(services._load_sessions(settings).values()) == {"mlflow"}


def test_without_postgresql_it_says_how_to_install_it(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production, "_postgres_binaries", lambda: None)
    monkeypatch.setattr(production, "_ministack", lambda: Path(sys.executable))
    with pytest.raises(ConfigError, match=r"(?s)PostgreSQL: is not installed.*apt-get install postgresql"):
        production.prepare_stores(local_settings(chosen), quiet)


def test_without_the_s3_endpoint_it_says_what_installs_it(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production, "_ministack", lambda: chosen.home / "nowhere")
    with pytest.raises(ConfigError, match=r"(?s)nowhere.*make up PROFILE=production"):
        production.prepare_stores(local_settings(chosen), quiet)


def test_a_folder_is_no_store_for_it(chosen: Settings) -> None:
    local = local_settings(dataclasses.replace(chosen, store_url="/srv/store"))
    with pytest.raises(ConfigError, match=r"PENSTOCK_STORE=/srv/store: is no store on S3"):
        production.prepare_stores(local, quiet)


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another user only where we are root")
def test_a_home_that_postgresql_may_not_enter_is_named_with_what_to_do(chosen: Settings) -> None:
    if production._postgres_binaries() is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    chosen.home.chmod(0o700)
    with pytest.raises(ConfigError, match=r"(?s)may not enter .*chmod o\+x .*PENSTOCK_HOME") as raised:
        production._check_may_enter(chosen.home / "production" / "postgres", production._postgres_user())  # type: ignore[arg-type]
    assert str(raised.value)


def test_a_store_of_ones_own_is_taken_with_the_environments_keys(chosen: Settings) -> None:
    own = dataclasses.replace(chosen, store_url="s3://team/penstock", s3_endpoint="https://s3.example.org")
    local = local_settings(own)
    assert (local.store_url, local.s3_endpoint) == ("s3://team/penstock", "https://s3.example.org")
    assert "objects" not in {service.name for service in production.services(local)}
    assert not [name for name in credentials(local) if name.startswith("AWS_")]
    (server,) = (service for service in production.services(local) if service.name == "mlflow")
    assert "s3://team/mlflow" in server.command


def test_settings_that_were_made_once_stay_when_they_are_made_again(chosen: Settings) -> None:
    local = local_settings(chosen)
    assert local_settings(local) == local
    assert local.store_url == "s3://penstock/store"
    assert local.metadata_url.startswith("postgresql+psycopg://penstock:")


def test_secrets_are_made_once_for_their_owner_alone(chosen: Settings) -> None:
    first, second = credentials(chosen), credentials(chosen)
    assert first == second
    assert len({first[name] for name in first if not name.endswith(("MODE", "USERNAME"))}) == 4
    assert first["MLFLOW_TRACKING_PASSWORD"] != mlflow_admin(chosen)[1]
    for path in production.secrets_folder(chosen).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_mlflows_settings_hold_the_databases_password_for_their_owner_alone(chosen: Settings) -> None:
    local = local_settings(chosen)
    (server,) = (service for service in production.services(local) if service.name == "mlflow")
    assert server.own_env is not None
    environment = server.own_env()
    path = Path(environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert path.stat().st_mode & 0o777 == 0o600
    found = configparser.ConfigParser()
    found.read_string(path.read_text())
    assert found["mlflow"]["database_uri"] == environment["MLFLOW_BACKEND_STORE_URI"]
    assert found["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    admin = (found["mlflow"]["admin_username"], environment["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert admin == mlflow_admin(chosen) and "admin_password" not in found["mlflow"]


@pytest.mark.parametrize("profile", parts.PROFILES)
def test_no_program_is_mlflows_admin_or_knows_its_password(
    settings: Settings, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "of-the-shell")
    parts.choose_profile(settings, profile)
    parts.choose_ports(settings)
    local = local_settings(settings)
    user, password = mlflow_admin(settings)
    given = services._environment(local)
    assert (given["MLFLOW_TRACKING_USERNAME"], user) == ("penstock", "admin")
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" not in given and password not in given.values()
    assert password not in services.ray_environment(settings).values()
    for service in services._services(local):
        own = dict(service.own_env()) if service.own_env else {}
        assert (password in {**own, **(service.env or {})}.values()) == (service.name == "mlflow")


def test_no_secret_is_in_the_command_or_the_address_of_a_service(chosen: Settings) -> None:
    local = local_settings(chosen)
    production.environment(local)
    for service in production.services(local):
        if service.own_env:
            service.own_env()
    values = [path.read_text() for path in production.secrets_folder(local).iterdir()]
    assert len(values) == len(production.SECRETS)
    for service in production.services(local):
        told = " ".join([*service.command, service.url or "", *(service.env or {}).values()])
        assert not [value for value in values if value in told], service.name


def test_postgresql_is_not_told_what_the_others_are(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-user")
    (postgres,) = (s for s in production.services(local_settings(chosen)) if s.name == "postgres")
    assert postgres.env is not None
    assert set(postgres.env) == {"PATH", "LC_ALL", "PENSTOCK_HOME", "PENSTOCK_SERVICE"}


def test_who_decides_what_runs_may_have_is_well_once_it_has_decided_and_not_after_its_end(
    settings: Settings, tmp_path: Path
) -> None:
    say(settings, "{cpus: 4}")
    settings = dataclasses.replace(settings, metadata_url=f"sqlite:///{tmp_path / 'own.db'}")
    parts.choose_profile(settings, parts.PRODUCTION)
    parts.choose_ports(settings)
    local = local_settings(settings)
    (keeper,) = (one for one in production.services(local) if one.name == "tenancy-keeper")
    assert keeper.env is not None and keeper.cwd is not None
    assert not [name for name in keeper.env if name.startswith(("AWS_", "MLFLOW_", "RAY_", "AIRFLOW_"))]
    keeper.cwd.mkdir(parents=True)
    parts.log_of(local, keeper.name).parent.mkdir()
    assert not keeper.healthy()
    (keeper.cwd / "decided").write_text("of one that was killed a moment ago")
    assert keeper.healthy()
    try:
        services._start(local, [keeper], {}, quiet)
        (state,) = services.survey(settings, names={keeper.name})
        assert state.healthy
        assert "killed" not in (keeper.cwd / "decided").read_text()
        assert wiring.tenancy_status(local)["decided_at_utc"]
    finally:
        services.stop_services(settings, quiet, grace_s=20, only={keeper.name})
    assert not keeper.healthy() and not (keeper.cwd / "decided").exists()
