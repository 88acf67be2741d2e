"""The services of this installation as plain processes on loopback: started, found, shown and ended.

A service is known by its environment, not by a pid file: every process that `start_services` starts, and
every process that those start, carries `PENSTOCK_HOME` and `PENSTOCK_SERVICE`. So the services of this
installation, and only those, are found and ended by pid even after a crash left no record of them.

What a set consists of is its profile's: `embedded` or `production`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tasks.core.errors import ConfigError, ServiceUnavailable, TerminalError
from tasks.core.mlflow_login import Login
from tasks.core.settings import Settings
from tasks.local import embedded, production
from tasks.local.parts import (
    PRODUCTION,
    PROFILES,
    Profile,
    Progress,
    Service,
    choose_ports,
    choose_profile,
    log_of,
    login_file,
    marks,
    profile_of,
    state_folder,
    tail,
)

_RAY = ("ray", "ray-worker")
_RAY_GRACE_S = 3.0
"""Ray's head waits half a minute for a server of its own that does not end; nothing durable is in it."""
_KILL_ROUNDS = 5
_OUTLIVE_S = 60.0


@dataclass(frozen=True)
class ServiceState:
    """One service as it is now."""

    name: str
    running: bool
    healthy: bool
    pid: int | None
    url: str | None
    log: Path


def local_settings(settings: Settings) -> Settings:
    """`settings` with the URLs of the local services, on the ports this installation has chosen."""
    return _profile(settings).settings_of(settings)


def start_services(settings: Settings, progress: Progress, *, profile: str | None = None) -> Settings:
    """Start what is not running and wait until all of it is healthy; returns the settings with its URLs.

    Args:
        settings: This installation.
        progress: Told what is going on.
        profile: `embedded` or `production`; None: the one that was started last.

    Raises:
        ConfigError: There is no such profile, the other one runs, or a program that it needs is not installed.
        ServiceUnavailable: A service ended or did not get healthy in time; the message holds the end of its log.
        TerminalError: MLflow refuses its admin, who was to make the user of Penstock's programs.
    """
    _settle_profile(settings, profile)
    states = survey(settings)
    if all(state.healthy for state in states):
        local = local_settings(settings)
        _settle(_services(local))
        progress("services are up already")
        return local
    if any(state.running for state in states):
        down = [state.name for state in states if not state.healthy]
        progress(f"down or unhealthy, and started anew: {', '.join(down)}")
    else:
        stop_services(settings, progress)  # what a killed service left behind
        choose_ports(settings)
    local = local_settings(settings)
    for folder in (state_folder(local) / "logs", *(s.cwd for s in _services(local) if s.cwd)):
        folder.mkdir(parents=True, exist_ok=True)
    _profile(local).prepare_stores(local, progress)
    stores = [service for service in _services(local) if service.keeps_state]
    others = [service for service in _services(local) if not service.keeps_state]
    if _start(local, stores, {}, progress):
        _outlive(local, others)
    env = _environment(local)
    if not _running(local, {service.name for service in others}):
        _prepare(local, env, progress)
    _start(local, others, env, progress)
    return local


def _settle_profile(settings: Settings, profile: str | None) -> None:
    before = profile_of(settings)
    if profile is None or profile == before:
        return
    if profile not in PROFILES:
        raise ConfigError("is not a profile", which=profile, fix=f"take one of: {', '.join(PROFILES)}")
    if any(True for _ in _processes(settings)):
        raise ConfigError(
            f"the services of the profile {before} run", which=profile, fix="end them first: `penstock down`"
        )
    choose_profile(settings, profile)


