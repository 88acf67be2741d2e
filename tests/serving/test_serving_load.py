"""More requests than can be answered, deadlines, clients that are slow or vanish, and the end of a server."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pyarrow as pa
import pytest
from serving_support import PATH, QUICK, json_rows, metric, running, serving, toy_rows, until

from tasks.audit.hot import hot_rows
from tasks.core import PipelineSpec, Settings
from tasks.serving import Deployed, Exposure, ModelServer, Scores, ServingLimits
from tasks.wiring.serving import ServedBundle

Bundles = dict[int, tuple[str, str]]


class Gated:
    """A real model that scores only while its gate is open, and keeps how many rows it was asked for."""

    def __init__(self, model: ServedBundle) -> None:
        self._model = model
        self.open = threading.Event()
        self.entered = threading.Event()
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def score(self, rows: pa.Table) -> Scores:
        self.entered.set()
        assert self.open.wait(60)
        self.rows += rows.num_rows
        return self._model.score(rows)


@contextmanager
def gated(
    settings: Settings, spec: PipelineSpec, bundle: tuple[str, str], limits: ServingLimits
) -> Iterator[tuple[ModelServer, Gated, httpx.Client]]:
    deployed = Deployed(1, *bundle, datetime(2024, 3, 1, tzinfo=UTC))
    model = Gated(ServedBundle(settings, spec, deployed))
    server = ModelServer(
        "toy",
        "default",
        source=lambda: Exposure(deployed),
        load=lambda _: model,  # type: ignore[arg-type, return-value]
        journal=None,
        quality=lambda _: {},
        limits=limits,
    )
    server.follow_once()
    try:
        with (
            running(server) as url,
            httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200)) as client,
        ):
            yield server, model, client
            model.open.set()
    finally:
        model.open.set()


def test_at_ten_times_what_fits_exactly_what_fits_is_answered_and_the_rest_is_told_when_to_come(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))[:90]
    limits = replace(QUICK, queue_requests=8)
    with gated(installation, spec, bundles[1], limits) as (server, model, client):
        with ThreadPoolExecutor(90) as pool:
            first = pool.submit(client.post, PATH, json={"rows": rows[:1]})
            assert model.entered.wait(60)  # one is being scored, the queue is empty
            others = [pool.submit(client.post, PATH, json={"rows": [row]}) for row in rows[1:]]
            until(lambda: sum(one.done() for one in others) == 81)  # all but eight were refused, at once
            model.open.set()
            answers = [one.result() for one in (first, *others)]
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(good), len(refused)) == (9, 81)
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["type"] == "Overloaded"
        assert model.rows == 9
        assert metric(client, "penstock_serving_errors_total", cause="queue_full") == 81
        assert metric(client, "penstock_serving_queue_high_water_requests") == 8
        assert client.post(PATH, json={"rows": rows[:1]}).status_code == 200  # and it goes on
        assert server.ready


def test_a_request_whose_time_is_over_is_dropped_before_it_costs_the_model_anything(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))[:4]
    with gated(installation, spec, bundles[1], QUICK) as (_, model, client):
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(client.post, PATH, json={"rows": rows[:1]})
            assert model.entered.wait(60)
            in_header = pool.submit(
                client.post, PATH, json={"rows": rows[1:2]}, headers={"x-request-timeout-ms": "500"}
            )
            in_body = pool.submit(client.post, PATH, json={"rows": rows[2:3], "timeout_ms": 500})
            patient = pool.submit(client.post, PATH, json={"rows": rows[3:4], "timeout_ms": 30_000})
            until(lambda: metric(client, "penstock_serving_queue_depth_requests") == 3)
            time.sleep(0.6)  # their time passes
            model.open.set()
            statuses = [one.result().status_code for one in (first, in_header, in_body, patient)]
        assert statuses == [200, 504, 504, 200]
        assert model.rows == 2
        assert in_body.result().json()["type"] == "DeadlineExceeded"


def test_a_request_that_would_only_be_late_is_refused_before_it_waits(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))
    with (
        gated(installation, spec, bundles[1], QUICK) as (server, model, client),
        ThreadPoolExecutor(3) as pool,
    ):
        for _ in range(2):
            server._batcher.pace.add(32, 0.032, time.monotonic())
        first = pool.submit(client.post, PATH, json={"rows": rows})
        assert model.entered.wait(60)
        second = pool.submit(client.post, PATH, json={"rows": rows})
        until(lambda: server._batcher.expected_s() > 0.06)
        late = client.post(PATH, json={"rows": rows[:1], "timeout_ms": 100})
        hurried = client.post(PATH, json={"rows": rows[:1], "timeout_ms": 20})
        model.open.set()
        assert (late.status_code, late.json()["fix"]) == (429, "retry after 1 s")
        assert "would take about" in late.json()["what"]
        assert (hurried.status_code, hurried.json()["fix"]) == (
            429,
            "allow it more time, or send fewer rows in a request",  # a batch takes 32 ms, whoever waits or not
        )
        assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_as_many_rows_as_a_request_may_have_are_let_in_at_first_and_after_few_rows(
    installation: Settings, spec: PipelineSpec, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0.0, 0.1)  # whatever a batch has, it seems to take three tenths of a second
    clock = SimpleNamespace(monotonic=time.monotonic, perf_counter=lambda: next(ticks))
    monkeypatch.setattr("tasks.serving.batching.time", clock)
    row = json_rows(toy_rows(installation))[0]
    with gated(installation, spec, bundles[1], ServingLimits()) as (server, model, client):
        model.open.set()
        limits = server.limits
        many = {"rows": [row] * limits.max_rows, "timeout_ms": 30_000}
        assert server._batcher.expected_s(limits.max_rows) < limits.time_margin * limits.default_timeout_s
        assert client.post(PATH, json=many).status_code == 200
        for rows in (1, 32):
            for _ in range(50):
                body = {"rows": [row] * rows, "timeout_ms": 30_000}
                assert client.post(PATH, json=body).status_code == 200
            until(lambda: server.waiting_s == 0.0)  # a batch ends a moment after its answers
            assert server._batcher.expected_s(limits.max_rows) < limits.time_margin * limits.default_timeout_s
            assert client.post(PATH, json=many).status_code == 200


def test_retry_after_is_how_long_what_waits_now_will_take(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))
    with (
        gated(installation, spec, bundles[1], QUICK) as (server, model, client),
        ThreadPoolExecutor(3) as pool,
    ):
        for _ in range(2):
            server._batcher.pace.add(32, 2.9, time.monotonic())  # a slow model: nearly three seconds a batch
        asked = [pool.submit(client.post, PATH, json={"rows": rows[:1]})]
        assert model.entered.wait(60)
        asked.append(pool.submit(client.post, PATH, json={"rows": rows[1:3]}))
        until(lambda: server.waiting_s == pytest.approx(5.8))
        refused = client.post(PATH, json={"rows": rows[3:4], "timeout_ms": 8_000})
        model.open.set()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "6")
        assert refused.json()["fix"] == "retry after 6 s"
        assert [one.result().status_code for one in asked] == [200, 200]
        until(lambda: server.waiting_s == 0.0)
        assert server.busy_s > 0


def test_a_version_is_warm_before_it_is_asked(
    installation: Settings, spec: PipelineSpec, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    score = ServedBundle.score

    def watched(model: ServedBundle, rows: pa.Table) -> Scores:
        sizes.append(rows.num_rows)
        return score(model, rows)

    monkeypatch.setattr(ServedBundle, "score", watched)
    ServedBundle(installation, spec, Deployed(1, *bundles[1], datetime(2024, 3, 1, tzinfo=UTC)))
    assert sizes[:2] == [1, 2] and max(sizes) > 2  # a lone row, a pair, and all golden rows


def test_clients_that_dribble_hold_nobody_up_and_are_let_go(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    limits = replace(QUICK, body_timeout_s=0.5)
    with serving(installation, limits, audit=False) as (_, client):
        port = client.base_url.port
        slow = []
        for _ in range(40):
            one = socket.create_connection(("127.0.0.1", port))
            one.sendall(
                f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"
                '{"rows"'.encode()
            )
            slow.append(one)
        for row in rows[:20]:
            assert client.post(PATH, json={"rows": [row]}).status_code == 200
        for one in slow:
            one.settimeout(60)
            answer = b""
            while part := one.recv(65_536):  # ends, because the server closes
                answer += part
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"RequestTimeout" in answer
            one.close()


def test_clients_that_vanish_leave_the_server_and_the_others_alone(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    body = json.dumps({"rows": rows[:1]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with serving(installation, audit=False) as (server, client):
        for number in range(60):
            one = socket.create_connection(("127.0.0.1", client.base_url.port))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            whole = head.encode() + body
            one.sendall(whole if number % 2 else whole[: number * 5])
            one.close()  # by a reset
            if number % 10 == 0:
                assert client.post(PATH, json={"rows": [rows[number]]}).status_code == 200
        until(lambda: metric(client, "penstock_serving_queue_depth_requests") == 0)
        assert client.post(PATH, json={"rows": rows[:3]}).status_code == 200
        assert server.ready


def test_a_model_that_raises_is_a_500_for_those_rows_and_the_server_goes_on(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))
    with gated(installation, spec, bundles[1], QUICK) as (_, model, client):
        model.open.set()

        def fail(_: pa.Table) -> Scores:
            raise MemoryError("no more")

        model.score = fail  # type: ignore[method-assign]
        answer = client.post(PATH, json={"rows": rows[:1]})
        assert (answer.status_code, answer.json()["type"]) == (500, "ModelFailed")
        assert answer.json()["which"] == "model version 1"
        del model.score
        assert client.post(PATH, json={"rows": rows[:1]}).status_code == 200


def test_a_row_that_the_feature_code_fails_on_is_named_and_others_of_the_batch_are_answered(
    installation: Settings, spec: PipelineSpec
) -> None:
    from serving_support import make_bundle, put_live

    picky = """
