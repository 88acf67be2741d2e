"""This machine's services: which ports they get, which processes are ours, and what is told when one fails."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tasks.core import Settings
from tasks.core.errors import ServiceUnavailable, TerminalError
from tasks.local import embedded, parts, services, start_services, stop_services, survey

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)",
]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to end after the test, whatever happened."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(started: list[subprocess.Popen[bytes]], command: list[str], **env: str) -> subprocess.Popen[bytes]:
    """Start a process and wait until it runs its own code."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        yield


def quiet(_message: str) -> None:
    return


def mark(settings: Settings, service: str = "mlflow") -> dict[str, str]:
    return {"PENSTOCK_HOME": str(settings.home), "PENSTOCK_SERVICE": service}


def test_ports_stay_as_they_were_while_they_are_free(settings: Settings) -> None:
    parts.choose_ports(settings)
    first = parts.load_ports(settings)
    parts.choose_ports(settings)
    assert parts.load_ports(settings) == first
    assert len(set(first.values())) == len(first)
    assert all(first.values())


def test_only_a_port_that_is_taken_changes(settings: Settings) -> None:
    parts.choose_ports(settings)
    before = parts.load_ports(settings)
    with listening(before["airflow"]):
        parts.choose_ports(settings)
    after = parts.load_ports(settings)
    assert [name for name in before if before[name] != after[name]] == ["airflow"]
    assert services.local_settings(settings).airflow_url == f"http://127.0.0.1:{after['airflow']}"


def test_a_port_is_kept_while_closed_connections_linger_on_it(settings: Settings) -> None:
    parts.choose_ports(settings)
    before = parts.load_ports(settings)
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server here does
        server.bind(("127.0.0.1", before["airflow"]))
        server.listen()
        client.connect(("127.0.0.1", before["airflow"]))
        accepted, _ = server.accept()
        accepted.close()  # the server's end closes first, so the port is the one that lingers
        client.recv(1)
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", before["airflow"]))
    parts.choose_ports(settings)
    assert parts.load_ports(settings) == before


def test_a_damaged_ports_file_is_replaced(settings: Settings) -> None:
    parts.choose_ports(settings)
    parts._ports_file(settings).write_text('{"airflow": 80')
    parts.choose_ports(settings)
    assert all(parts.load_ports(settings).values())