def _start(local: Settings, services: Collection[Service], env: dict[str, str], progress: Progress) -> bool:
    """Start those of `services` that are not healthy, and wait for them; whether there was any."""
    wanted = [service for service in services if not _well(local, service)]
    stop_services(local, progress, only={service.name for service in wanted})
    started: dict[str, subprocess.Popen[bytes]] = {}

    def begin(service: Service) -> None:
        progress(f"starting {service.name}")
        started[service.name] = _spawn(local, service, env)

    for service in wanted:
        if not service.follows:
            begin(service)
    for service in services:
        if service in wanted:
            if service.follows:
                begin(service)
            _wait_healthy(local, service, started[service.name], env, progress)
        _settle([service])
    return bool(wanted)


def _settle(services: Collection[Service]) -> None:
    try:
        for service in services:
            if service.settle:
                service.settle()
    except ConfigError as error:  # which stands for settings that nothing was started with
        raise TerminalError(error.what, which=error.which, fix=error.fix) from error


def _outlive(local: Settings, services: Collection[Service]) -> None:
    """Wait until each of `services` that runs has used its database again, or has ended.

    Airflow's scheduler looks well for a while after it has lost its database, and then ends.
    """
    since = datetime.now(UTC)
    deadline = time.monotonic() + _OUTLIVE_S
    for service in services:
        while service.beat and _running(local, {service.name}) and time.monotonic() < deadline:
            last = service.beat()
            if last is not None and last > since:
                break
            time.sleep(0.5)


def _well(local: Settings, service: Service) -> bool:
    return bool(_running(local, {service.name})) and service.healthy()


def _running(settings: Settings, names: Collection[str]) -> set[str]:
    return {state.name for state in survey(settings, names=names) if state.running}


def ray_environment(settings: Settings) -> dict[str, str]:
    """The variables by which a program joins this installation's Ray; empty when it does not run."""
    if not _running(settings, {"ray"}):
        return {}
    return _profile(settings).joining_ray(settings)


def credentials(settings: Settings) -> dict[str, str]:
    """The secrets by which a program of this machine uses the local store, cluster and MLflow."""
    return _profile(settings).credentials(settings)


def stop_services(
    settings: Settings,
    progress: Progress,
    *,
    grace_s: float = 20.0,
    only: Collection[str] | None = None,
    keep: Collection[str] = (),
) -> int:
    """End every process of this installation's services by pid; returns how many there were.

    Airflow and Ray get a chance to end by themselves; what is left after `grace_s` seconds is killed. Those that keep
    the others' state end last. Services of `keep`, and with `only` those of other names, are left alone.
    """
    found = {
        process: name
        for process, name in _living(settings).items()
        if name not in keep and (only is None or name in only)
    }
    if found:
        progress(f"ending {len(set(found.values()))} services ({len(found)} processes)")
    stores = {service.name: service for service in _services(settings) if service.keeps_state}
    for names in (set(found.values()) - set(stores), set(stores) & set(found.values())):
        _end(settings, names, {name: stores[name].ends_by for name in names if name in stores}, grace_s)
    _forget_sessions(settings, set(found.values()) if keep or only is not None else None)
    return len(found)


def _end(settings: Settings, names: Collection[str], signals: dict[str, int], grace_s: float) -> None:
    def living() -> dict[psutil.Process, str]:
        return {process: name for process, name in _living(settings).items() if name in names}

    if not names:
        return
    found = living()
    leaders = _load_sessions(settings)
    led = {found[process] for process in found if process.pid in leaders}
    for process, name in found.items():
        if process.pid in leaders or name not in led:  # a living leader ends its own children in order
            _signal(process, signals.get(name))
    begun = time.monotonic()
    while (left := living()) and (waited := time.monotonic() - begun) < grace_s:
        if waited > _RAY_GRACE_S:
            for process, name in left.items():
                if name in _RAY:
                    _kill(process)
        time.sleep(0.2)
    for _ in range(_KILL_ROUNDS):
        for process in left:
            _kill(process)
        psutil.wait_procs(list(left), timeout=5)
        left = living()
        if not left:
            break


