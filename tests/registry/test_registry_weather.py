"""Bad weather in the middle of a promotion or rollback: what is refused, what is kept, and that the next attempt succeeds."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from fault_proxy import Fault, FaultProxy, Kind
from registry_support import Trained, passing, record_versions

from tasks import registry
from tasks.core import PipelineSpec, Settings
from tasks.core.errors import ServiceUnavailable
from tasks.metadata import MetadataStore, ModelVersion
from tasks.registry.mlflow_api import MlflowRegistry

Move = Callable[..., registry.Deployment]
ALIAS = r"registered-models/alias$"


def loads(model: ModelVersion) -> None:
    """A check that passes."""


def promote_3(settings: Settings, spec: PipelineSpec, **more: Any) -> registry.Deployment:
    return registry.promote(settings, spec, 3, expected=2, actor="tests", reason="better", **more)


def rollback_2(settings: Settings, spec: PipelineSpec, **more: Any) -> registry.Deployment:
    return registry.rollback(settings, spec, expected=2, actor="tests", reason="worse", **more)


@pytest.mark.parametrize(("move", "then"), [(promote_3, 3), (rollback_2, 1)])
@pytest.mark.parametrize("without_mlflow", ["sqlite"], indirect=True)
def test_a_database_that_locks_after_the_check_leaves_the_champion_and_the_next_attempt_moves_it(
    without_mlflow: Settings, spec: PipelineSpec, move: Move, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_versions(without_mlflow, spec, 3)
    for number in (1, 2):
        registry.promote(
            without_mlflow, spec, number, expected=number - 1 or None, actor="t", reason="", check=loads
        )
    path = without_mlflow.metadata_url.removeprefix("sqlite:///")
    before = registry.history(without_mlflow, spec)
    monkeypatch.setitem(MetadataStore.open.__func__.__kwdefaults__, "patience_s", 0.2)  # type: ignore[attr-defined]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:

        def another_program_locks(model: ModelVersion) -> None:
            other.execute("BEGIN IMMEDIATE")

        with pytest.raises(ServiceUnavailable, match="lock"):
            move(without_mlflow, spec, check=another_program_locks)
        other.execute("ROLLBACK")
    assert registry.history(without_mlflow, spec) == before
    assert move(without_mlflow, spec, check=loads).version == then
    live = registry.champion(without_mlflow, spec)
    assert live is not None and live.version == then


@pytest.mark.parametrize("kind", ["reset", "lose-answer"])
def test_a_connection_that_breaks_at_the_alias_leaves_it_pending_and_a_repeat_puts_it_right(
    with_mlflow: Settings,
    spec: PipelineSpec,
    train: Callable[[str], Trained],
    mlflow: MlflowRegistry,
    kind: Kind,
) -> None:
    for letter in "ab":
        registry.register_challenger(with_mlflow, spec, train(letter), passing(spec, letter), {})
    request = {"expected": None, "actor": "tests", "reason": "first", "check": loads}
    with FaultProxy(with_mlflow.mlflow_url) as proxy:
        through = dataclasses.replace(with_mlflow, mlflow_url=proxy.url)
        proxy.add(Fault("POST", ALIAS, kind))
        made = registry.promote(through, spec, 1, **request)
        assert made.alias_pending and proxy.met(kind)
        proxy.clear()
        again = registry.promote(through, spec, 1, **request)
    assert (again.event_id, again.alias_pending) == (made.event_id, False)
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    assert [event.kind for event in registry.history(with_mlflow, spec)] == ["promote"], "no hand was at work"