def test_sessions_of_before_a_reboot_are_ignored(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    stranger = start(started, SLEEP)
    services._record_session(settings, "mlflow", stranger.pid)
    assert services._load_sessions(settings) == {stranger.pid: "mlflow"}
    record = json.loads(services._sessions_file(settings).read_text())
    record["boot_time"] -= 3600
    services._sessions_file(settings).write_text(json.dumps(record))
    assert services._load_sessions(settings) == {}
    assert stop_services(settings, quiet) == 0
    assert stranger.poll() is None


def test_a_damaged_session_file_does_not_stop_anybody_from_ending_the_services(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    ours = start(started, SLEEP, **mark(settings))
    services._sessions_file(settings).write_text('{"boot_time": 1')
    assert stop_services(settings, quiet) == 1
    assert ours.wait(timeout=10) != 0


def test_processes_of_another_home_or_of_no_service_are_not_touched(
    settings: Settings, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    other = replace(settings, home=tmp_path / "home-of-another")
    ours = start(started, SLEEP, **mark(settings))
    strangers = [
        start(started, SLEEP, **mark(other)),
        start(started, SLEEP, PENSTOCK_HOME=str(settings.home)),  # a user's own `penstock` command
        start(started, SLEEP),
    ]
    found = [process.pid for process, _ in services._processes(settings)]
    assert found == [ours.pid]
    assert stop_services(settings, quiet) == 1
    assert ours.wait(timeout=10) != 0
    assert all(stranger.poll() is None for stranger in strangers)
    assert stop_services(settings, quiet) == 0


def test_a_child_that_lost_its_environment_is_known_by_its_session(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    leader = start(started, SLEEP)  # no mark at all, as after a process title overwrote it
    services._record_session(settings, "ray", leader.pid)
    assert [(process.pid, name) for process, name in services._processes(settings)] == [(leader.pid, "ray")]


def test_a_service_that_does_not_end_by_itself_is_killed(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    deaf = start(started, STUBBORN, **mark(settings))
    assert stop_services(settings, quiet, grace_s=0.5) == 1
    assert deaf.wait(timeout=10) in (-9, 0)  # 0: psutil collected the exit status first
    assert not psutil.pid_exists(deaf.pid)


def test_a_record_of_dead_leaders_does_not_keep_the_living_from_being_asked_to_end(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    gone = start(started, SLEEP)
    services._record_session(settings, "mlflow", gone.pid)
    gone.kill()
    gone.wait()
    ours = start(started, SLEEP, **mark(settings, "airflow-scheduler"))
    assert stop_services(settings, quiet, grace_s=5) == 1
    assert ours.wait(timeout=10) == -15


def test_a_fresh_installation_has_no_service_running(settings: Settings) -> None:
    states = survey(settings)
    assert {state.name for state in states} >= {"ray", "mlflow", "airflow-scheduler", "airflow-triggerer"}
    assert not any(state.running or state.healthy for state in states)


def test_what_a_killed_service_left_behind_is_no_running_service(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    leader = start(started, SLEEP, **mark(settings, "airflow-scheduler"))
    services._record_session(settings, "airflow-scheduler", leader.pid)
    child = start(started, SLEEP, **mark(settings, "airflow-scheduler"))

    def scheduler() -> services.ServiceState:
        return next(state for state in survey(settings) if state.name == "airflow-scheduler")

    assert (scheduler().running, scheduler().pid) == (True, leader.pid)
    leader.kill()
    leader.wait()
    assert not scheduler().running
    assert stop_services(settings, quiet, grace_s=5) == 1
    assert child.wait(timeout=10) == -15


def test_a_service_that_ends_is_told_with_the_end_of_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "print('line one'); print('cannot open the database'); raise SystemExit(3)"
    broken = parts.Service(
        "mlflow", (sys.executable, "-c", script), None, parts.answers("http://127.0.0.1:1/health")
    )
    monkeypatch.setattr(services, "_services", lambda _local: [broken])
    monkeypatch.setattr(services, "_prepare", lambda *_: None)
    with pytest.raises(ServiceUnavailable) as raised:
        start_services(settings, quiet)
    told = str(raised.value)
    assert "mlflow" in told
    assert "ended with exit code 3" in told
    assert "cannot open the database" in told
    assert str(settings.home / "logs" / "mlflow.log") in raised.value.fix


def test_ray_whose_node_was_too_slow_to_register_is_started_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow_once = "import pathlib, sys, time; here = pathlib.Path(sys.argv[1]); tried = here / 'tried'; again = tried.exists(); tried.touch(); again or sys.exit(1); (here / 'well').touch(); time.sleep(600)"
    command, well = (sys.executable, "-c", slow_once, str(tmp_path)), tmp_path / "well"
    said: list[str] = []
    monkeypatch.setattr(
        services, "_services", lambda _local: [parts.Service("ray", command, None, well.exists, starts=2)]
    )
    monkeypatch.setattr(services, "_prepare", lambda *_: None)
    start_services(settings, said.append)
    assert said[-2:] == ["ray ended before it was healthy, and is started again", "ray is healthy"]
    assert stop_services(settings, quiet, grace_s=5) == 1


def test_a_service_that_never_gets_healthy_is_told_with_the_end_of_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import time; print('waiting for a lock', flush=True); time.sleep(600)"
    slow = parts.Service(
        "mlflow", (sys.executable, "-c", script), None, parts.answers("http://127.0.0.1:1/"), timeout_s=1.0
    )
    monkeypatch.setattr(services, "_services", lambda _local: [slow])
    monkeypatch.setattr(services, "_prepare", lambda *_: None)
    with pytest.raises(ServiceUnavailable, match=r"(?s)was not healthy after .*waiting for a lock"):
        start_services(settings, quiet)
    assert stop_services(settings, quiet, grace_s=5) == 1


def test_a_service_that_follows_starts_when_those_before_it_are_healthy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = settings.home / "ready"
    sleep = "import time; time.sleep(600)"
    head = f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(ready)!r}).touch(); {sleep}"
    node = f"import pathlib, sys; sys.exit(3) if not pathlib.Path({str(ready)!r}).exists() else None; {sleep}"
    listed = [
        parts.Service("ray", (sys.executable, "-c", head), None, ready.exists),
        parts.Service("ray-worker", (sys.executable, "-c", node), None, lambda: True, follows=True),
    ]
    monkeypatch.setattr(services, "_services", lambda _local: listed)
    monkeypatch.setattr(services, "_prepare", lambda *_: None)
    said: list[str] = []
    start_services(settings, said.append)
    assert said[-4:] == ["starting ray", "ray is healthy", "starting ray-worker", "ray-worker is healthy"]
    assert stop_services(settings, quiet, grace_s=5) == 2


def test_a_damaged_airflow_database_is_told_with_the_file_to_remove(settings: Settings) -> None:
    folder = settings.home / "airflow"
    folder.mkdir(parents=True)
    (folder / "airflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TerminalError) as raised:
        start_services(settings, quiet)
    assert "not a database" in str(raised.value)
    assert str(folder / "airflow.db") in raised.value.fix
    assert not any(state.running for state in survey(settings))


@pytest.mark.parametrize("profile", [parts.EMBEDDED, parts.PRODUCTION])
def test_airflow_reads_many_pipelines_less_often_or_as_often_as_the_environment_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    name = "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"
    settings = replace(settings, project=tmp_path / "many")
    parts.choose_profile(settings, profile)
    parts.choose_ports(settings)
    local = services.local_settings(settings)
    monkeypatch.delenv(name, raising=False)
    intervals = []
    for number in range(12):
        intervals.append(services._environment(local)[name])
        folder = local.pipelines_dir / f"p{number}"
        folder.mkdir(parents=True)
        (folder / "pipeline.yaml").touch()
    assert intervals == ["30"] * 11 + ["33"]
    monkeypatch.setenv(name, "300")
    assert services._environment(local)[name] == "300"


def test_databases_whose_making_was_interrupted_are_made_anew(settings: Settings) -> None:
    parts.choose_ports(settings)
    local = services.local_settings(settings)
    folder = settings.home / "mlflow"
    databases = [settings.home / "airflow" / "airflow.db", folder / "mlflow.db", folder / "logins.db"]
    for path in databases:
        path.parent.mkdir(parents=True, exist_ok=True)
        embedded.unfinished(path).write_bytes(b"half of a database")
        embedded.unfinished(path).with_name(f"{embedded.unfinished(path).name}-journal").write_bytes(b"x")
    embedded.prepare(local, embedded.environment(local), quiet)
    for path, table in zip(databases, ["dag_run", "review_queues", "users"], strict=True):
        with closing(sqlite3.connect(path)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
        assert table in tables and {"alembic_version", "alembic_version_auth"} & tables
        assert not list(path.parent.glob("*unfinished*"))
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_login_is_unknown_before_the_first_start(settings: Settings) -> None:
    with pytest.raises(ServiceUnavailable, match="has no login yet"):
        services.airflow_login(settings)


def test_a_long_home_gets_a_short_folder_for_rays_sockets(settings: Settings) -> None:
    long = replace(settings, home=settings.home / ("x" * 90))
    assert len(str(parts.ray_folder(long))) <= 60
    assert parts.ray_folder(long) != parts.ray_folder(replace(settings, home=settings.home / ("y" * 90)))
    short = replace(settings, home=Path("/srv/p"))
    assert parts.ray_folder(short) == Path("/srv/p/ray")


def test_a_service_whose_store_was_away_is_waited_for_until_it_ends_or_uses_it_again(
    settings: Settings, started: list[subprocess.Popen[bytes]]
) -> None:
    settings.home.mkdir()
    scheduler = start(started, SLEEP, **mark(settings, "airflow-scheduler"))
    looks: list[int] = []

    def silent_then_gone() -> None:
        looks.append(scheduler.pid)
        if len(looks) == 3:
            scheduler.kill()
            scheduler.wait()

    def service(beat: Callable[[], datetime | None]) -> parts.Service:
        return parts.Service("airflow-scheduler", tuple(SLEEP), None, lambda: True, beat)

    services._outlive(settings, [service(lambda: datetime.now(UTC))])
    assert scheduler.poll() is None
    services._outlive(settings, [service(silent_then_gone)])
    assert len(looks) == 3 and scheduler.poll() is not None