def _living(settings: Settings) -> dict[psutil.Process, str]:
    """`_processes`, looked for again when there seems to be none.

    A service that ends may have started a child after the list of processes was read and be gone before its own
    turn in it came; the second list has the child.
    """
    return dict(_processes(settings)) or dict(_processes(settings))


def survey(settings: Settings, *, names: Collection[str] | None = None) -> list[ServiceState]:
    """The state of every service, or of those of `names`, found by process, and asked for its health."""
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
            healthy=service.name in first and service.healthy(),
            pid=first.get(service.name),
            url=service.url,
            log=log_of(settings, service.name),
        )
        for service in _services(local)
        if names is None or service.name in names
    ]


def airflow_login(settings: Settings) -> tuple[str, str]:
    """User and password of the local Airflow's admin.

    Raises:
        ServiceUnavailable: Airflow has not started yet, so there is no password.
    """
    try:
        return "admin", str(json.loads(login_file(settings).read_text())["admin"])
    except (FileNotFoundError, KeyError, json.JSONDecodeError) as error:
        raise ServiceUnavailable(
            "has no login yet", which="Airflow", fix="start it with `make up`"
        ) from error


def mlflow_admin(settings: Settings) -> Login:
    """User and password of the local MLflow's admin."""
    return _profile(settings).mlflow_admin(settings)


def _profile(settings: Settings) -> Profile:
    return production if profile_of(settings) == PRODUCTION else embedded


def _services(local: Settings) -> list[Service]:
    return _profile(local).services(local)


def _environment(local: Settings) -> dict[str, str]:
    return _profile(local).environment(local)


def _prepare(local: Settings, env: dict[str, str], progress: Progress) -> None:
    _profile(local).prepare(local, env, progress)


def _spawn(local: Settings, service: Service, env: dict[str, str]) -> subprocess.Popen[bytes]:
    user = service.user
    if service.beat_file:
        service.beat_file.unlink(missing_ok=True)
    with log_of(local, service.name).open("ab") as log:
        process = subprocess.Popen(
            service.command,
            env={
                **(env if service.env is None else service.env),
                **(service.own_env() if service.own_env else {}),
                **marks(local, service.name),
            },
            cwd=service.cwd or local.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=user and [],
        )
    _record_session(local, service.name, process.pid)
    return process


def _wait_healthy(
    local: Settings,
    service: Service,
    process: subprocess.Popen[bytes],
    env: dict[str, str],
    progress: Progress,
) -> None:
    started, starts = time.monotonic(), 1
    path = log_of(local, service.name)
    while not service.healthy():
        code = process.poll()
        waited = time.monotonic() - started
        if code is not None and starts < service.starts:
            starts += 1
            progress(f"{service.name} ended before it was healthy, and is started again")
            stop_services(local, progress, only={service.name})  # what is left of its processes
            process, started = _spawn(local, service, env), time.monotonic()
        elif code is not None or waited > service.timeout_s:
            why = (
                f"ended with exit code {code}"
                if code is not None
                else f"was not healthy after {waited:.0f} s"
            )
            raise ServiceUnavailable(
                f"{why}; the end of its log:\n{tail(path.read_text(errors='replace'))}",
                which=service.name,
                fix=f"read {path}, then start again",
            )
        time.sleep(0.5)
    progress(f"{service.name} is healthy")


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
    _write_sessions(settings, {pid: name, **_load_sessions(settings)})


def _forget_sessions(settings: Settings, names: Collection[str] | None) -> None:
    """Of services that have ended; None: of all."""
    if names is None:
        _sessions_file(settings).unlink(missing_ok=True)
    elif known := _load_sessions(settings):
        _write_sessions(settings, {pid: name for pid, name in known.items() if name not in names})


def _write_sessions(settings: Settings, sessions: dict[int, str]) -> None:
    staged = _sessions_file(settings).with_suffix(".part")
    known = {str(pid): name for pid, name in sessions.items()}
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


def _signal(process: psutil.Process, number: int | None) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate() if number is None else process.send_signal(number)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
