"""Airflow, MLflow and a Ray head as plain processes on loopback.

A service is known by its environment, not by a pid file: every process that `start_services` starts, and
every process that those start, carries `PENSTOCK_HOME` and `PENSTOCK_SERVICE`. So the services of this
installation, and only those, are found and ended by pid even after a crash left no record of them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tasks.core.errors import ServiceUnavailable, TerminalError
from tasks.core.ids import digest_bytes
from tasks.core.settings import Settings

Progress = Callable[[str], None]

_LOOPBACK = "127.0.0.1"
_PORTS = (
    "airflow",
    "airflow_worker_log",
    "airflow_trigger_log",
    "mlflow",
    "ray_gcs",
    "ray_dashboard",
    "ray_agent",
    "ray_agent_grpc",
    "ray_client",
    "ray_metrics",
    "ray_runtime_env",
    "ray_node_manager",
    "ray_object_manager",
)
_RAY_GRACE_S = 3.0
"""Ray's head waits half a minute for a server of its own that does not end; nothing durable is in it."""
_KILL_ROUNDS = 5
_AIRFLOW_PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")


@dataclass(frozen=True)
class ServiceState:
    """One service as it is now."""

    name: str
    running: bool
    healthy: bool
    pid: int | None
    url: str | None
    log: Path


@dataclass(frozen=True)
class _Service:
    name: str
    command: tuple[str, ...]
    url: str | None
    health_url: str | None
    part: str | None = None
    """Key in Airflow's health document, for Airflow's parts without a port."""
    timeout_s: float = 180.0


def local_settings(settings: Settings) -> Settings:
    """`settings` with the URLs of the local services, on the ports this installation has chosen."""
    ports = _load_ports(settings)
    return Settings(
        home=settings.home,
        project=settings.project,
        store_url=settings.store_url,
        metadata_url=settings.metadata_url,
        mlflow_url=_url(ports["mlflow"]),
        ray_jobs_url=_url(ports["ray_dashboard"]),
        airflow_url=_url(ports["airflow"]),
        s3_endpoint=settings.s3_endpoint,
        s3_region=settings.s3_region,
    )


def start_services(settings: Settings, progress: Progress) -> Settings:
    """Start what is not running and wait until all of it is healthy; returns the settings with its URLs.

    Raises:
        ServiceUnavailable: A service ended or did not get healthy in time; the message holds the end of its log.
    """
    if all(state.healthy for state in survey(settings)):
        progress("services are up already")
        return local_settings(settings)
    if any(True for _ in _processes(settings)):
        progress("some services are down or unhealthy: restarting all of them")
        stop_services(settings, progress)
    _choose_ports(settings)
    local = local_settings(settings)
    env = _environment(local)
    _prepare_databases(local, env, progress)
    started: dict[str, subprocess.Popen[bytes]] = {}
    for service in _services(local):
        progress(f"starting {service.name}")
        started[service.name] = _spawn(local, service, env)
    for service in _services(local):
        _wait_healthy(local, service, started[service.name], progress)
    return local


def ray_environment(settings: Settings) -> dict[str, str]:
    """The variables by which a program joins this installation's Ray; empty when it does not run."""
    if not any(state.name == "ray" and state.running for state in survey(settings)):
        return {}
    return _joining_ray(_load_ports(settings))


def _joining_ray(ports: dict[str, int]) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"{_LOOPBACK}:{ports['ray_gcs']}",
    }


def stop_services(settings: Settings, progress: Progress, *, grace_s: float = 20.0) -> int:
    """End every process of this installation's services by pid; returns how many there were.

    Airflow and Ray get a chance to end by themselves; what is left after `grace_s` seconds is killed.
    """
    found = _living(settings)
    if not found:
        _sessions_file(settings).unlink(missing_ok=True)
        return 0
    progress(f"ending {len(set(found.values()))} services ({len(found)} processes)")
    leaders = _load_sessions(settings)
    led = {found[process] for process in found if process.pid in leaders}
    for process, name in found.items():
        if process.pid in leaders or name not in led:  # a living leader ends its own children in order
            _signal(process, psutil.Process.terminate)
    begun = time.monotonic()
    while (left := _living(settings)) and (waited := time.monotonic() - begun) < grace_s:
        if waited > _RAY_GRACE_S:
            for process, name in left.items():
                if name == "ray":
                    _signal(process, psutil.Process.kill)
        time.sleep(0.2)
    for _ in range(_KILL_ROUNDS):
        for process in left:
            _signal(process, psutil.Process.kill)
        psutil.wait_procs(list(left), timeout=5)
        left = _living(settings)
        if not left:
            break
    _sessions_file(settings).unlink(missing_ok=True)
    return len(found)


