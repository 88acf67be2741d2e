"""docker-compose.yml: valid, hardened, without a secret in it, and in step with the code that it starts."""

from __future__ import annotations

import http.server
import importlib
import importlib.resources
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import s3_endpoint
import yaml
from share_files import say
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from tasks.core import Settings
from tasks.core.mlflow_login import ADMIN, SERVICE_USER
from tasks.core.pools import POOLS
from tasks.local import production
from tasks.local.parts import MLFLOW_LOGINS, PRODUCTION, choose_ports, choose_profile

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
TEXT = COMPOSE.read_text()
ENDS_OR_IS_ASKED_BY_OTHERS = {"objects", "objects-init", "mlflow-init", "airflow-init"}
"""Services without a health check: three end, and the store is asked by `objects-init`."""
OF_MLFLOW_ALONE = {"mlflow", "mlflow-init"}
"""Who is given the password of MLflow's admin."""
KEEPER = "tenancy-keeper"
"""Who is given the database's password alone."""


class _Loader(yaml.SafeLoader):
    """As compose reads it: `<<` merges."""


COMPOSED: dict[str, Any] = yaml.load(TEXT, _Loader)
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("penstock:")}


def test_it_is_a_valid_compose_file() -> None:
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSED)
    broken = {**COMPOSED, "services": {**SERVICES, "ray": {**SERVICES["ray"], "healthcheck": {"tests": "x"}}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(broken)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_limited_restarted_and_without_privileges(name: str) -> None:
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?[\w.-]*", tag), f"{service['image']} may change under us"
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] and limits["memory"]
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] in ("unless-stopped", "on-failure")
    assert ("healthcheck" in service) != (name in ENDS_OR_IS_ASKED_BY_OTHERS)
    if name in OURS:
        assert (
            service["user"] == "50000:50000"
            and "useradd --create-home --uid 50000" in (ROOT / "Dockerfile").read_text()
        )
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "only a proxy is for others"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_is_there_and_can_become_what_it_waits_for(name: str) -> None:
    waits = SERVICES[name].get("depends_on", {})
    for other, how in waits.items() if isinstance(waits, dict) else ((one, {}) for one in waits):
        assert other in SERVICES
        if how.get("condition") == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        if how.get("condition") == "service_completed_successfully":
            assert SERVICES[other]["restart"] == "on-failure"


def test_every_variable_has_a_default_and_is_in_the_example_and_none_is_a_secret() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    assert len(used) == len(set(re.findall(r"\$\{(\w+)", TEXT))), "a variable without a default"
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if re.match(r"\w+=", line)
    )
    assert example == used
    assert not [name for name in used if re.search("PASSWORD|SECRET|TOKEN|_KEY", name)]


def test_secrets_are_files_that_are_made_ignored_and_read_by_who_is_given_them() -> None:
    made = set(runpy.run_path(str(ROOT / "docker" / "make_secrets.py"))["NAMES"])
    named = set(COMPOSED["secrets"])
    assert named <= made
    given = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert given == named
    read = set(re.findall(r"secret (\w+)\)", (ROOT / "docker" / "entrypoint.sh").read_text()))
    for name, service in OURS.items():
        kept = set() if name in OF_MLFLOW_ALONE else {"mlflow_password", "mlflow_secret_key"}
        assert set(service["secrets"]) == ({"postgres_password"} if name == KEEPER else read - kept)
    for ignored in (".gitignore", ".dockerignore"):
        assert "secrets/" in (ROOT / ignored).read_text().splitlines()


def test_the_pools_that_dags_run_in_are_made_before_airflow_starts() -> None:
    commands = " ".join(SERVICES["airflow-init"]["command"])
    for name, pool in POOLS.items():
        (made,) = re.findall(rf"airflow pools set {name} .*?(?=&&|$)", commands.replace("\n", " "))
        assert ("--include-deferred" in made) == pool.include_deferred


