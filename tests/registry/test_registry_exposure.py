"""A challenger is exposed by compare-and-swap on the deployment log, and what follows is a pure function."""

from __future__ import annotations

import threading

import pytest
from registry_support import record_versions

from tasks import registry
from tasks.core import PipelineSpec, Settings
from tasks.core.errors import ConfigError, NotFound, PenstockError, PromotionConflict, TerminalError
from tasks.metadata import MetadataStore, ModelVersion
from tasks.registry import RampState

WHO = {"actor": "tests", "reason": "because"}


def loads(model: ModelVersion) -> None:
    """A check that passes."""


def refuses(model: ModelVersion) -> None:
    raise TerminalError("does not load", which=f"version {model.version}", fix="train another")


@pytest.fixture
def one_live(without_mlflow: Settings, spec: PipelineSpec) -> Settings:
    """Version 1 is live; 2 and 3 are registered."""
    record_versions(without_mlflow, spec, 3)
    registry.promote(without_mlflow, spec, 1, expected=None, **WHO, check=loads)
    return without_mlflow


def expose(settings: Settings, spec: PipelineSpec, version: int, share: float, expected: int | None = 1):
    return registry.expose(settings, spec, version, share=share, expected=expected, **WHO, check=loads)


def kinds(settings: Settings, spec: PipelineSpec) -> list[str]:
    return [event.kind for event in reversed(registry.history(settings, spec))]


def test_an_exposure_leaves_the_champion_live_and_is_changed_and_withdrawn_once(
    one_live: Settings, spec: PipelineSpec
) -> None:
    first = expose(one_live, spec, 2, 0.01)
    assert (first.version, first.share, first.champion_version) == (2, 0.01, 1)
    assert expose(one_live, spec, 2, 0.01) == first, "the same again adds nothing"
    assert expose(one_live, spec, 2, 0.05).share == 0.05
    live = registry.champion(one_live, spec)
    assert live is not None and live.version == 1
    ended = registry.withdraw(one_live, spec, **WHO)
    assert ended is not None and (ended.kind, ended.version) == ("withdraw", 2)
    assert registry.withdraw(one_live, spec, **WHO) is None
    assert registry.current_exposure(one_live, spec) is None
    assert kinds(one_live, spec) == ["promote", "expose", "expose", "withdraw"]


def test_the_check_runs_before_a_version_is_exposed_and_its_refusal_leaves_no_event(
    one_live: Settings, spec: PipelineSpec
) -> None:
    with pytest.raises(TerminalError, match="does not load"):
        registry.expose(one_live, spec, 2, share=0.1, expected=1, **WHO, check=refuses)
    assert kinds(one_live, spec) == ["promote"]
    expose(one_live, spec, 2, 0.1)
    registry.expose(
        one_live, spec, 2, share=0.2, expected=1, **WHO, check=refuses
    )  # it was checked when it began


@pytest.mark.parametrize("ends", ["promote it", "promote another", "roll back"])
def test_a_move_of_the_champion_ends_the_exposure(one_live: Settings, spec: PipelineSpec, ends: str) -> None:
    registry.promote(one_live, spec, 3, expected=1, **WHO, check=loads)
    expose(one_live, spec, 2, 0.25, expected=3)
    if ends == "roll back":
        registry.rollback(one_live, spec, expected=3, **WHO, check=loads)
    else:
        chosen = 2 if ends == "promote it" else 1
        registry.promote(one_live, spec, chosen, expected=3, **WHO, check=loads)
    assert registry.current_exposure(one_live, spec) is None


def test_barring_the_exposed_version_ends_its_exposure_and_a_withdrawal_may_bar(
    one_live: Settings, spec: PipelineSpec
) -> None:
    expose(one_live, spec, 2, 0.25)
    registry.bar(one_live, spec, 2, **WHO)
    assert registry.current_exposure(one_live, spec) is None
    assert kinds(one_live, spec)[-2:] == ["withdraw", "bar"]
    with pytest.raises(TerminalError, match="is barred"):
        expose(one_live, spec, 2, 0.25)
    expose(one_live, spec, 3, 0.25)
    registry.withdraw(one_live, spec, bar=True, **WHO)
    assert MetadataStore.open(one_live).head(spec).barred == {2, 3}


