"""What a step or its libraries print does not get between the result and the program that reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks import wiring
from tasks.cli.app import app


def test_a_step_that_prints_leaves_json_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(_settings: object, _pipeline: str, **_arguments: Any) -> dict[str, Any]:
        print("(a worker says hello)")  # noqa: T201
        return {"rows": 3}

    monkeypatch.setattr(wiring, "step", lambda _name: noisy)
    app(["data", "show", "toy", "some-snapshot", "--json"], standalone_mode=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"rows": 3}
    assert "hello" in printed.err