def test_what_is_mounted_from_the_project_is_there_and_prometheus_accepts_its_part() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    for path in mounted:
        assert (ROOT / path).exists() if path.startswith("./") else path in COMPOSED["volumes"], path
    scraped = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    targets = [
        t for job in scraped["scrape_configs"] for one in job["static_configs"] for t in one["targets"]
    ]
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    config = (ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text()
    here = ROOT / "monitoring" / "prometheus"
    checked = subprocess.run(
        [promtool, "check", "config", "/dev/stdin"],
        input=config.replace("/etc/prometheus", str(here)),
        text=True,
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_secrets_are_made_once_and_can_be_read_by_a_container_only(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docker" / "make_secrets.py"), str(tmp_path / "secrets")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    values = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert "postgres_password" in first.stdout and len(set(values.values())) == len(values) >= 7
    assert not [value for value in values.values() if value in first.stdout]
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is complete" in again.stdout
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == values
    from cryptography.fernet import Fernet

    Fernet(values["airflow_fernet_key"])


def image_environment() -> set[str]:
    """Names of what the image sets for every container of ours."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return set(re.findall(r"(\w+)=", block))


def test_the_profile_production_has_the_settings_and_secrets_of_the_containers(tmp_path: Path) -> None:
    settings = Settings.at_home(tmp_path / "home")
    choose_profile(settings, PRODUCTION)
    choose_ports(settings)
    local = production.settings_of(settings)
    (server,) = (service for service in production.services(local) if service.name == "mlflow")
    assert server.own_env is not None
    environment = production.environment(local)
    assert not set(environment) & set(server.own_env())
    environment.update(server.own_env())
    composed: dict[str, str] = OURS["mlflow"]["environment"]
    script = (ROOT / "docker" / "entrypoint.sh").read_text()
    exported = set(re.findall(r"\b[A-Z_]{6,}\b", script[script.index("export ") :]))
    names = set(composed) | exported | image_environment()
    ours = {
        name for name in environment if name.startswith(("PENSTOCK_", "AIRFLOW_", "MLFLOW_", "RAY_", "AWS_"))
    }
    given_to_one = {"PGPASSWORD"}  # of MLflow's logins, whose address holds it here
    assert names - {"PATH", "PYTHONUNBUFFERED"} - given_to_one == ours - production.ON_THIS_MACHINE
    assert {"PATH", "PYTHONUNBUFFERED"} | production.ON_THIS_MACHINE <= set(environment)
    theirs_alone = {"AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "MLFLOW_AUTH_CONFIG_PATH"}
    for name, value in composed.items():
        if "//" not in value and "$" not in value and name not in theirs_alone:
            assert environment[name] == value, name
    assert composed["PENSTOCK_STORE"] == environment["PENSTOCK_STORE"]
    read = set(re.findall(r"secret (\w+)\)", script))
    assert (
        set(production.SECRETS) == read == {path.name for path in production.secrets_folder(local).iterdir()}
    )
    for name in ("mlflow", "penstock", "airflow"):
        assert f"$(database {name})" in script


@pytest.mark.parametrize("which", ["", "_ASYNC"])
def test_airflow_prepares_no_statement_that_another_client_of_a_pooler_would_find(which: str) -> None:
    named = OURS["airflow-scheduler"]["environment"][f"AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS{which}"]
    module, _, name = named.rpartition(".")
    options = getattr(importlib.import_module(module), name)
    engine = create_engine("postgresql+psycopg://u@127.0.0.1:1/d", connect_args=options)
    with (
        pytest.raises(OperationalError),
        engine.connect(),
    ):  # the driver knows the option, and nobody listens there
        pass
    assert options == {"prepare_threshold": None}


def test_the_profile_production_starts_the_services_of_the_compose_file(tmp_path: Path) -> None:
    settings = Settings.at_home(tmp_path / "home", project=tmp_path)
    choose_profile(settings, PRODUCTION)
    local = production.settings_of(settings)
    names = {service.name for service in production.services(local)}
    once = {"objects-init", "mlflow-init", "airflow-init"}
    others = {"ray-gpu-worker", "model-server", "batch-metrics", "node-exporter", "prometheus", "grafana"}
    assert names == set(SERVICES) - once - others - {KEEPER}
    say(settings, "{cpus: 4}")
    assert {service.name for service in production.services(local)} == names | {KEEPER}


def test_who_decides_what_runs_may_have_writes_no_disk_and_has_the_database_alone(tmp_path: Path) -> None:
    service = SERVICES[KEEPER]
    assert service["read_only"] and service["volumes"] == [] and service["profiles"] == ["tenancy"]
    assert service["restart"] == "unless-stopped" and "ports" not in service
    (tmp_path / "postgres_password").write_text("value\n")
    program = tmp_path / "penstock"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    script = (ROOT / "docker" / "entrypoint.sh").read_text().replace("/run/secrets", str(tmp_path))
    started = subprocess.run(
        ["sh", "-c", script, "entrypoint", *service["command"]],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert (started.returncode, started.stderr) == (0, "")
    assert "PENSTOCK_METADATA_URL=postgresql+psycopg://penstock:value@postgres/penstock" in started.stdout
    assert started.stdout.count("value") == 1


def test_who_decides_is_well_while_the_file_that_it_writes_is_new(tmp_path: Path) -> None:
    service = SERVICES[KEEPER]
    *command, option, file = service["command"]
    assert (command, option) == (["penstock", "tenancy", "keep"], "--beat-file")
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == [str(Path(file).parent)]
    kind, check = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL" and file in check
    beat = tmp_path / "decided"
    asked = check.replace("$$", "$").replace(file, str(beat))

    def is_well() -> bool:
        return subprocess.run(["sh", "-c", asked], capture_output=True).returncode == 0

    assert not is_well()
    beat.touch()
    assert is_well()
    now = time.time()
    for age, well in ((production.DECIDED_S - 30, True), (production.DECIDED_S + 5, False)):
        os.utime(beat, (now - age, now - age))
        assert is_well() is well, (
            f"{age:g} s old; the processes of `make up PROFILE=production` go by the same limit"
        )


def entry(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The entry point with its secrets in `tmp_path` instead of /run/secrets."""
    script = (ROOT / "docker" / "entrypoint.sh").read_text().replace("/run/secrets", str(tmp_path))
    return subprocess.run(
        ["sh", "-c", script, "entrypoint", *command],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )


def test_the_entry_point_gives_secrets_to_the_program_and_says_which_is_missing(tmp_path: Path) -> None:
    for name in COMPOSED["secrets"]:
        (tmp_path / name).write_text(f"value-of-{name}\n")
    show = "import os, json; print(json.dumps(dict(os.environ)))"
    started = entry(tmp_path, sys.executable, "-c", show)
    environment = json.loads(started.stdout)
    assert started.stderr == ""
    assert environment["RAY_AUTH_TOKEN"] == "value-of-ray_auth_token"
    assert environment["PENSTOCK_METADATA_URL"] == (
        "postgresql+psycopg://penstock:value-of-postgres_password@postgres/penstock"
    )
    assert environment["MLFLOW_TRACKING_PASSWORD"] == "value-of-mlflow_service_password"
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == "value-of-mlflow_password"
    assert "PGPASSWORD" not in environment, "a program of the user's may speak to another PostgreSQL"
    (tmp_path / "mlflow_password").unlink()
    (tmp_path / "mlflow_secret_key").unlink()
    of_others = json.loads(entry(tmp_path, sys.executable, "-c", show).stdout)
    assert set(environment) - set(of_others) == {"MLFLOW_AUTH_ADMIN_PASSWORD"}
    assert entry(tmp_path, "sh", "-c", "exit 7").returncode == 7, "the program takes the shell's place"
    (tmp_path / "ray_auth_token").unlink()
    missing = entry(tmp_path, "true")
    assert missing.returncode != 0 and "secret ray_auth_token is missing" in missing.stderr


def test_mlflow_asks_for_the_login_that_the_others_are_given(tmp_path: Path) -> None:
    database = "postgresql+psycopg://penstock@postgres/mlflow"
    environment = OURS["mlflow"]["environment"]
    (mounted,) = SERVICES["mlflow"]["volumes"]  # who may write files by MLflow writes into no other service's
    source, target, mode = mounted.split(":")
    assert (ROOT / source).read_text() == MLFLOW_LOGINS.format(user=ADMIN, database_url=database)
    assert (target, mode) == (environment["MLFLOW_AUTH_CONFIG_PATH"], "ro")
    assert environment["MLFLOW_TRACKING_USERNAME"] == SERVICE_USER != ADMIN
    others = [service for name, service in OURS.items() if name not in OF_MLFLOW_ALONE]
    assert others and not [one for one in others if "mlflow_password" in one["secrets"]]
    assert "mlflow server --app-name basic-auth" in SERVICES["mlflow"]["command"]
    for name in COMPOSED["secrets"]:
        (tmp_path / name).write_text(f"value-of-{name}")
    program = tmp_path / "mlflow"
    program.write_text("#!/bin/sh\necho $PGPASSWORD\n")
    program.chmod(0o755)
    script = (ROOT / "docker" / "entrypoint.sh").read_text().replace("/run/secrets", str(tmp_path))
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    started = subprocess.run(
        ["sh", "-c", script, "entrypoint", "mlflow"], capture_output=True, text=True, env={"PATH": path}
    )
    assert (started.stdout, started.stderr) == ("value-of-postgres_password\n", "")


@pytest.mark.parametrize("name", [name for name in SERVICES if name.startswith("ray")])
def test_rays_object_store_fits_into_the_memory_that_its_container_shares(name: str) -> None:
    service = SERVICES[name]
    (store,) = re.findall(r"--object-store-memory=(\d+)", service["command"])
    shared_gb = re.fullmatch(r"(\d+)gb", service["shm_size"])
    assert shared_gb and int(store) < int(shared_gb[1]) * 2**30


def test_rays_head_is_well_when_it_counts_its_own_node_among_the_living(tmp_path: Path) -> None:
    kind, *command = SERVICES["ray"]["healthcheck"]["test"]
    assert (kind, command[0]) == ("CMD", "python")
    is_well = runpy.run_path(str(ROOT / command[1].removeprefix("/opt/penstock/project/")))["main"]
    token = tmp_path / "ray_auth_token"
    token.write_text("the token\n")
    nodes: list[dict[str, Any]] = []

    class Head(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == "Bearer the token"
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"summary": nodes}}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Head) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/nodes"
            assert is_well(url, token) == 1, "no node has registered"
            nodes.append({"raylet": {"state": "ALIVE", "isHeadNode": False}})
            nodes.append({"raylet": {"state": "DEAD", "isHeadNode": True}})
            assert is_well(url, token) == 1, "another node lives"
            nodes.append({"raylet": {"state": "ALIVE", "isHeadNode": True}})
            assert is_well(url, token) == 0
            token.write_text("another")
            with pytest.raises(urllib.error.HTTPError):
                is_well(url, token)
        finally:
            server.shutdown()


@pytest.mark.s3
def test_the_bucket_is_made_once_and_a_store_that_does_not_answer_is_named(
    s3_url: str, tmp_path: Path
) -> None:
    script = str(ROOT / "docker" / "prepare_store.py")
    env = {
        **os.environ,
        **s3_endpoint.CREDENTIALS,
        "PYTHONPATH": str(ROOT),
        "PENSTOCK_HOME": str(tmp_path),
        "PENSTOCK_STORE": "s3://prepared-here/store",
        "PENSTOCK_S3_ENDPOINT": s3_url,
    }
    for _ in range(2):
        done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert "s3://prepared-here/store is there, and honours conditional puts" in done.stdout
    impatient = f"import runpy; m = runpy.run_path({script!r}); m['main'].__globals__['PATIENCE_S'] = 0; exit(m['main']())"
    down = {**env, "PENSTOCK_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", impatient], env=down, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "http://127.0.0.1:9 does not answer" in done.stderr
