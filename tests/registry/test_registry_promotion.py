"""The champion moves by compare-and-swap, forth and back, with MLflow down all the while."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial

import pytest
from children import at_once
from registry_support import record_versions

from tasks import registry
from tasks.core import PipelineSpec, Settings, utc_now
from tasks.core.errors import NotFound, PenstockError, PromotionConflict, ServiceUnavailable, TerminalError
from tasks.metadata import ModelVersion
from tasks.registry import Deployment


def loads(model: ModelVersion) -> None:
    """A check that passes."""


def promote(
    settings: Settings, spec: PipelineSpec, version: int, expected: int | None, actor: str = "tests"
) -> Deployment:
    return registry.promote(
        settings, spec, version, expected=expected, actor=actor, reason="better", check=loads
    )


def rollback(
    settings: Settings, spec: PipelineSpec, to: int | None = None, expected: int | None = None
) -> Deployment:
    return registry.rollback(
        settings, spec, to_version=to, expected=expected, actor="tests", reason="worse", check=loads
    )


@pytest.fixture
def three(without_mlflow: Settings, spec: PipelineSpec) -> Settings:
    """Versions 1, 2 and 3 were promoted one after the other; 4 is registered."""
    record_versions(without_mlflow, spec, 4)
    for version in (1, 2, 3):
        promote(without_mlflow, spec, version, expected=version - 1 or None)
    return without_mlflow


def test_a_promotion_is_committed_while_mlflow_is_down(without_mlflow: Settings, spec: PipelineSpec) -> None:
    record_versions(without_mlflow, spec, 1)
    assert registry.champion(without_mlflow, spec) is None
    made = promote(without_mlflow, spec, 1, expected=None)
    assert made.alias_pending
    live = registry.champion(without_mlflow, spec)
    assert live is not None
    assert (live.version, live.bundle_digest, live.event_id) == (1, f"{1:064x}", 1)


def test_of_fifty_threads_that_promote_at_once_one_wins_and_the_others_learn_who(
    without_mlflow: Settings, spec: PipelineSpec
) -> None:
    record_versions(without_mlflow, spec, 50)
    gate = threading.Barrier(50)
    outcomes: list[tuple[int, PenstockError | Deployment]] = []

    def contend(version: int) -> None:
        gate.wait(60)
        try:
            outcomes.append((version, promote(without_mlflow, spec, version, None, f"actor-{version}")))
        except PenstockError as error:
            outcomes.append((version, error))

    threads = [threading.Thread(target=contend, args=(version,)) for version in range(1, 51)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [version for version, outcome in outcomes if isinstance(outcome, Deployment)]
    losers = [outcome for _, outcome in outcomes if isinstance(outcome, PromotionConflict)]
    assert len(winners) == 1 and len(losers) == 49
    assert all(f"version {winners[0]} is (promote by actor-{winners[0]} at" in str(loser) for loser in losers)
    assert [event.version for event in registry.history(without_mlflow, spec)] == winners


def test_of_fifty_processes_that_promote_at_once_one_wins(
    without_mlflow: Settings, spec: PipelineSpec
) -> None:
    record_versions(without_mlflow, spec, 50)
    outcomes = at_once(
        *[
            partial(promote, without_mlflow, spec, version, None, f"actor-{version}")
            for version in range(1, 51)
        ]
    )
    winners = [outcome.version for outcome in outcomes if isinstance(outcome, Deployment)]
    assert len(winners) == 1
    assert sum(str(outcome).startswith("PromotionConflict: ") for outcome in outcomes) == 49
    live = registry.champion(without_mlflow, spec)
    assert live is not None and live.version == winners[0]


def test_the_same_request_again_returns_the_deployment_it_made(three: Settings, spec: PipelineSpec) -> None:
    first = registry.champion(three, spec)
    assert first is not None
    again = promote(three, spec, 3, expected=2)
    assert again.event_id == first.event_id
    assert promote(three, spec, 3, expected=3, actor="someone else").event_id == first.event_id
    assert len(registry.history(three, spec)) == 3


def test_another_request_for_the_live_version_with_a_stale_expectation_conflicts(
    three: Settings, spec: PipelineSpec
) -> None:
    with pytest.raises(PromotionConflict, match="version 1 was expected to be live, but version 3 is"):
        promote(three, spec, 3, expected=1)
    with pytest.raises(PromotionConflict, match="no version was expected"):
        promote(three, spec, 4, expected=None)


def test_a_version_that_is_not_registered_cannot_be_promoted(three: Settings, spec: PipelineSpec) -> None:
    with pytest.raises(NotFound, match="version 9") as caught:
        promote(three, spec, 9, expected=3)
    assert "4, 3, 2, 1" in caught.value.fix


def test_a_check_that_fails_leaves_the_champion(three: Settings, spec: PipelineSpec) -> None:
    asked: list[str] = []

    def refuses(model: ModelVersion) -> None:
        asked.append(model.bundle_digest)
        raise TerminalError("golden rows moved")

    with pytest.raises(TerminalError, match="golden rows moved"):
        registry.promote(three, spec, 4, expected=3, actor="tests", reason="", check=refuses)
    with pytest.raises(TerminalError, match="golden rows moved"):
        registry.rollback(three, spec, actor="tests", reason="", check=refuses)
    assert asked == [f"{4:064x}", f"{2:064x}"]
    live = registry.champion(three, spec)
    assert live is not None and live.version == 3
    assert len(registry.history(three, spec)) == 3


def test_a_promotion_that_loses_while_its_check_runs_conflicts(three: Settings, spec: PipelineSpec) -> None:
    def slow(model: ModelVersion) -> None:
        rollback(three, spec)

    with pytest.raises(PromotionConflict, match="version 2 is"):
        registry.promote(three, spec, 4, expected=3, actor="tests", reason="", check=slow)


def test_a_rollback_goes_to_the_last_different_version_and_bars_the_one_it_leaves(
    three: Settings, spec: PipelineSpec
) -> None:
    back = rollback(three, spec)
    assert (back.version, back.kind, back.previous_version) == (2, "rollback", 3)
    assert [(event.kind, event.version) for event in registry.history(three, spec, limit=2)] == [
        ("bar", 3),
        ("rollback", 2),
    ]
    with pytest.raises(TerminalError, match="barred"):
        promote(three, spec, 3, expected=2)
    registry.unbar(three, spec, 3, actor="a person", reason="the data was at fault")
    assert promote(three, spec, 3, expected=2).version == 3


def test_a_second_rollback_skips_what_is_barred(three: Settings, spec: PipelineSpec) -> None:
    assert rollback(three, spec).version == 2
    assert rollback(three, spec).version == 1
    with pytest.raises(TerminalError, match=r"no earlier version .* \(barred: 2, 3\)"):
        rollback(three, spec)
    assert registry.rollback_targets(three, spec) == [1]


def test_a_repeated_rollback_that_names_what_it_leaves_is_one_hop(
    three: Settings, spec: PipelineSpec
) -> None:
    first = rollback(three, spec, expected=3)
    assert rollback(three, spec, expected=3).event_id == first.event_id
    with pytest.raises(PromotionConflict):
        rollback(three, spec, expected=1)


def test_a_rollback_may_name_its_target(three: Settings, spec: PipelineSpec) -> None:
    with pytest.raises(TerminalError, match="was never live"):
        rollback(three, spec, to=4)
    with pytest.raises(TerminalError, match="is live now"):
        rollback(three, spec, to=3)
    registry.bar(three, spec, 2, actor="a person", reason="wrong data")
    with pytest.raises(TerminalError, match="barred"):
        rollback(three, spec, to=2)
    assert rollback(three, spec, to=1).version == 1


def test_without_an_earlier_version_there_is_no_rollback(
    without_mlflow: Settings, spec: PipelineSpec
) -> None:
    record_versions(without_mlflow, spec, 1)
    with pytest.raises(TerminalError, match="no champion"):
        rollback(without_mlflow, spec)
    promote(without_mlflow, spec, 1, expected=None)
    with pytest.raises(TerminalError, match="no earlier version"):
        rollback(without_mlflow, spec)


def test_of_many_concurrent_rollbacks_one_hop_is_made(three: Settings, spec: PipelineSpec) -> None:
    versions: list[int] = []
    threads = [
        threading.Thread(target=lambda: versions.append(rollback(three, spec, expected=3).version))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [2] * 8
    assert len(registry.history(three, spec)) == 5


def test_the_live_version_cannot_be_barred(three: Settings, spec: PipelineSpec) -> None:
    with pytest.raises(TerminalError, match="is live"):
        registry.bar(three, spec, 3, actor="tests", reason="")
    for _ in range(2):
        registry.bar(three, spec, 4, actor="tests", reason="")
        registry.unbar(three, spec, 4, actor="tests", reason="")
        registry.unbar(three, spec, 4, actor="tests", reason="")
    kinds = [event.kind for event in registry.history(three, spec, limit=4)]
    assert kinds == ["unbar", "bar", "unbar", "bar"]


def test_what_was_live_at_a_moment_is_a_query(three: Settings, spec: PipelineSpec) -> None:
    newest = registry.history(three, spec)
    seen = [registry.live_at(three, spec, event.at_utc) for event in newest]
    assert [item and item.version for item in seen] == [3, 2, 1]
    assert registry.live_at(three, spec, newest[-1].at_utc - timedelta(seconds=1)) is None
    assert len(registry.history(three, spec, within=timedelta(days=1))) == 3
    tomorrow = utc_now() + timedelta(days=2)
    assert registry.history(three, spec, within=timedelta(days=1), clock=lambda: tomorrow) == []


def test_tenants_with_equal_pipeline_names_have_champions_of_their_own(
    three: Settings, spec: PipelineSpec
) -> None:
    assert registry.champion(three, spec.model_copy(update={"tenant": "other"})) is None


def test_registering_without_mlflow_is_a_transient_error(
    without_mlflow: Settings, spec: PipelineSpec
) -> None:
    from registry_support import passing, trained_record

    trained = {**trained_record("a"), "mlflow_run_id": "r", "mlflow_model_uri": "models:/m-1"}
    with pytest.raises(ServiceUnavailable, match="MLflow"):
        registry.register_challenger(without_mlflow, spec, trained, passing(spec, "a"), {})
    with pytest.raises(ServiceUnavailable, match="MLflow"):
        registry.reconcile(without_mlflow, spec)
