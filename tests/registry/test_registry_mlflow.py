"""Challengers and aliases on a real MLflow server, and what is left after a crash, an outage or a helping hand."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
import services
from children import killed
from registry_support import Trained, passing

from tasks import registry
from tasks.core import PipelineSpec, Settings
from tasks.core.errors import (
    ConfigError,
    DigestMismatch,
    GateFailed,
    NotFound,
    ServiceUnavailable,
    TerminalError,
)
from tasks.core.mlflow_users import MlflowUsers
from tasks.core.records import Finding, Verdict
from tasks.metadata import MetadataStore, ModelVersion
from tasks.registry import aliases, cards, challengers
from tasks.registry.mlflow_api import MlflowRegistry

Train = Callable[[str], Trained]


def test_the_server_is_one_process_which_answers_only_whom_it_is_there_for(mlflow_url: str) -> None:
    port = mlflow_url.rpartition(":")[2]
    (server,) = [found for found in psutil.Process().children(recursive=True) if port in found.cmdline()]
    assert "tasks.local.mlflow_server" in server.cmdline() and not server.children()
    for headers, refused in (
        ({"Host": "elsewhere.example"}, "Invalid Host header"),
        ({"Origin": "http://elsewhere.example"}, "Cross-origin request blocked"),
    ):
        answer = httpx.post(
            f"{mlflow_url}/api/2.0/mlflow/experiments/create", json={"name": "theirs"}, headers=headers
        )
        assert answer.status_code == 403 and refused in answer.text


def loads(model: ModelVersion) -> None:
    """A check that passes."""


def register(settings: Settings, spec: PipelineSpec, trained: Trained, **links: str) -> ModelVersion:
    verdict = passing(spec, trained["bundle_digest"][0])
    return registry.register_challenger(settings, spec, trained, verdict, links)


def promote(
    settings: Settings, spec: PipelineSpec, version: int, expected: int | None
) -> registry.Deployment:
    return registry.promote(
        settings, spec, version, expected=expected, actor="tests", reason="better", check=loads
    )


@pytest.fixture
def two(with_mlflow: Settings, spec: PipelineSpec, train: Train) -> Settings:
    """Version 1 is champion, version 2 challenger."""
    register(with_mlflow, spec, train("a"))
    assert not promote(with_mlflow, spec, 1, None).alias_pending
    register(with_mlflow, spec, train("b"))
    return with_mlflow


def test_a_challenger_is_worth_reading_in_the_mlflow_ui(
    with_mlflow: Settings, spec: PipelineSpec, train: Train, mlflow: MlflowRegistry
) -> None:
    trained = train("a")
    links = {"Airflow run": "http://airflow/dags/toy.train/runs/manual (1)", "Report": ""}
    version = registry.register_challenger(with_mlflow, spec, trained, passing(spec, "a"), links)
    assert version == registry.version(with_mlflow, spec, 1)
    assert version.metrics["auc"] == pytest.approx(0.7123456)

    name = {"name": spec.model_name}
    shown = mlflow.call("GET", "model-versions/get", params={**name, "version": "1"})["model_version"]
    assert shown["run_id"] == trained["mlflow_run_id"]
    assert shown["source"] == trained["mlflow_model_uri"]
    assert shown["aliases"] == ["challenger"]
    tags = {tag["key"]: tag["value"] for tag in shown["tags"]}
    assert tags["penstock.bundle_digest"] == "a" * 64
    assert tags["penstock.gate"] == "evaluation: pass"
    assert tags["penstock.link.airflow_run"] == links["Airflow run"]
    card = shown["description"]
    assert "AUC **0.7123** · Brier 0.1987" in card and "Gate `evaluation`: PASS" in card
    assert "[Airflow run](http://airflow/dags/toy.train/runs/manual%20%281%29)" in card
    assert f"/runs/{trained['mlflow_run_id']}" in card and "[Report]" not in card
    assert "<b>" not in card.replace("\\<b\\>", "") and "slice \\| carrier" in card

    model = mlflow.call("GET", "registered-models/get", params=name)["registered_model"]
    assert spec.description in model["description"] and "`champion`" in model["description"]
    page = httpx.get(version.url.split("#")[0])
    assert page.status_code == 200


def test_registering_the_same_bundle_again_returns_its_version(
    with_mlflow: Settings, spec: PipelineSpec, train: Train, mlflow: MlflowRegistry
) -> None:
    first = register(with_mlflow, spec, train("a"))
    assert register(with_mlflow, spec, train("a")) == first
    assert mlflow.versions_with_tag(spec.model_name, "penstock.bundle_digest", "a" * 64) == [1]
    assert register(with_mlflow, spec, train("b")).version == 2
    assert mlflow.aliases(spec.model_name) == {"challenger": 2}


def test_registering_one_bundle_from_many_threads_leaves_one_version(
    with_mlflow: Settings, spec: PipelineSpec, train: Train, mlflow: MlflowRegistry
) -> None:
    trained = train("a")
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda: made.append(register(with_mlflow, spec, trained).version))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and len(set(made)) == 1
    assert mlflow.versions_with_tag(spec.model_name, "penstock.bundle_digest", "a" * 64) == made[:1]
    assert mlflow.aliases(spec.model_name) == {"challenger": made[0]}


def test_an_alias_that_many_threads_set_for_the_first_time_is_set(
    with_mlflow: Settings, spec: PipelineSpec, train: Train, mlflow: MlflowRegistry
) -> None:
    """MLflow answers the losers of such a race with its database's unique-key error."""
    version = register(with_mlflow, spec, train("a")).version
    names = [f"first-{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        for name in names:
            list(pool.map(lambda _, name=name: mlflow.set_alias(spec.model_name, name, version), range(6)))
    assert mlflow.aliases(spec.model_name) == {"challenger": version, **dict.fromkeys(names, version)}


def test_a_version_that_another_process_found_and_recorded_is_kept_by_its_maker(
    with_mlflow: Settings,
    spec: PipelineSpec,
    train: Train,
    mlflow: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finder is done before the maker has the answer to its create; the maker must not take the number for used up."""
    trained = train("a")
    create = MlflowRegistry.create_version
    found: list[int] = []

    def overtaken(self: MlflowRegistry, *args: Any, **kwargs: Any) -> int:
        monkeypatch.setattr(MlflowRegistry, "create_version", create)
        number = create(self, *args, **kwargs)
        found.append(register(with_mlflow, spec, trained).version)
        return number

    monkeypatch.setattr(MlflowRegistry, "create_version", overtaken)
    assert register(with_mlflow, spec, trained).version == 1
    assert found == [1]
    assert mlflow.versions_with_tag(spec.model_name, "penstock.bundle_digest", "a" * 64) == [1]


def test_a_model_that_failed_its_gate_or_was_not_judged_is_not_registered(
    with_mlflow: Settings, spec: PipelineSpec, train: Train
) -> None:
    trained = train("a")
    with pytest.raises(GateFailed, match=r"\[fail\] auc"):
        registry.register_challenger(with_mlflow, spec, trained, passing(spec, "a", "fail"), {})
    with pytest.raises(GateFailed, match="inconclusive"):
        registry.register_challenger(with_mlflow, spec, trained, passing(spec, "a", "inconclusive"), {})
    with pytest.raises(DigestMismatch, match="verdict"):
        registry.register_challenger(with_mlflow, spec, trained, passing(spec, "b"), {})
    assert registry.versions(with_mlflow, spec) == []


def test_a_training_that_mlflow_does_not_know_is_named(
    with_mlflow: Settings, spec: PipelineSpec, train: Train
) -> None:
    with pytest.raises(NotFound, match="0123"):
        register(with_mlflow, spec, {**train("a"), "mlflow_run_id": "0123"})
    with pytest.raises(TerminalError, match="no model in MLflow"):
        register(with_mlflow, spec, {**train("a"), "mlflow_model_uri": None})


def test_promotion_moves_both_aliases(two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry) -> None:
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    assert not promote(two, spec, 2, 1).alias_pending
    assert mlflow.aliases(spec.model_name) == {"champion": 2}
    back = registry.rollback(two, spec, expected=2, actor="tests", reason="worse", check=loads)
    assert (back.version, back.alias_pending) == (1, False)
    assert mlflow.aliases(spec.model_name) == {"champion": 1}
    assert registry.reconcile(two, spec) == []
    registry.unbar(two, spec, 2, actor="tests", reason="settled")
    assert registry.reconcile(two, spec) == []


def barred(mlflow: MlflowRegistry, spec: PipelineSpec) -> dict[int, str]:
    return mlflow.tagged(spec.model_name, "penstock.barred")


def test_a_version_that_is_barred_says_so_in_mlflow_until_it_is_not(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    card = mlflow.description(spec.model_name, 2)
    promote(two, spec, 2, 1)
    registry.rollback(two, spec, expected=2, actor="ada", reason="worse on *Mondays*", check=loads)
    (bar,) = MetadataStore.open(two).history(spec, kinds=("bar",))
    said = f"{bar.at_utc:%Y-%m-%d %H:%M} UTC by ada: worse on"
    assert barred(mlflow, spec) == {2: f"{said} *Mondays*"}
    shown = f"**BARRED** {said} \\*Mondays\\*\n\n{card}"
    assert mlflow.description(spec.model_name, 2) == shown
    mlflow.set_tag(spec.model_name, 2, "penstock.barred", "no")  # by hand
    assert registry.reconcile(two, spec) == ["version 2: shown as barred"]
    assert barred(mlflow, spec) == {2: f"{said} *Mondays*"} and registry.reconcile(two, spec) == []
    assert mlflow.description(spec.model_name, 2) == shown
    registry.unbar(two, spec, 2, actor="ada", reason="it was the feed")
    assert barred(mlflow, spec) == {} and mlflow.description(spec.model_name, 2) == card


def test_a_version_that_is_barred_while_mlflow_is_away_is_marked_by_the_next_reconcile(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    down = dataclasses.replace(two, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    registry.bar(down, spec, 2, actor="ada", reason="a leak")
    assert barred(mlflow, spec) == {}
    assert "version 2: shown as barred" in registry.reconcile(two, spec)
    registry.unbar(down, spec, 2, actor="ada", reason="no leak")
    assert registry.reconcile(two, spec)[-1] == "version 2: no longer shown as barred"
    registry.bar(down, spec, 2, actor="ada", reason="a leak after all")
    mlflow.delete_version(spec.model_name, 2)
    assert not any("barred" in line for line in registry.reconcile(two, spec))


def test_a_kill_while_a_version_is_marked_leaves_what_the_next_reconcile_completes(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    card = mlflow.description(spec.model_name, 2)
    killed(lambda: registry.bar(two, spec, 2, actor="ada", reason="a leak"), MlflowRegistry, "set_tag")
    shown = mlflow.description(spec.model_name, 2)
    assert shown.endswith(f"by ada: a leak\n\n{card}") and barred(mlflow, spec) == {}
    assert "version 2: shown as barred" in registry.reconcile(two, spec)
    assert mlflow.description(spec.model_name, 2) == shown and list(barred(mlflow, spec)) == [2]


def test_a_card_fits_into_what_mlflow_keeps_of_it() -> None:
    """5,000 characters: PostgreSQL refuses a longer one, and no version could be registered."""
    trained = {
        "snapshot_id": "s" * 16,
        "feature_version": "1+f",
        "training_id": "t" * 16,
        "bundle_digest": "b" * 64,
    }
    findings = (
        *(Finding(f"good {n}", "pass", "is well within what was asked of it " * 4) for n in range(60)),
        Finding("long", "fail", "carrier * was [far] worse; " * 400),
    )
    verdict = Verdict("evaluation", "toy", "b" * 64, "pass", findings, "2024-02-06T12:00:01.123Z")
    card = cards.version_card(trained, verdict, {"Airflow run": "http://airflow/" + "x" * 200})
    assert len(card) < 4_700 and card.endswith(f"- bundle `{'b' * 64}`")
    lines = card.splitlines()
    assert next(line for line in lines if line.startswith("- ✗")).endswith("…")
    left = re.fullmatch(r"- and (\d+) more, in the report", lines[lines.index("#### Made of") - 2])
    assert left and int(left[1]) == 61 - sum(line.startswith(("- ✗", "- ✓")) for line in lines)
    marked = cards.barred_card(card, "2026-11-27 07:20 UTC by ada: " + "a long story " * 500)
    assert len(marked) <= 5_000 and marked.startswith("**BARRED** 2026-11-27 07:20 UTC by ada: a long story")
    assert cards.barred_card(marked, None) == card
    assert cards.barred_card("x" * 5_000, "today") == "x" * 5_000


def test_a_process_killed_between_event_and_alias_is_reconciled(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(lambda: promote(two, spec, 2, 1), MlflowRegistry, "set_alias")
    live = registry.champion(two, spec)
    assert live is not None and live.version == 2
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    assert registry.reconcile(two, spec) == [
        "alias champion: version 1 -> version 2",
        "alias challenger: version 2 -> none",
    ]
    assert mlflow.aliases(spec.model_name) == {"champion": 2}
    assert registry.reconcile(two, spec) == []
    assert [event.kind for event in registry.history(two, spec)] == ["promote", "promote"]


def test_a_retry_after_a_kill_between_event_and_alias_moves_the_alias(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(lambda: promote(two, spec, 2, 1), MlflowRegistry, "set_alias")
    again = promote(two, spec, 2, 1)
    assert (again.version, again.event_id, again.alias_pending) == (2, 2, False)
    assert mlflow.aliases(spec.model_name) == {"champion": 2}


def test_a_process_killed_after_the_alias_and_before_its_note_is_no_hand(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(lambda: promote(two, spec, 2, 1), MetadataStore, "record_projection")
    assert mlflow.aliases(spec.model_name)["champion"] == 2
    down = dataclasses.replace(two, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    assert registry.rollback(down, spec, actor="tests", reason="worse", check=loads).alias_pending
    assert "by hand" not in " ".join(registry.reconcile(two, spec))
    assert mlflow.aliases(spec.model_name) == {"champion": 1}


def test_a_process_killed_before_the_event_leaves_everything(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(lambda: promote(two, spec, 2, 1), MetadataStore, "append_events")
    live = registry.champion(two, spec)
    assert live is not None and live.version == 1
    assert registry.reconcile(two, spec) == []


@pytest.mark.parametrize("crash", ["record_model_version", "project"])
def test_a_registration_killed_half_way_is_completed_by_its_retry(
    with_mlflow: Settings,
    spec: PipelineSpec,
    train: Train,
    mlflow: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
    crash: str,
) -> None:
    trained = train("a")
    owner = MetadataStore if crash == "record_model_version" else challengers
    killed(lambda: register(with_mlflow, spec, trained), owner, crash)
    assert mlflow.aliases(spec.model_name) == {}
    assert register(with_mlflow, spec, trained).version == 1
    assert mlflow.versions_with_tag(spec.model_name, "penstock.bundle_digest", "a" * 64) == [1]
    assert mlflow.aliases(spec.model_name) == {"challenger": 1}


def test_an_alias_moved_by_hand_is_put_back_and_recorded(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    mlflow.set_alias(spec.model_name, "champion", 2)
    lines = registry.reconcile(two, spec, actor="maintenance")
    assert "moved by hand in MLflow to version 2; the log says version 1: put back" in lines[0]
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    newest = registry.history(two, spec)[0]
    assert (newest.kind, newest.version, newest.actor) == ("revert", 1, "maintenance")
    live = registry.champion(two, spec)
    assert live is not None and (live.version, live.event_id) == (1, 1)
    mlflow.delete_alias(spec.model_name, "champion")
    assert "to nothing" in registry.reconcile(two, spec)[0]
    assert registry.reconcile(two, spec) == []


def test_a_challenger_alias_moved_by_hand_is_put_back_and_recorded_once(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    mlflow.set_alias(spec.model_name, "challenger", 1)
    (said, *_) = registry.reconcile(two, spec, actor="maintenance")
    assert said == "alias challenger was moved by hand in MLflow to version 1; version 2 waits: put back"
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    newest = registry.history(two, spec)[0]
    assert (newest.kind, newest.actor, newest.reason) == (
        "revert",
        "maintenance",
        said.removesuffix(": put back"),
    )
    assert registry.reconcile(two, spec) == []
    mlflow.delete_alias(spec.model_name, "challenger")
    assert "to nothing" in registry.reconcile(two, spec)[0]


def test_an_alias_moved_by_hand_may_be_adopted_after_its_check(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    mlflow.set_alias(spec.model_name, "champion", 2)
    assert "adopted version 2" in registry.reconcile(two, spec, policy="adopt", check=loads)[0]
    live = registry.champion(two, spec)
    assert live is not None
    assert (live.version, live.kind, live.previous_version, live.bundle_digest) == (2, "adopt", 1, "b" * 64)
    assert mlflow.aliases(spec.model_name) == {"champion": 2}
    assert registry.reconcile(two, spec, policy="adopt", check=loads) == []


def test_a_challenger_that_is_withdrawn_and_barred_is_none_in_mlflow_either(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    registry.expose(two, spec, 2, share=0.1, expected=1, actor="tests", reason="try", check=loads)
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    registry.withdraw(two, spec, actor="tests", reason="not now")
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    registry.expose(two, spec, 2, share=0.1, expected=1, actor="tests", reason="again", check=loads)
    registry.withdraw(two, spec, bar=True, actor="tests", reason="it does harm")
    assert mlflow.aliases(spec.model_name) == {"champion": 1}


def test_what_cannot_be_adopted_is_put_back(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, train: Train
) -> None:
    def refuses(model: ModelVersion) -> None:
        raise RuntimeError("golden rows moved")

    def why(version: int, **arguments: Any) -> str:
        mlflow.set_alias(spec.model_name, "champion", version)
        line = registry.reconcile(two, spec, policy="adopt", **arguments)[0]
        assert mlflow.aliases(spec.model_name)["champion"] == 1
        return line

    assert "golden rows moved" in why(2, check=refuses)
    assert "no check" in why(2)
    registry.bar(two, spec, 2, actor="tests", reason="")
    assert "is barred" in why(2, check=loads)
    stranger = train("c")
    number = mlflow.create_version(
        spec.model_name,
        source=stranger["mlflow_model_uri"],
        run_id=stranger["mlflow_run_id"],
        description="",
        tags={},
    )
    assert "not registered by Penstock" in why(number, check=loads)


def test_the_log_moved_on_while_another_process_set_an_older_alias(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two writers sets the older alias last, sees that the log has moved, and corrects it."""
    down = dataclasses.replace(two, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    real = MlflowRegistry.set_alias
    raced: list[int] = []

    def slow(self: MlflowRegistry, name: str, alias: str, version: int) -> None:
        if not raced:
            raced.append(version)
            registry.rollback(down, spec, actor="other", reason="", check=loads)
        real(self, name, alias, version)

    monkeypatch.setattr(MlflowRegistry, "set_alias", slow)
    promote(two, spec, 2, 1)
    assert raced == [2]
    assert mlflow.aliases(spec.model_name) == {"champion": 1}


def test_a_version_number_is_never_used_for_a_second_bundle(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry, train: Train
) -> None:
    """Even after somebody deleted the registered model, from when on MLflow counts from 1 again."""
    mlflow.call("DELETE", "registered-models/delete", json={"name": spec.model_name})
    assert register(two, spec, train("c")).version == 3
    assert [item.version for item in registry.versions(two, spec)] == [3, 2, 1]
    assert mlflow.aliases(spec.model_name) == {"challenger": 3}
    assert "version 1 was deleted in MLflow" in " ".join(registry.reconcile(two, spec))


def test_a_version_deleted_in_mlflow_can_still_be_promoted(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    mlflow.delete_version(spec.model_name, 2)
    assert promote(two, spec, 2, 1).alias_pending
    live = registry.champion(two, spec)
    assert live is not None and live.version == 2
    assert "was deleted in MLflow" in " ".join(registry.reconcile(two, spec))


def test_an_alias_is_pending_while_mlflow_is_down_and_right_after_it_is_back(
    two: Settings, spec: PipelineSpec, mlflow: MlflowRegistry
) -> None:
    down = dataclasses.replace(two, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    assert promote(down, spec, 2, 1).alias_pending
    assert mlflow.aliases(spec.model_name)["champion"] == 1
    assert registry.reconcile(two, spec)
    assert mlflow.aliases(spec.model_name) == {"champion": 2}


def test_a_server_that_is_not_mlflow_is_a_configuration_error(
    with_mlflow: Settings, spec: PipelineSpec
) -> None:
    elsewhere = dataclasses.replace(with_mlflow, mlflow_url=f"{with_mlflow.mlflow_url}/nothing-here")
    with pytest.raises(ConfigError, match="does not answer like an MLflow server"):
        registry.reconcile(elsewhere, spec)


def test_a_server_that_hangs_is_given_up_soon(with_mlflow: Settings) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://user:s3cr3t@127.0.0.1:{silent.getsockname()[1]}"
        with MlflowRegistry(url, answer_s=0.3) as mlflow, pytest.raises(ServiceUnavailable) as caught:
            mlflow.aliases("toy")
    assert "did not answer" in str(caught.value) and "s3cr3t" not in str(caught.value)


def test_the_aliases_are_a_pure_function_of_the_log(two: Settings, spec: PipelineSpec) -> None:
    store = MetadataStore.open(two)
    head, newest = store.head(spec), store.model_version(spec, 2)
    wanted = aliases.wanted_aliases
    assert wanted(head, newest, newest_was_live=False).aliases == {"champion": 1, "challenger": 2}
    assert wanted(head, newest, newest_was_live=True).aliases["challenger"] is None
    barred = dataclasses.replace(head, barred=frozenset({2}))
    assert wanted(barred, newest, newest_was_live=False).aliases["challenger"] is None
    assert (store.was_live(spec, 1), store.was_live(spec, 2)) == (True, False)


def test_an_mlflow_without_users_is_told_so_and_work_on_it_goes_on(
    with_mlflow: Settings,
    spec: PipelineSpec,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As behind a proxy that asks for a login itself."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-the-proxy")
    assert register(with_mlflow, spec, train("a")).version == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(ConfigError, match=r"keeps no logins(?s:.*)--app-name basic-auth"):
        MlflowUsers(with_mlflow.mlflow_url, ("admin", "of-the-proxy"))