FEATURE_VERSION = "picky"
def features(rows):
    if "poison" in rows["city"].to_pylist():
        raise KeyError("poison")
    return rows.select(["price", "visits", "city", "device"])
"""
    put_live(installation, spec, 5, make_bundle(installation, spec, seed=5, features=picky))
    rows = json_rows(toy_rows(installation))[:12]
    bad = {**rows[3], "city": "poison"}
    with serving(installation) as (_, client):
        refused = client.post(PATH, json={"rows": [rows[0], bad, rows[1]]})
        assert (refused.status_code, refused.json()["type"]) == (422, "RowFailed")
        assert refused.json()["which"] == "row 1"
        assert "features: KeyError" in refused.json()["what"]
        with ThreadPoolExecutor(12) as pool:
            bodies = [{"rows": [bad if n == 3 else row]} for n, row in enumerate(rows)]
            answers = list(pool.map(lambda body: client.post(PATH, json=body).status_code, bodies))
        assert answers == [422 if n == 3 else 200 for n in range(12)]
    assert hot_rows(installation, spec, "", "~").num_rows == 11  # what was refused was not answered


@pytest.fixture
def command(installation: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`penstock serve` in a process, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", "serve", "toy", "--port", "0", "--timeout-ms", "30000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **installation.as_environment()},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"version 1 on (http://\S+),", line)
        assert url is not None, line + (process.stderr.read() if process.poll() is not None else "")
        yield process, url[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_under_load_drops_no_request_and_every_answer_is_in_the_audit_store(
    installation: Settings, spec: PipelineSpec, command: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = command
    rows = json_rows(toy_rows(installation))
    answered: list[str] = []
    failures: list[str] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for count in range(1_000_000):
                row = rows[(number * 20 + count) % len(rows)]
                try:
                    answer = client.post(PATH, json={"rows": [row], "request_id": f"{number}-{count}"})
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                    return
                if answer.status_code != 200:
                    failures.append(answer.text)
                    return
                answered.append(f"{answer.json()['predictions'][0]['prediction_id']} {number}-{count}")
                if answer.headers.get("connection") == "close":  # what a load balancer does: look elsewhere
                    return

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 60 or failures)
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/health/ready").status_code == 503, timeout_s=10)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert process.wait(60) == 0
    assert failures == []
    kept = hot_rows(installation, spec, "", "~")
    found = [f"{row['prediction_id']} {row['source_key']}" for row in kept.to_pylist()]
    assert sorted(found) == sorted(answered)


def test_requests_that_wait_when_the_server_is_told_to_end_are_answered(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))[:10]
    pool = ThreadPoolExecutor(10)
    with gated(installation, spec, bundles[1], QUICK) as (server, model, client):
        waiting = [pool.submit(client.post, PATH, json={"rows": rows[:1]})]
        assert model.entered.wait(60)
        waiting += [pool.submit(client.post, PATH, json={"rows": [row]}) for row in rows[1:]]
        until(lambda: metric(client, "penstock_serving_queue_depth_requests") == 9)
        server.draining = True
        assert client.get("/health/ready").json()["reason"] == "draining"
        model.open.set()
        answers = [one.result() for one in waiting]
        assert [answer.status_code for answer in answers] == [200] * 10
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        server.draining = False
    pool.shutdown()


def test_an_address_that_is_taken_is_said_with_what_to_do(installation: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "tasks.cli", "serve", "toy", "--port", port],
            capture_output=True,
            text=True,
            env={**os.environ, **installation.as_environment()},
            timeout=120,
        )
    assert ended.returncode == 2
    assert port in ended.stderr and "--port" in ended.stderr
