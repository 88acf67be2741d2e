"""`penstock serve --ray`: replicas of the same server on a real Ray, which grow and shrink in number with the load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_serve_support import free_ports, ray_head, serve_on_ray
from serving_support import (
    PATH,
    Bundles,
    Clients,
    expected_scores,
    json_rows,
    make_bundle,
    metric,
    private_copy,
    put_live,
    toy_rows,
    until,
)

from tasks.audit.hot import hot_rows
from tasks.core import PipelineSpec, Settings, load_pipeline

pytestmark = pytest.mark.ray
CHILD = [sys.executable, str(Path(__file__).parent / "ray_serve_child.py")]
LONG_FOR_MANY = """
import time

FEATURE_VERSION = "1"


def features(rows):
    time.sleep(0.2 if rows.num_rows >= 10 else 0)
    return rows.select(["price", "visits", "city", "device"])
"""
"""Features that keep a replica busy, and no CPU, when a request has many rows."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with ray_head(4) as env:
        yield env


def replicas(client: httpx.Client, version: int = 1) -> dict[str, float]:
    """Rows that each replica answered with a version."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "penstock_serving_predictions_total"
        and sample.labels["model_version"] == str(version)
        and sample.value
    }


def run(settings: Settings, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", "serve", "toy", "--ray", "--port", "0", *options],
        capture_output=True,
        text=True,
        env={**env, **settings.as_environment()},
        timeout=180,
    )


@dataclass
class Served:
    """A server with two replicas, and what it has answered so far."""

    settings: Settings
    spec: PipelineSpec
    process: subprocess.Popen[str]
    url: str
    answers: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="class")
def served(
    cluster: dict[str, str], made: tuple[Settings, Bundles], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    settings = private_copy(made[0], tmp_path_factory.mktemp("served"))
    with serve_on_ray(settings, cluster, "--min-replicas", "2") as (process, url):
        yield Served(settings, load_pipeline(settings, "toy"), process, url, [])


class TestTwoReplicas:
    """One server from its start to its end. The second test goes on where the first stopped."""

    def test_two_replicas_give_batch_s_scores_and_follow_promotions_without_a_failure(
        self, served: Served, bundles: Bundles
    ) -> None:
        rows = json_rows(toy_rows(served.settings))
        with httpx.Client(base_url=served.url, timeout=60) as client:
            with Clients(
                served.url, rows, pause_s=0.02
            ) as clients:  # starting and loading have a share of the CPUs
                until(lambda: len(replicas(client)) == 2, every_s=0.1)
                for version in (2, 3):
                    put_live(served.settings, served.spec, version, bundles[version])
                    until(lambda version=version: len(replicas(client, version)) == 2, every_s=0.1)
            problem = client.post(PATH, json={"rows": [{}]})
            assert (problem.status_code, problem.json()["which"]) == (422, "rows[0].customer")
            assert client.get("/health/ready").json()["model_version"] == 3
        served.answers += clients.answers
        assert clients.failures == []
        expected = expected_scores(served.settings, served.spec, bundles, (1, 2, 3))
        for customer, prediction in clients.answers:
            assert prediction["score"] == expected[customer, prediction["model_version"]]

    def test_another_server_is_refused_and_requests_under_way_when_the_first_is_told_to_end_are_answered_and_all_answers_recorded(
        self, cluster: dict[str, str], served: Served
    ) -> None:
        rows = json_rows(toy_rows(served.settings))
        elsewhere = run(served.settings, cluster)
        assert elsewhere.returncode == 2, elsewhere.stderr
        assert served.url.rpartition(":")[2] in elsewhere.stderr
        again = run(served.settings, cluster, "--port", served.url.rpartition(":")[2])
        assert again.returncode == 2, again.stderr
        assert "deployed on this Ray cluster already" in again.stderr
        with httpx.Client(base_url=served.url, timeout=60) as client:
            until(lambda: metric(client, "penstock_serving_queue_size_requests") == 2 * 1024, every_s=0.1)
        with Clients(served.url, rows) as clients:
            until(lambda: len(clients.answers) > 40)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: clients.failures)  # nobody listens any more
        assert served.process.wait(90) == 0, served.process.communicate()
        # What came after the end was refused by Ray's proxy or not connected; nothing was cut or got a wrong answer.
        answers = [*served.answers, *clients.answers]
        answered = Counter((one["prediction_id"], one["model_version"]) for _, one in answers)
        assert {version for _, version in answered} == {1, 2, 3}
        kept = hot_rows(served.settings, served.spec, "", "~").to_pylist()
        assert Counter((row["prediction_id"], row["model_version"]) for row in kept) == answered


def test_replicas_become_more_under_load_and_fewer_after_it_and_no_request_fails(
    cluster: dict[str, str], installation: Settings, spec: PipelineSpec
) -> None:
    put_live(installation, spec, 9, make_bundle(installation, spec, seed=9, features=LONG_FOR_MANY))
    rows = json_rows(toy_rows(installation))
    with (
        serve_on_ray(installation, cluster, command=[*CHILD, "2"]) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert client.post(PATH, json={"rows": rows[:1]}).status_code == 200
        assert len(replicas(client, 9)) == 1
        with Clients(url, rows, threads=6, rows_each=20) as clients:
            until(lambda: len(replicas(client, 9)) == 2, timeout_s=300, every_s=0.1)
        trickle: list[int] = []

        def one_is_left() -> bool:
            trickle.append(client.post(PATH, json={"rows": rows[:1]}).status_code)
            return len(replicas(client, 9)) == 1  # the one that ends takes its name from the board

        until(one_is_left, timeout_s=300, every_s=0.1)
        assert set(trickle) == {200}
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, process.communicate()
    assert clients.failures == []


def test_a_cluster_that_does_not_answer_is_said_with_its_address_and_what_to_do(
    installation: Settings,
) -> None:
    (port,) = free_ports(1)
    env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "disabled"}
    ended = run(installation, env)
    assert ended.returncode == 75, ended.stderr
    assert "no Ray cluster answers" in ended.stderr and str(port) in ended.stderr
    assert "ray start --head" in ended.stderr


def test_more_replicas_than_the_cluster_has_cpus_for_are_refused_with_both_numbers(
    cluster: dict[str, str], installation: Settings
) -> None:
    ended = run(installation, cluster, "--min-replicas", "9", "--max-replicas", "9")
    assert ended.returncode == 2, ended.stderr
    assert "need 9 CPUs" in ended.stderr and "has 4" in ended.stderr
