"""`penstock serve` as a command: its options reach the server."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from typer.testing import CliRunner

from tasks.cli.app import app
from tasks.wiring import serving, serving_on_ray


def test_every_option_of_the_command_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    signature = inspect.signature(serving.serve)

    def serve(*args: Any, **options: Any) -> None:
        found.update(signature.bind(*args, **options).arguments)
        options["started"]("http://127.0.0.1:8123", 7)

    monkeypatch.setattr(serving, "serve", serve)
    command = "serve toy --host 127.0.0.1 --port 8123 --timeout-ms 250 --max-wait-ms 2 --queue 9 --poll-s 0.5"
    command += " --entity-days 3 --entity-max-age-s 60"
    ended = CliRunner().invoke(app, [*command.split(), "--no-audit", "--shadow"])
    assert ended.exit_code == 0, ended.output
    assert "version 7 on http://127.0.0.1:8123" in ended.output
    limits = found["limits"]
    assert limits.entity_max_age_s == 60
    assert (found["pipeline"], found["host"], found["port"]) == ("toy", "127.0.0.1", 8123)
    assert (found["audit"], found["shadow"], found["entity_days"]) == (False, True, 3)
    assert (limits.default_timeout_s, limits.max_wait_s, limits.queue_requests, limits.poll_s) == (
        0.25,
        0.002,
        9,
        0.5,
    )


def test_with_ray_they_reach_the_deployment_with_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    signature = inspect.signature(serving_on_ray.serve_on_ray)

    def serve(*args: Any, **options: Any) -> None:
        found.update(signature.bind(*args, **options).arguments)

    monkeypatch.setattr(serving_on_ray, "serve_on_ray", serve)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    command = "serve toy --ray --port 8123 --queue 9 --min-replicas 2 --max-replicas 3 --replica-gpus 0.5"
    ended = CliRunner().invoke(app, [*command.split(), "--no-audit", "--shadow", "--entity-days", "3"])
    assert ended.exit_code == 0, ended.output
    assert (found["pipeline"], found["port"], found["limits"].queue_requests) == ("toy", 8123, 9)
    assert (found["audit"], found["shadow"], found["entity_days"]) == (False, True, 3)
    scale = found["scale"]
    assert (scale.min_replicas, scale.max_replicas, scale.gpus) == (2, 3, 0.5)


def test_fewer_replicas_at_most_than_at_least_is_wrong_usage() -> None:
    command = "serve toy --ray --min-replicas 5 --max-replicas 4"
    assert CliRunner().invoke(app, command.split()).exit_code == 2


@pytest.mark.parametrize("wrong", ["--port 70000", "--timeout-ms 0", "--queue 0", "--max-wait-ms -1"])
def test_options_out_of_range_are_wrong_usage(wrong: str) -> None:
    assert CliRunner().invoke(app, ["serve", "toy", *wrong.split()]).exit_code == 2
