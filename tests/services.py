"""Real services for tests: each starts on a free loopback port, keeps its files to itself and is ended by pid."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from tasks.core import Settings

_START_S = 90


def free_port() -> int:
    """A TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_mlflow(tmp: Path, *, port: int | None = None) -> tuple[str, subprocess.Popen[bytes]]:
    """An MLflow server with SQLite and artifacts under `tmp`; (URL, process). End it with `stop`.

    Starting again with the same `tmp` and `port` finds what the first server kept.
    """
    port = port or free_port()
    tmp.mkdir(parents=True, exist_ok=True)
    log = (tmp / "mlflow.log").open("ab")
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "tasks.local.mlflow_server"),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{tmp / 'mlflow.db'}"),
            *("--artifacts-destination", str(tmp / "artifacts")),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "GIT_PYTHON_REFRESH": "quiet"},
        cwd=tmp,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{url}/health", timeout=5),
        ):
            return url, process
        time.sleep(0.1)
    stop(process)
    raise RuntimeError(f"MLflow did not start:\n{(tmp / 'mlflow.log').read_text()[-4000:]}")


def start_mlflow_with_logins(settings: Settings) -> tuple[Settings, subprocess.Popen[bytes]]:
    """The MLflow server that `penstock up` starts for the installation, with the user of Penstock's programs, and no other service.

    Returns:
        The settings with its URL, and the process. End it with `stop`.
    """
    from tasks.local import embedded, parts

    parts.choose_ports(settings)
    local = embedded.settings_of(settings)
    (server,) = (service for service in embedded.services(local) if service.name == "mlflow")
    assert server.own_env is not None and server.settle is not None
    (local.home / "mlflow" / "artifacts").mkdir(parents=True)
    log = local.home / "mlflow.log"
    process = subprocess.Popen(
        server.command,
        env={**embedded.environment(local), **server.own_env(), "GIT_PYTHON_REFRESH": "quiet"},
        cwd=local.home,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + _START_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if server.healthy():
                server.settle()
                return replace(settings, mlflow_url=local.mlflow_url), process
            time.sleep(0.1)
    except BaseException:
        stop(process)
        raise
    stop(process)
    raise RuntimeError(f"MLflow did not start:\n{log.read_text()[-4000:]}")


def postgres_binaries() -> Path | None:
    """The folder that holds `initdb` and `postgres`; None when PostgreSQL is not installed."""
    candidates = [Path("/usr/local/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("initdb"):
        candidates.insert(0, Path(found).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


NO_POSTGRES = (
    "no PostgreSQL server binary: `apt-get install postgresql` (or initdb and postgres on PATH) un-skips it"
)


def start_postgres(tmp: Path, *, durable: bool = False) -> tuple[str, subprocess.Popen[bytes]]:
    """A private PostgreSQL; (SQLAlchemy URL of an empty database, process). End it with `stop`.

    PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, in a folder of its own outside
    `tmp` (which that user could not enter) that goes away with `stop`. It does not sync to disk unless `durable`.

    Raises:
        RuntimeError: It is not installed (ask `postgres_binaries` first) or did not start.
    """
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError(NO_POSTGRES)
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:
        user = _unprivileged()
        home = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
        os.chown(home, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    else:
        home = tmp / "postgres"
        home.mkdir(parents=True)
    port = free_port()
    data = home / "data"
    environ = {**os.environ, "LC_ALL": "C", "HOME": str(home)}
    quiet = {"cwd": home, "env": environ, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **as_user}
    made = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "penstock", "--auth=trust", "-E", "UTF8", "--no-sync"],
        check=False,
        **quiet,  # type: ignore[call-overload]
    )
    if made.returncode:
        shutil.rmtree(home, ignore_errors=True)
        raise RuntimeError(f"initdb failed:\n{made.stdout.decode()}")
    log = (home / "postgres.log").open("wb")
    process = subprocess.Popen(
        [
            binaries / "postgres",
            *("-D", data, "-p", str(port), "-h", "127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", f"fsync={'on' if durable else 'off'}", "-c", "max_connections=120"),
        ],
        **{**quiet, "stdout": log, "start_new_session": True},  # type: ignore[call-overload]
    )
    _HOMES[process.pid] = home
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if b"ready to accept connections" in (home / "postgres.log").read_bytes():
            return f"postgresql://penstock@127.0.0.1:{port}/postgres", process
        time.sleep(0.05)
    text = (home / "postgres.log").read_text()
    stop(process)
    raise RuntimeError(f"PostgreSQL did not start:\n{text}")


NO_PGBOUNCER = "no PgBouncer: `apt-get install pgbouncer` (or pgbouncer on PATH) un-skips it"


def pgbouncer_program() -> str | None:
    """PgBouncer's program; None when it is not installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def start_pgbouncer(server_url: str, tmp: Path, pool_mode: str) -> tuple[str, subprocess.Popen[bytes]]:
    """A PgBouncer before a server that `start_postgres` started; (`server_url` by way of it, process). End it with `stop`.

    It gives all clients of a database the same two connections, so that each gets what another has left behind.

    Args:
        server_url: Of any of the server's databases.
        tmp: For its files.
        pool_mode: `session` or `transaction`.

    Raises:
        RuntimeError: It is not installed (ask `pgbouncer_program` first) or did not start.
    """
    program = pgbouncer_program()
    if program is None:
        raise RuntimeError(NO_PGBOUNCER)
    own, port = make_url(server_url), free_port()
    home = tmp / "pgbouncer"
    if os.geteuid() == 0:
        home = Path(tempfile.mkdtemp(prefix="penstock-pgbouncer-"))
    home.mkdir(exist_ok=True)
    (home / "users.txt").write_text(f'"{own.username}" ""\n')
    (home / "pgbouncer.ini").write_text(
        f"""\
[databases]
* = host={own.host} port={own.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home / "users.txt"}
pool_mode = {pool_mode}
default_pool_size = 2
server_idle_timeout = 5
"""
    )
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = _unprivileged()
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        home.chmod(0o755)
    log = home / "pgbouncer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, home / "pgbouncer.ini"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **as_user,
        )
    if os.geteuid() == 0:
        _HOMES[process.pid] = home
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if b"process up" in log.read_bytes():
            return own.set(port=port).render_as_string(hide_password=False), process
        time.sleep(0.05)
    text = log.read_text()
    stop(process)
    raise RuntimeError(f"PgBouncer did not start:\n{text}")


def new_postgres_database(server_url: str, *, like: str = "template1") -> str:
    """The URL of a fresh database on a server that `start_postgres` started: empty, or a copy of the database `like`."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(server_url, f"CREATE DATABASE {name} TEMPLATE {like}")
    return server_url.removesuffix("/postgres") + f"/{name}"


def make_postgres_database_anew(url: str, *, like: str) -> None:
    """The database at `url`, which nobody uses, is a copy of the database `like` of its server from now on."""
    server, _, name = url.rpartition("/")
    _administer(f"{server}/postgres", f"DROP DATABASE {name}", f"CREATE DATABASE {name} TEMPLATE {like}")


def _administer(server_url: str, *statements: str) -> None:
    """Run statements that no transaction may hold."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a service by its pid, with the children of the session it leads, and remove what only it used."""
    postgres_home = _HOMES.pop(process.pid, None)
    if process.poll() is None:
        if postgres_home is not None:
            process.send_signal(
                signal.SIGINT
            )  # PostgreSQL's fast shutdown: it ends its own children. PgBouncer's safe one
        else:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
    if postgres_home is not None:
        shutil.rmtree(postgres_home, ignore_errors=True)


_HOMES: dict[int, Path] = {}


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL cannot run as root and there is no user `postgres` or `nobody`")