def _living(settings: Settings) -> dict[psutil.Process, str]:
    """`_processes`, looked for again when there seems to be none.

    A service that ends may have started a child after the list of processes was read and be gone before its own
    turn in it came; the second list has the child.
    """
    return dict(_processes(settings)) or dict(_processes(settings))


def survey(settings: Settings) -> list[ServiceState]:
    """The state of every service, found by process, and asked for its health."""
    local = local_settings(settings)
    leaders = _load_sessions(settings)
    first: dict[str, int] = {}
    for process, name in _processes(settings):
        if process.pid in leaders or name not in leaders.values():  # what a dead leader left is no service
            first[name] = min(process.pid, first.get(name, process.pid))
    return [
        ServiceState(
            name=service.name,
            running=service.name in first,
            healthy=service.name in first and _healthy(service),
            pid=first.get(service.name),
            url=service.url,
            log=_log(settings, service.name),
        )
        for service in _services(local)
    ]


def airflow_login(settings: Settings) -> tuple[str, str]:
    """User and password of the local Airflow's admin.

    Raises:
        ServiceUnavailable: Airflow has not started yet, so it has not made the password.
    """
    path = _airflow_home(settings) / "simple_auth_manager_passwords.json.generated"
    try:
        return "admin", str(json.loads(path.read_text())["admin"])
    except (FileNotFoundError, KeyError, json.JSONDecodeError) as error:
        raise ServiceUnavailable(
            "has no login yet", which="Airflow", fix="start it with `make up`"
        ) from error


def _url(port: int) -> str:
    return f"http://{_LOOPBACK}:{port}"


def _airflow_home(settings: Settings) -> Path:
    return settings.home / "airflow"


def _log(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / f"{name}.log"


def _services(local: Settings) -> list[_Service]:
    ports = _load_ports(local)
    python = sys.executable
    mlflow = local.home / "mlflow"
    ray = (
        *(python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        f"--node-ip-address={_LOOPBACK}",
        f"--port={ports['ray_gcs']}",
        f"--dashboard-host={_LOOPBACK}",
        "--include-dashboard=true",
        f"--dashboard-port={ports['ray_dashboard']}",
        f"--dashboard-agent-listen-port={ports['ray_agent']}",
        f"--dashboard-agent-grpc-port={ports['ray_agent_grpc']}",
        f"--ray-client-server-port={ports['ray_client']}",
        f"--metrics-export-port={ports['ray_metrics']}",
        f"--runtime-env-agent-port={ports['ray_runtime_env']}",
        f"--node-manager-port={ports['ray_node_manager']}",
        f"--object-manager-port={ports['ray_object_manager']}",
        "--min-worker-port=0",  # any free port: a fixed range may hold a port chosen above
        "--max-worker-port=0",
        f"--temp-dir={_ray_folder(local)}",
        f"--num-cpus={max(2, os.cpu_count() or 2)}",
        f"--object-store-memory={256 * 1024 * 1024}",
    )
    mlflow_server = (
        *(python, "-m", "mlflow", "server", "--host", _LOOPBACK, "--port", str(ports["mlflow"])),
        *("--backend-store-uri", _sqlite(_mlflow_database(local))),
        *("--artifacts-destination", str(mlflow / "artifacts"), "--workers", "1"),
    )
    return [
        _Service("ray", ray, local.ray_jobs_url, f"{local.ray_jobs_url}/api/version"),
        _Service("mlflow", mlflow_server, local.mlflow_url, f"{local.mlflow_url}/health"),
        *(
            _Service(
                f"airflow-{part}",
                (python, "-m", "airflow", part),
                local.airflow_url if part == "api-server" else None,
                f"{local.airflow_url}/api/v2/monitor/health",
                None if part == "api-server" else part.replace("-", "_"),
            )
            for part in _AIRFLOW_PARTS
        ),
    ]


def _environment(local: Settings) -> dict[str, str]:
    ports = _load_ports(local)
    home = _airflow_home(local)
    venv_bin = str(Path(sys.executable).parent)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "AIRFLOW_"))},
        **local.as_environment(),
        "PATH": f"{venv_bin}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(local.project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{local.airflow_url}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": _sqlite(home / "airflow.db"),
        "AIRFLOW__API__HOST": _LOOPBACK,
        "AIRFLOW__API__PORT": str(ports["airflow"]),
        "AIRFLOW__API__BASE_URL": local.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": _secret(local, "api_secret"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(local, "jwt_secret"),
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports["airflow_worker_log"]),
        # Airflow's triggerer listens on the first of these and its API server reads the second.
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["airflow_trigger_log"]),
        "AIRFLOW__LOGGING__TRIGGERER_LOG_SERVER_PORT": str(ports["airflow_trigger_log"]),
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "NO_PROXY": "127.0.0.1,localhost",
        **_joining_ray(ports),
    }


