"""Bad weather in the middle of a promotion or rollback: what is refused, what is kept, and that the next attempt succeeds."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
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


@pytest.fixture
def registered(with_mlflow: Settings, spec: PipelineSpec, train: Callable[[str], Trained]) -> Settings:
    """Versions 1 and 2 are registered, none is live."""
    for letter in "ab":
        registry.register_challenger(with_mlflow, spec, train(letter), passing(spec, letter), {})
    return with_mlflow


def first(settings: Settings, spec: PipelineSpec) -> registry.Deployment:
    return registry.promote(settings, spec, 1, expected=None, actor="tests", reason="first", check=loads)


def second(settings: Settings, spec: PipelineSpec) -> registry.Deployment:
    return registry.promote(settings, spec, 2, expected=1, actor="tests", reason="second", check=loads)


def impatient(monkeypatch: pytest.MonkeyPatch, answer_s: float) -> None:
    monkeypatch.setitem(MlflowRegistry.__init__.__kwdefaults__, "answer_s", answer_s)  # type: ignore[index]


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("POST", ALIAS, "answer", times=1, status=status) for status in (429, 502, 503)),
        Fault("GetObject", "registered-models/get$", "answer", times=1, status=502),
        Fault("*", "registered-models", "delay", delay_s=0.3),
    ],
    ids=lambda fault: f"{fault.operation}-{fault.kind}-{fault.status}",
)
def test_a_promotion_ends_with_its_alias_set_when_mlflow_is_slow_or_refuses_once(
    registered: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, fault: Fault
) -> None:
    with FaultProxy(registered.mlflow_url) as proxy:
        proxy.add(fault)
        made = first(dataclasses.replace(registered, mlflow_url=proxy.url), spec)
        assert proxy.met(fault.kind)
    assert not made.alias_pending
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    assert registry.reconcile(registered, spec) == []


def test_a_mlflow_that_never_answers_is_given_up_and_reconciled_when_it_does(
    registered: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(registered.mlflow_url) as proxy:
        through = dataclasses.replace(registered, mlflow_url=proxy.url)
        proxy.add(Fault("*", "registered-models", "hang"))
        with monkeypatch.context() as patch:
            impatient(patch, 0.3)
            assert first(through, spec).alias_pending
            with pytest.raises(ServiceUnavailable, match="did not answer") as caught:
                registry.reconcile(through, spec)
        assert proxy.url in caught.value.which and "run again" in caught.value.fix
        proxy.clear()
        assert registry.reconcile(through, spec) == ["alias champion: none -> version 1"]
    assert [event.kind for event in registry.history(registered, spec)] == ["promote"]


@pytest.mark.parametrize("overtaken", [False, True])
def test_an_alias_that_mlflow_sets_after_it_was_given_up_is_right_after_a_reconcile(
    registered: Settings,
    spec: PipelineSpec,
    mlflow: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
    overtaken: bool,
) -> None:
    """Overtaken: the next promotion has set its alias before the late one arrives, which looks like a hand."""
    with FaultProxy(registered.mlflow_url) as proxy, monkeypatch.context() as patch:
        proxy.add(Fault("POST", ALIAS, "delay", times=1, delay_s=2.0))
        impatient(patch, 0.5)
        assert first(dataclasses.replace(registered, mlflow_url=proxy.url), spec).alias_pending
        patch.undo()
        if overtaken:
            assert not second(registered, spec).alias_pending
        deadline = time.monotonic() + 30
        while mlflow.aliases(spec.model_name).get("champion") != 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    said = registry.reconcile(registered, spec)
    assert ("by hand" in " ".join(said)) == overtaken
    assert mlflow.aliases(spec.model_name)["champion"] == (2 if overtaken else 1)
    live = registry.champion(registered, spec)
    assert live is not None and live.version == (2 if overtaken else 1)
    assert registry.reconcile(registered, spec) == []
