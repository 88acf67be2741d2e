"""Two processes at the same step: one winner each, everything recorded once, and the alias as the log says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from children import at_once
from database_fixtures import on_database
from registry_support import Trained, passing

from tasks import registry
from tasks.core import PipelineSpec, Settings
from tasks.metadata import ModelVersion
from tasks.registry.mlflow_api import MlflowRegistry

Policy = Literal["revert", "adopt"]


def loads(model: ModelVersion) -> None:
    """A check that passes."""


@pytest.fixture(params=["sqlite", "postgresql"])
def three(
    request: pytest.FixtureRequest, with_mlflow: Settings, spec: PipelineSpec, train: Callable[[str], Trained]
) -> Settings:
    """Versions 1 and 2 were promoted, 3 is registered; MLflow is up."""
    settings = on_database(request, with_mlflow)
    for letter in "abc":
        registry.register_challenger(settings, spec, train(letter), passing(spec, letter), {})
    for number in (1, 2):
        promote(settings, spec, number, number - 1 or None)
    return settings


def promote(settings: Settings, spec: PipelineSpec, version: int, expected: int | None) -> int:
    return registry.promote(
        settings, spec, version, expected=expected, actor="tests", reason="better", check=loads
    ).event_id


def kinds(settings: Settings, spec: PipelineSpec) -> list[str]:
    """Events after the two promotions, newest first."""
    return [event.kind for event in registry.history(settings, spec) if event.event_id > 2]


def alias_is_the_log(settings: Settings, spec: PipelineSpec, mlflow: MlflowRegistry) -> int:
    live = registry.champion(settings, spec)
    assert live is not None
    assert mlflow.aliases(spec.model_name)["champion"] == live.version
    return live.version


def test_an_attempt_taken_for_dead_and_its_retry_promote_once_and_both_learn_of_it(
    three: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    outcomes = at_once(*[lambda: promote(three, spec, 3, 2)] * 4)
    assert outcomes == [3] * 4
    assert kinds(three, spec) == ["promote"]
    assert alias_is_the_log(three, spec, mlflow) == 3


def test_of_a_promotion_and_a_rollback_at_once_one_wins(
    three: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    def rollback() -> int:
        return registry.rollback(three, spec, expected=2, actor="tests", reason="worse", check=loads).event_id

    outcomes = at_once(lambda: promote(three, spec, 3, 2), rollback)
    promoted = outcomes[0] == 3
    assert outcomes[not promoted] == 3 and outcomes[promoted].startswith("PromotionConflict: ")
    assert kinds(three, spec) == (["promote"] if promoted else ["bar", "rollback"])
    assert alias_is_the_log(three, spec, mlflow) == (3 if promoted else 1)
    assert registry.reconcile(three, spec) == []


@pytest.mark.parametrize("policy", ["revert", "adopt"])
def test_reconciles_beside_a_promotion_take_no_process_for_a_hand(
    three: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, policy: Policy
) -> None:
    def reconcile() -> None:
        registry.reconcile(three, spec, policy=policy, check=loads)

    outcomes = at_once(reconcile, lambda: promote(three, spec, 3, 2), reconcile)
    assert outcomes == [None, 3, None]
    assert kinds(three, spec) == ["promote"]
    assert alias_is_the_log(three, spec, mlflow) == 3


@pytest.mark.parametrize("policy", ["revert", "adopt"])
def test_a_promotion_between_a_reconciles_look_at_the_alias_and_at_the_log_is_not_undone(
    three: Settings,
    spec: PipelineSpec,
    mlflow: MlflowRegistry,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = MlflowRegistry.aliases
    promoted: list[int] = []

    def aliases(self: MlflowRegistry, name: str) -> dict[str, int]:
        found = real(self, name)
        if not promoted:
            promoted.append(0)
            promoted.append(promote(three, spec, 3, 2))
        return found

    monkeypatch.setattr(MlflowRegistry, "aliases", aliases)
    assert registry.reconcile(three, spec, policy=policy, check=loads) == []
    assert kinds(three, spec) == ["promote"]
    assert alias_is_the_log(three, spec, mlflow) == 3


@pytest.mark.parametrize(("policy", "kind", "live"), [("revert", "revert", 2), ("adopt", "adopt", 1)])
def test_reconciles_at_once_record_a_hand_once(
    three: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, policy: Policy, kind: str, live: int
) -> None:
    mlflow.set_alias(spec.model_name, "champion", 1)

    def reconcile() -> None:
        registry.reconcile(three, spec, policy=policy, check=loads)

    assert at_once(*[reconcile] * 3) == [None] * 3
    assert kinds(three, spec) == [kind]
    assert alias_is_the_log(three, spec, mlflow) == live