def test_a_wrong_exposure_says_what_is_wrong(one_live: Settings, spec: PipelineSpec) -> None:
    for share in (0.0, 1.0, 7.0):
        with pytest.raises(ConfigError, match="share"):
            expose(one_live, spec, 2, share)
    with pytest.raises(NotFound, match="not registered"):
        expose(one_live, spec, 9, 0.1)
    with pytest.raises(TerminalError, match="is live"):
        expose(one_live, spec, 1, 0.1)
    with pytest.raises(PromotionConflict, match="version 3 was expected to be live"):
        expose(one_live, spec, 2, 0.1, expected=3)
    expose(one_live, spec, 2, 0.1)
    with pytest.raises(PromotionConflict, match="version 2 is, at 10 %"):
        expose(one_live, spec, 3, 0.1)
    with pytest.raises(NotFound, match="exposes no challenger"):
        registry.withdraw(one_live, spec, **WHO)
        registry.require_exposed(one_live, spec)


def test_without_a_champion_nothing_can_be_exposed(without_mlflow: Settings, spec: PipelineSpec) -> None:
    record_versions(without_mlflow, spec, 1)
    with pytest.raises(TerminalError, match="no champion to stand beside"):
        expose(without_mlflow, spec, 1, 0.1, expected=None)


def test_of_many_who_expose_different_versions_at_once_one_wins(
    one_live: Settings, spec: PipelineSpec
) -> None:
    outcomes: list[str] = []

    def attempt(version: int) -> None:
        try:
            expose(one_live, spec, version, 0.1)
            outcomes.append("won")
        except PenstockError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=attempt, args=(2 + n % 2,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds(one_live, spec) == ["promote", "expose"]
    assert sorted(set(outcomes)) == ["PromotionConflict", "won"] and len(outcomes) == 16


RAMPED = {"ramp": (0.01, 0.05, 0.25), "ramp_days": 1, "max_error_share": 0.01, "max_latency_ratio": 3.0}


def seen(**more: object) -> RampState:
    """Everything in order at 5 %, after three labelled days."""
    usual: dict[str, object] = {
        "share": 0.05, "days_at_share": 1, "judged_days": 3, "rows": 500, "errors": 0,
        "verdict": "pass", "low": -0.01, "high": 0.001, "latency_ratio": 1.1,
    }  # fmt: skip
    return RampState(**{**usual, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "action", "share"),
    [
        (seen(), "advance", 0.25),
        (seen(share=0.01), "advance", 0.05),
        (seen(share=0.02), "advance", 0.05),
        (seen(share=0.25), "promote", None),
        (seen(verdict="inconclusive"), "advance", 0.25),
        (seen(share=0.25, verdict="inconclusive"), "hold", None),
        (seen(days_at_share=0), "hold", None),
        (seen(judged_days=1), "hold", None),
        (seen(judged_days=0, verdict=None), "hold", None),
        (seen(trouble="the monitor holds scoring"), "hold", None),
        (seen(verdict="fail", low=0.01), "withdraw", None),
        (seen(verdict="fail", trouble="the monitor holds scoring"), "withdraw", None),
        (seen(errors=30), "withdraw", None),
        (seen(rows=0, errors=400, judged_days=0, verdict=None), "withdraw", None),
        (seen(errors=6), "advance", 0.25),
        (seen(latency_ratio=3.2), "withdraw", None),
        (seen(latency_ratio=None), "advance", 0.25),
    ],
)
def test_harm_ends_an_exposure_what_is_not_known_holds_it_and_the_rest_goes_on(
    spec: PipelineSpec, state: RampState, action: str, share: float | None
) -> None:
    spec = spec.model_copy(update={"canary": spec.canary.model_copy(update=RAMPED)})
    decision = registry.next_step(spec, state)
    assert (decision.action, decision.share) == (action, share), decision.reasons
    assert decision.reasons and all(decision.reasons)


def test_a_ramp_that_does_not_rise_is_refused() -> None:
    from tasks.core.spec import CanarySpec

    for ramp in ([0.1, 0.05], [0.1, 0.1], [0.0], [1.0]):
        with pytest.raises(ValueError, match="ramp"):
            CanarySpec(ramp=ramp)  # type: ignore[arg-type]