def _prepare_databases(local: Settings, env: dict[str, str], progress: Progress) -> None:
    """Bring Airflow's database up to date, and make both databases where there is none yet.

    A database is made under another name and then renamed: neither service can go on from one whose making was
    interrupted half-way. Both at once, since each spends its time on imports.
    """
    airflow, mlflow = _airflow_home(local) / "airflow.db", _mlflow_database(local)
    for folder in (airflow.parent, mlflow.parent / "artifacts", local.home / "logs", _ray_folder(local)):
        folder.mkdir(parents=True, exist_ok=True)
    progress("preparing Airflow's database")
    python = sys.executable
    made: dict[Path, tuple[str, ...]] = {airflow: (python, "-m", "airflow", "db", "migrate")}
    if not mlflow.exists():
        made[mlflow] = (python, "-m", "tasks.local.mlflow_tables", _sqlite(_unfinished(mlflow)))
    running: dict[Path, subprocess.Popen[str]] = {}
    try:
        for path, command in made.items():
            running[path] = _make_database(path, command, env)
        for path, process in running.items():
            output, _ = process.communicate()
            if process.returncode != 0:
                raise TerminalError(
                    f"its database could not be prepared:\n{_tail(output)}",
                    which=f"{'Airflow' if path == airflow else 'MLflow'} at {path.parent}",
                    fix=f"read the message; if the database is damaged, remove {path}",
                )
            if not path.exists():
                _unfinished(path).replace(path)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def _make_database(path: Path, command: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[str]:
    unfinished = _unfinished(path)
    for left in unfinished.parent.glob(f"{unfinished.name}*"):  # of an interrupted start, with its journal
        left.unlink()
    target = path if path.exists() else unfinished
    return subprocess.Popen(
        command,
        env={
            **env,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": _sqlite(target),
            "PENSTOCK_SERVICE": "database-preparation",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _mlflow_database(settings: Settings) -> Path:
    return settings.home / "mlflow" / "mlflow.db"


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.stem}-unfinished{path.suffix}")


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def _spawn(local: Settings, service: _Service, env: dict[str, str]) -> subprocess.Popen[bytes]:
    path = _log(local, service.name)
    with path.open("ab") as log:
        process = subprocess.Popen(
            service.command,
            env={**env, "PENSTOCK_SERVICE": service.name},
            cwd=local.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _record_session(local, service.name, process.pid)
    return process


def _wait_healthy(
    local: Settings, service: _Service, process: subprocess.Popen[bytes], progress: Progress
) -> None:
    started = time.monotonic()
    path = _log(local, service.name)
    while not _healthy(service):
        code = process.poll()
        waited = time.monotonic() - started
        if code is not None or waited > service.timeout_s:
            why = (
                f"ended with exit code {code}"
                if code is not None
                else f"was not healthy after {waited:.0f} s"
            )
            raise ServiceUnavailable(
                f"{why}; the end of its log:\n{_tail(path.read_text(errors='replace'))}",
                which=service.name,
                fix=f"read {path}, then start again",
            )
        time.sleep(0.5)
    progress(f"{service.name} is healthy")


def _healthy(service: _Service) -> bool:
    if service.health_url is None:
        return True
    try:
        answer = httpx.get(service.health_url, timeout=5.0, trust_env=False)
        if answer.status_code != 200:
            return False
        if service.part is None:
            return True
        return bool(answer.json().get(service.part, {}).get("status") == "healthy")
    except (httpx.HTTPError, json.JSONDecodeError):
        return False


def _processes(settings: Settings) -> Iterator[tuple[psutil.Process, str]]:
    """Every live process of this installation's services with its service's name.

    Two marks find it: the environment, which survives a crash of ours, and the session that its service
    leads, which survives a process title that overwrote the environment (gunicorn, Airflow and Ray do).
    """
    home = str(settings.home)
    sessions = _load_sessions(settings)
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            env = process.environ()
            if env.get("PENSTOCK_HOME") == home and env.get("PENSTOCK_SERVICE"):
                yield process, env["PENSTOCK_SERVICE"]
            elif os.getsid(process.pid) in sessions:
                yield process, sessions[os.getsid(process.pid)]
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue


def _sessions_file(settings: Settings) -> Path:
    return settings.home / "services.json"


def _record_session(settings: Settings, name: str, pid: int) -> None:
    """Remember that `pid` leads the session of service `name`; worth nothing after a reboot."""
    known = {str(pid): name, **{str(key): value for key, value in _load_sessions(settings).items()}}
    staged = _sessions_file(settings).with_suffix(".part")
    staged.write_text(json.dumps({"boot_time": psutil.boot_time(), "sessions": known}, indent=1))
    staged.replace(_sessions_file(settings))


def _load_sessions(settings: Settings) -> dict[int, str]:
    """Session id -> service. A session id is not given out again while a process of the session lives."""
    try:
        raw = json.loads(_sessions_file(settings).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    if abs(raw["boot_time"] - psutil.boot_time()) > 60:
        return {}
    return {int(pid): str(name) for pid, name in raw["sessions"].items()}


def _signal(process: psutil.Process, send: Callable[[psutil.Process], None]) -> None:
    try:
        send(process)
    except psutil.NoSuchProcess:
        return


def _ray_folder(settings: Settings) -> Path:
    """Ray's sessions; its socket paths must stay below 107 bytes, so a long home gets a short folder."""
    inside = settings.home / "ray"
    if len(str(inside)) <= 40:
        return inside
    return (
        Path(tempfile.gettempdir())
        / f"penstock-{os.getuid()}-{digest_bytes(str(settings.home).encode())[:8]}"
    )


def _ports_file(settings: Settings) -> Path:
    return settings.home / "ports.json"


def _load_ports(settings: Settings) -> dict[str, int]:
    try:
        ports = json.loads(_ports_file(settings).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        ports = {}
    return {name: int(ports.get(name, 0)) for name in _PORTS}


def _choose_ports(settings: Settings) -> None:
    """Keep the ports of last time where they are free, so that bookmarks stay good; else take free ones."""
    before = _load_ports(settings)
    taken: list[socket.socket] = []
    chosen: dict[str, int] = {}
    try:
        for name in _PORTS:
            held = _bind(before[name]) or _bind(0)
            assert held is not None
            taken.append(held)
            chosen[name] = held.getsockname()[1]
    finally:
        for held in taken:
            held.close()
    settings.home.mkdir(parents=True, exist_ok=True)
    staged = _ports_file(settings).with_suffix(".part")
    staged.write_text(json.dumps(chosen, indent=1))
    staged.replace(_ports_file(settings))


def _bind(port: int) -> socket.socket | None:
    held = socket.socket()
    if port:  # connections that a service of before has closed linger on its port; they are in nobody's way
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((_LOOPBACK, port))
    except OSError:
        held.close()
        return None
    return held


def _secret(settings: Settings, name: str) -> str:
    path = _airflow_home(settings) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", opener=lambda file, flags: os.open(file, flags, 0o600)) as created:
            created.write(secrets.token_urlsafe(48))
    except FileExistsError:
        pass
    return path.read_text()


def _tail(text: str, lines: int = 25) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
