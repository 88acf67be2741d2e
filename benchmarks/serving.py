"""What a prediction on request costs, beside the same model behind FastAPI without batching, MLflow's server, LitServe and Ray Serve.

    python benchmarks/serving.py run --seconds 5 --write
    python benchmarks/serving.py run --only audit --before ../another-checkout

Needs nothing: it makes LitServe's environment in `.penstock/venv-servers`, and an installation in a temporary folder, with random models of the toy pipeline. Every contender answers the
same rows with the same scoring code (raw rows, the bundle's feature code, the network). The load comes from a process of
its own: as many connections as clients, each asks, reads, and asks again. CPU is that of the contender's whole process
tree, kernel time included, over the requests that were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "serving.md"
MODELS = {"small": (16, 8), "larger": (1024, 1024, 512)}
CLIENTS = (1, 8, 64)
PEERS = Path(__file__).parent / "serving_peers.py"
SERVERS = ROOT / ".penstock" / "venv-servers"
AUDIT = "\n## What the audit store costs\n"
OVERLOAD = "\n## Ten times the load\n"
AUDITED = ["1x1", "8x1", "64x1", "16x32", "16x256"]
"""Clients x rows of each of their requests."""
PATH = "/v1/pipelines/toy/predictions"
DAY = date(2024, 3, 1)
sys.path.insert(0, str(ROOT / "tests" / "serving"))


# -- the load


class Connection(asyncio.Protocol):
    """Reads one answer after the other; `ask` gives a future for the next."""

    def __init__(self) -> None:
        self._data = b""
        self._waiter: asyncio.Future[int] | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
        if len(rest) >= length and self._waiter is not None:
            self._data = rest[length:]
            waiter, self._waiter = self._waiter, None
            waiter.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(0)


def requests_of(bodies: list[bytes], path: str, more: str = "") -> list[bytes]:
    return [
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Each client asks as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(clients)]
    end = time.perf_counter() + seconds
    found: list[tuple[int, float]] = []

    async def ask(number: int, connection: Connection) -> None:
        count = number
        while (started := time.perf_counter()) < end:
            status = await connection.ask(requests[count % len(requests)])
            found.append((status, time.perf_counter() - started))
            count += clients
            if not status:
                return

    await asyncio.gather(*(ask(number, one) for number, one in enumerate(connections)))
    return summary(found, seconds)


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests come at their own pace, whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    idle = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(400)]
    found: list[tuple[int, float]] = []
    pending: set[asyncio.Task[None]] = set()
    started = time.perf_counter()
    sent = missed = 0

    async def ask(connection: Connection, request: bytes, due: float) -> None:
        status = await connection.ask(request)
        found.append((status, time.perf_counter() - due))
        if status:
            idle.append(connection)

    while (now := time.perf_counter() - started) < seconds:
        while sent < now * rate:
            sent += 1
            if not idle:
                missed += 1
                continue
            task = asyncio.create_task(ask(idle.pop(), requests[sent % len(requests)], started + sent / rate))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.sleep(0.001)
    await asyncio.gather(*pending)
    return {**summary(found, seconds), "sent": sent, "without_connection": missed}


def summary(found: list[tuple[int, float]], seconds: float) -> dict[str, Any]:
    good = sorted(taken for status, taken in found if status == 200)
    cuts = statistics.quantiles(good, n=100) if len(good) > 1 else [float("nan")] * 99
    statuses: dict[str, int] = {}
    for status, _ in found:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    return {
        "good": len(good),
        "rate": len(good) / seconds,
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
        "statuses": statuses,
    }


def load(arguments: argparse.Namespace) -> None:
    bodies = json.loads(Path(arguments.bodies).read_text())
    requests = requests_of([body.encode() for body in bodies], arguments.path)
    if arguments.rate:
        found = asyncio.run(open_loop(arguments.port, requests, arguments.rate, arguments.seconds))
    else:
        found = asyncio.run(closed_loop(arguments.port, requests, arguments.clients, arguments.seconds))
    print(json.dumps(found))


# -- the contenders


def inline(arguments: argparse.Namespace) -> None:
    """FastAPI, each request scored by itself where it arrives."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    model = served(arguments.version)
    torch.set_num_threads(1)
    app = FastAPI()

    @app.post(PATH)
    async def predict(body: dict[str, Any]) -> dict[str, Any]:
        rows = [model.signature.read(row, f"rows[{index}]") for index, row in enumerate(body["rows"])]
        scores = model.score(model.signature.table(rows))
        return {
            "predictions": [
                {"prediction_id": identifier, "score": score, "model_version": 1}
                for identifier, score in zip(scores.prediction_ids, scores.scores.tolist(), strict=True)
            ]
        }

    @app.get("/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    uvicorn.run(app, port=arguments.port, access_log=False, log_level="warning")


def served(version: int) -> Any:
    from tasks.core import Settings, load_pipeline
    from tasks.serving import Deployed
    from tasks.wiring.serving import DeploymentLog, ServedBundle

    settings = Settings.from_environment()
    spec = load_pipeline(settings, "toy")
    exposure = DeploymentLog(settings, spec).exposure()
    assert exposure is not None
    champion = exposure.champion
    return ServedBundle(
        settings,
        spec,
        Deployed(version, champion.bundle_digest, champion.feature_version, datetime.now(UTC)),
    )


MLFLOW_CODE = """
import sys
sys.path[:0] = [{root!r}, {benchmarks!r}]
import mlflow
from mlflow.pyfunc import PythonModel

class Served(PythonModel):
    def load_context(self, context):
        import torch
        from serving import served
        self.model = served(1)
        torch.set_num_threads(1)

    def predict(self, context, model_input, params=None):
        rows = [self.model.signature.read(row, "") for row in model_input.to_dict("records")]
        return self.model.score(self.model.signature.table(rows)).scores.tolist()

mlflow.models.set_model(Served())
"""


@contextmanager
def contender(command: list[str], port: int, health: str, env: dict[str, str]) -> Iterator[psutil.Process]:
    """Start it, wait until it answers, end it with all that it started."""
    log = Path(tempfile.gettempdir()) / f"serving-{port}.log"
    with log.open("w") as file:
        child = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[:4]} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield psutil.Process(child.pid)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def ask(
    process: psutil.Process,
    port: int,
    bodies: Path,
    path: str,
    seconds: float,
    *,
    clients: int = 0,
    rate: float = 0,
) -> dict[str, Any]:
    """One measurement."""
    command = [sys.executable, __file__, "load", "--port", str(port), "--bodies", str(bodies), "--path", path]
    command += ["--seconds", str(seconds), "--clients", str(clients), "--rate", str(rate)]
    before = cpu_s(process)
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    found["cpu_us"] = (cpu_s(process) - before) / max(1, found["good"]) * 1e6
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def install(
    root: Path, hidden: tuple[int, ...], gpus: float = 0
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """An installation whose live model has these layers; its environment, and rows to ask with."""
    from serving_support import json_rows, make_bundle, put_live, toy_rows

    from tasks.core import Settings, load_pipeline

    shutil.copytree(ROOT / "tests" / "toy_project", root / "project")
    settings = Settings.at_home(root / "home", project=root / "project")
    file = root / "project" / "pipelines" / "toy" / "pipeline.yaml"
    file.write_text(file.read_text().replace("inference: {", f"inference: {{gpus_per_worker: {gpus}, "))
    spec = load_pipeline(settings, "toy")
    put_live(settings, spec, 1, make_bundle(settings, spec, seed=1, hidden=hidden))
    env = {**os.environ, **settings.as_environment(), "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # MLflow starts `uvicorn` by name
    return env, json_rows(toy_rows(settings, DAY))


def penstock(port: int, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tasks.cli",
        "serve",
        "toy",
        "--port",
        str(port),
        "--timeout-ms",
        "30000",
        *options,
    ]


def mlflow_command(root: Path, port: int, env: dict[str, str]) -> list[str]:
    code = root / "served_model.py"
    code.write_text(MLFLOW_CODE.format(root=str(ROOT), benchmarks=str(ROOT / "benchmarks")))
    save = "import sys, mlflow; mlflow.pyfunc.save_model(sys.argv[2], python_model=sys.argv[1], pip_requirements=[])"
    target = root / "mlflow-model"
    subprocess.run(
        [sys.executable, "-c", save, str(code), str(target)], check=True, env=env, capture_output=True
    )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(target), "-p", str(port)]
    return [*command, "--env-manager", "local", "--workers", "1"]


def litserve_python() -> str:
    """LitServe's environment, made at first use: its own packages, and this one's beside them."""
    python = SERVERS / "bin" / "python"
    if not (SERVERS / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", SERVERS], check=True)
        (packages,) = SERVERS.glob("lib/python*/site-packages")
        (packages / "project.pth").write_text(sysconfig.get_path("purelib"))
        wanted = Path(__file__).parent / "requirements-servers.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        (SERVERS / "made").touch()
    return str(python)


def contenders(root: Path, env: dict[str, str]) -> Iterator[tuple[str, list[str], int, str, str, str]]:
    """Name, command, port, path, form of the rows, and where it says that it is ready."""
    for name, options in (
        ("Penstock, max wait 0", ["--no-audit", "--max-wait-ms", "0"]),
        ("Penstock, max wait 2 ms", ["--no-audit"]),
        ("Penstock, every answer audited and explained", []),
    ):
        port = free_port()
        yield name, penstock(port, *options), port, PATH, "rows", "/health/ready"
    port = free_port()
    command = [sys.executable, __file__, "inline", "--port", str(port)]
    yield "FastAPI, inline, batch of 1", command, port, PATH, "rows", "/health/ready"
    port = free_port()
    yield (
        "MLflow models serve",
        mlflow_command(root, port, env),
        port,
        "/invocations",
        "dataframe_records",
        "/ping",
    )
    port = free_port()
    command = [litserve_python(), str(PEERS.with_name("serving_litserve.py")), str(port)]
    yield "LitServe, max batch 64, wait 2 ms", command, port, PATH, "rows", "/health"


def on_ray() -> Iterator[tuple[str, list[str], int, str, str, str]]:
    """The same of contenders on Ray: by themselves, because a Ray that idles takes CPU from the others."""
    for name, what, path, health in (
        ("Ray Serve @serve.batch, max batch 64, wait 2 ms", "ray-batch", "/", "/"),
        ("Penstock, `--ray`, one replica", "penstock-ray", PATH, "/health/ready"),
    ):
        port = free_port()
        yield name, [sys.executable, str(PEERS), what, str(port)], port, path, "rows", health


def measure(seconds: float, repeats: int) -> list[str]:
    """Side by side, both models: the contenders of a group run at once, and are asked in turn."""
    lines = []
    for size, hidden in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            env, rows = install(root, hidden)
            found: dict[int, list[str]] = {}
            groups = [list(contenders(root, env)), *([one] for one in on_ray())]
            for group in groups:
                for clients, line in beside(root, env, rows, group, seconds, repeats):
                    found.setdefault(clients, []).append(line)
                    print(size, line, flush=True)
        lines += [
            f"\n## {size.capitalize()} model, layers {', '.join(map(str, hidden))}\n",
            "| clients | | CPU-µs a request | requests/s | p50 ms | p99 ms (range) |",
            "|---|---|---|---|---|---|",
            *(line for of_clients in found.values() for line in of_clients),
        ]
    return lines


def beside(
    root: Path,
    env: dict[str, str],
    rows: list[dict[str, Any]],
    group: list[tuple[str, list[str], int, str, str, str]],
    seconds: float,
    repeats: int,
) -> Iterator[tuple[int, str]]:
    """Lines of the table, each with its number of clients."""
    with ExitStack() as stack:
        up: dict[str, tuple[psutil.Process, int, Path, str]] = {}
        for name, command, port, path, form, health in group:
            bodies = root / f"{form}.json"
            bodies.write_text(json.dumps([json.dumps({form: [row]}) for row in rows]))
            up[name] = (stack.enter_context(contender(command, port, health, env)), port, bodies, path)
            ask(*up[name], 1.0, clients=8)  # warm
        for clients in (*CLIENTS, 256):
            names = [name for name in up if clients <= 64 or name.startswith("Penstock, max")]
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for _ in range(repeats):
                for name in names:
                    runs[name].append(ask(*up[name], seconds, clients=clients))
            for name in names:
                middle = {
                    key: statistics.median(run[key] for run in runs[name])
                    for key in ("cpu_us", "rate", "p50_ms", "p99_ms")
                }
                bad = {status for run in runs[name] for status in run["statuses"]} - {"200"}
                note = f" (also {', '.join(sorted(bad))})" if bad else ""
                tails = [run["p99_ms"] for run in runs[name]]
                yield (
                    clients,
                    f"| {clients} | {name}{note} | {middle['cpu_us']:,.0f} | {middle['rate']:,.0f} | "
                    f"{middle['p50_ms']:.1f} | {middle['p99_ms']:.1f} ({min(tails):.0f} to {max(tails):.0f}) |",
                )


def recorded_rows(port: int) -> tuple[float, float]:
    """How many rows are in the audit store so far, and how many of them with an explanation."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"penstock_serving_{name}{{"))
        for name in ("recorded_rows_total", "explained_rows_total")
    ]
    return counts[0], counts[1]


def audited(arguments: argparse.Namespace) -> list[str]:
    """The server with and without its audit store, and that of another checkout, started together and asked in turn."""
    seconds, repeats, before = arguments.seconds, arguments.repeats, arguments.before
    servers: list[tuple[str, Path, list[str]]] = [("no audit", ROOT, ["--no-audit"])]
    servers += [("audited and explained, before", before, [])] if before else []
    servers += [("audited and explained", ROOT, [])]
    lines = [
        AUDIT,
        f"`--only audit --seconds {seconds:g} --repeats {repeats}{' --before CHECKOUT' if before else ''}{f' --gpus {arguments.gpus:g}' if arguments.gpus else ''}`, {platform.machine()}, {len(os.sched_getaffinity(0))} CPUs. The servers ran at once and were asked in turn; medians "
        f"of {repeats} runs of {seconds:g} s, small model. Compare lines with the same clients.\n",
        "| clients | rows of a request | | CPU-µs a row | rows/s | p50 ms | p99 ms (range) | other answers | explained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        env, rows = install(root, MODELS["small"], arguments.gpus)
        up = {}
        for name, checkout, options in servers:
            port = free_port()
            command = penstock(port, *options)
            command.insert(1, "-P")  # the checkout's package, wherever this is started
            its_env = {**env, "PYTHONPATH": os.pathsep.join([str(checkout.resolve()), *sys.path])}
            process = stack.enter_context(contender(command, port, "/health/ready", its_env))
            up[name] = (process, port)
        for case in arguments.cases:
            clients, each = map(int, case.split("x"))
            bodies = root / f"{each}.json"
            more = rows * (1 + each // len(rows))
            bodies.write_text(
                json.dumps([json.dumps({"rows": more[at : at + each]}) for at in range(len(rows))])
            )
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in up}
            for number in range(repeats + 1):
                for name, (process, port) in up.items():
                    recorded, explained = recorded_rows(port)
                    found = ask(process, port, bodies, PATH, seconds if number else 1.0, clients=clients)
                    now = recorded_rows(port)
                    found["explained"] = (now[1] - explained) / max(1, now[0] - recorded)
                    runs[name] += [found] if number else []  # the first is to warm up
            for name, some in runs.items():
                middle = {
                    key: statistics.median(run[key] for run in some) for key in some[0] if key != "statuses"
                }
                tails = [run["p99_ms"] for run in some]
                refused: Counter[str] = Counter()
                for run in some:
                    refused.update({status: n for status, n in run["statuses"].items() if status != "200"})
                lines.append(
                    f"| {clients} | {each} | {name} | {middle['cpu_us'] / each:,.1f} | {middle['rate'] * each:,.0f} | {middle['p50_ms']:.1f} | "
                    f"{middle['p99_ms']:.1f} ({min(tails):.0f} to {max(tails):.0f}) | "
                    f"{', '.join(f'{n:,} x {status}' for status, n in sorted(refused.items()))} | "
                    f"{'' if name == 'no audit' else format(middle['explained'], '.0%')} |"
                )
                print(lines[-1], flush=True)
    return lines


def overload(arguments: argparse.Namespace) -> list[str]:
    """Ten times what it can do, with a deadline of one second; capacity is measured before and after each run."""
    seconds, repeats, layers = arguments.seconds, arguments.repeats, tuple(arguments.layers)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        env, rows = install(root, layers, arguments.gpus)
        bodies = root / "bodies.json"
        bodies.write_text(json.dumps([json.dumps({"rows": rows[at : at + 32]}) for at in range(0, 64, 8)]))
        port = free_port()
        command = [*penstock(port, "--no-audit")[:-3], "--timeout-ms", "1000", "--no-audit"]
        lines = [
            OVERLOAD,
            f"{repeats} times runs of {seconds:g} s (`--only overload`). Requests of 32 rows for a model with layers {', '.join(map(str, layers))}{' on a GPU' if arguments.gpus else ''}, and a deadline of 1 s. Capacity is what 16 clients that wait for "
            "their answers get, measured before and after each run; then requests come at their own pace.\n",
            "| run | load | capacity/s before, after | requests/s sent | answered in time/s | of capacity | p50 ms | p99 ms | other answers |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        shares: dict[int, list[float]] = {}
        tails: dict[int, list[float]] = {}
        with contender(command, port, "/health/ready", env) as process:
            ask(process, port, bodies, PATH, 2.0, clients=8)
            before = ask(process, port, bodies, PATH, seconds, clients=16)["rate"]
            for number in range(repeats):
                for times in (2, 10):
                    found = ask(process, port, bodies, PATH, seconds, rate=times * before)
                    after = ask(process, port, bodies, PATH, seconds, clients=16)["rate"]
                    share = found["rate"] / ((before + after) / 2)
                    others = {key: value for key, value in found["statuses"].items() if key != "200"}
                    shown = ", ".join(f"{count:,} x {status}" for status, count in sorted(others.items()))
                    if found["without_connection"]:
                        shown += f"; {found['without_connection']:,} found all 400 connections busy"
                    shares.setdefault(times, []).append(share)
                    tails.setdefault(times, []).append(found["p99_ms"])
                    lines.append(
                        f"| {number + 1} | {times}x | {before:.0f}, {after:.0f} | {found['sent'] / seconds:.0f} | {found['rate']:.0f} | "
                        f"{share:.0%} | {found['p50_ms']:.0f} | {found['p99_ms']:.0f} | {shown} |"
                    )
                    print(lines[-1], flush=True)
                    before = after
    for times, of_load in shares.items():
        tail = tails[times]
        lines.append(
            f"\nAt {times} times the load: {statistics.median(of_load):.0%} of capacity (median; {min(of_load):.0%} to {max(of_load):.0%}), "
            f"p99 {statistics.median(tail):.0f} ms ({min(tail):.0f} to {max(tail):.0f})."
        )
    return lines


def run(arguments: argparse.Namespace) -> None:
    rest, found, overloaded = (RESULTS.read_text() if RESULTS.exists() else "").partition(OVERLOAD)
    overloaded = found + overloaded
    side_by_side, found, rest = rest.partition(AUDIT)
    of_audit = found + rest
    if arguments.only in (None, "measure"):
        head = (
            "# Predictions on request\n\n"
            f"`python benchmarks/serving.py run --seconds {arguments.seconds:g} --repeats {arguments.repeats} --write`, "
            f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}. The load tool and the contenders share the CPUs: "
            "compare rows with the same number of clients.\n\n"
            f"Each request has one row. Those without Ray run at once and are asked in turn, those on Ray after them, one at a time. Medians of {arguments.repeats} runs of {arguments.seconds:g} s.\n"
        )
        side_by_side = head + "\n".join(measure(arguments.seconds, arguments.repeats)) + "\n"
    if arguments.only in (None, "audit"):
        of_audit = "\n".join(audited(arguments)) + "\n"
    if arguments.only in (None, "overload"):
        overloaded = "\n".join(overload(arguments)) + "\n"
    if arguments.write:
        RESULTS.write_text(side_by_side + of_audit + overloaded)
    print(side_by_side + of_audit + overloaded)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--seconds", type=float, default=5)
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--only", choices=["measure", "audit", "overload"])
    one.add_argument(
        "--before", type=Path, help="another checkout whose server is measured beside this one's audit"
    )
    one.add_argument("--cases", nargs="+", default=AUDITED, help="of the audit store: CLIENTSxROWS")
    one.add_argument(
        "--gpus", type=float, default=0, help="of the audit store and the overload: score on a GPU"
    )
    one.add_argument(
        "--layers", type=int, nargs="+", default=[2048, 2048, 2048], help="of the overload's model"
    )
    one.add_argument("--write", action="store_true", help="write the result file")
    one.set_defaults(call=run)
    one = commands.add_parser("inline")
    one.add_argument("--port", type=int, required=True)
    one.add_argument("--version", type=int, default=1)
    one.set_defaults(call=inline)
    one = commands.add_parser("load")
    one.add_argument("--port", type=int, required=True)
    one.add_argument("--bodies", required=True)
    one.add_argument("--path", required=True)
    one.add_argument("--seconds", type=float, required=True)
    one.add_argument("--clients", type=int, default=1)
    one.add_argument("--rate", type=float, default=0)
    one.set_defaults(call=load)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
