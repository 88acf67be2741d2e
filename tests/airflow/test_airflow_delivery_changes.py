"""Promotions and rollbacks over the REST API: no request deploys twice, on a stale belief, or what cannot be loaded."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_support import problem
from deployment_support import (
    API,
    GETS,
    POSTS,
    ROOT,
    TOY,
    Delivery,
    conflict,
    model,
    promotion,
    reversal,
    said,
)

from tasks import registry
from tasks.core import Settings, open_store
from tasks.core.errors import CommitOutcomeUnknown, ServiceUnavailable
from tasks.metadata import MetadataStore, ModelVersion

pytestmark = pytest.mark.usefixtures("no_airflow_database")


def test_a_promotion_is_the_users_and_is_answered_as_the_log_has_it(delivery: Delivery) -> None:
    client = delivery.program("grace")
    made = said(client.post(f"{TOY}/promotions", json=promotion(reason="  better  ")), "Promotion", 201)
    line = made["deployment"]
    assert (line["version"], line["actor"], line["reason"]) == (3, "airflow:grace", "better")
    assert made["rollback_target"] == "loaded"
    assert made["alias_pending"] is True, "there is no MLflow in this test"
    assert line == said(client.get(f"{TOY}/live"), "LiveVersion")["live"]


def test_a_first_promotion_expects_nothing(settings: Settings, unchecked: None) -> None:
    from tasks.core import load_pipeline

    spec = load_pipeline(settings, "toy")
    MetadataStore.open(settings).record_model_version(spec, model(1))
    fresh = Delivery(settings, spec)
    refused = conflict(fresh.program().post(f"{TOY}/promotions", json=promotion(version=1)))
    assert refused["live"] is None and "nothing is" in refused["what"]
    order = promotion(version=1, expected_event_id=None)
    first = said(fresh.program().post(f"{TOY}/promotions", json=order), "Promotion", 201)
    again = said(fresh.program().post(f"{TOY}/promotions", json=order), "Promotion", 201)
    assert first["deployment"] == again["deployment"]
    assert fresh.moves() == [("promote", 1)]


def test_a_rollback_goes_to_the_version_before_and_says_what_is_affected(delivery: Delivery) -> None:
    made = said(delivery.program().post(f"{TOY}/rollbacks", json=reversal()), "Rollback", 201)
    assert (made["deployment"]["version"], made["barred_version"], made["affected_rows"]) == (1, 2, 0)
    assert delivery.moves()[2:] == [("rollback", 1), ("bar", 2)]
    refused = conflict(
        delivery.program().post(f"{TOY}/promotions", json=promotion(version=2, expected_event_id=3))
    )
    assert refused["type"] == "TerminalError" and "is barred" in refused["what"]


def test_a_rollback_goes_where_it_is_told(delivery: Delivery) -> None:
    client = delivery.program()
    client.post(f"{TOY}/promotions", json=promotion())
    made = said(
        client.post(f"{TOY}/rollbacks", json=reversal(expected_event_id=3, version=1)), "Rollback", 201
    )
    assert made["deployment"]["version"] == 1


@pytest.mark.parametrize(
    ("order", "words"),
    [({"version": 3}, "was never live"), ({"version": 2}, "is live now")],
)
def test_a_rollback_to_what_cannot_be_gone_back_to_changes_nothing(
    untouched: Delivery, order: Any, words: str
) -> None:
    refused = conflict(untouched.program().post(f"{TOY}/rollbacks", json=reversal(**order)))
    assert words in refused["what"] and refused["live"]["version"] == 2
    assert len(untouched.moves()) == 2


def test_with_nothing_before_it_a_version_cannot_be_left(delivery: Delivery) -> None:
    client = delivery.program()
    client.post(f"{TOY}/rollbacks", json=reversal())
    refused = conflict(client.post(f"{TOY}/rollbacks", json=reversal(expected_event_id=3)))
    assert "no earlier version" in refused["what"] and refused["live"]["version"] == 1


@pytest.mark.parametrize(("path", "order"), POSTS)
def test_the_same_request_again_is_answered_alike_and_deploys_nothing(
    delivery: Delivery, path: str, order: Any
) -> None:
    first = delivery.program().post(API + path, json=order)
    log = delivery.moves()
    again = delivery.program().post(API + path, json=order)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["deployment"] == first.json()["deployment"]
    assert delivery.moves() == log
    of_another = conflict(delivery.program("bob").post(API + path, json=order))
    assert of_another["live"] == first.json()["deployment"]
    assert delivery.moves() == log


def test_a_repeat_that_arrives_after_the_version_left_and_came_back_deploys_nothing(
    delivery: Delivery,
) -> None:
    """Versions alone would not tell: version 2 is live now as it was when the request was made."""
    client = delivery.program()
    assert client.post(f"{TOY}/promotions", json=promotion()).status_code == 201
    assert client.post(f"{TOY}/rollbacks", json=reversal(expected_event_id=3)).status_code == 201
    registry.unbar(delivery.settings, delivery.spec, 3, actor="ada", reason="mended")
    assert delivery.live() == (2, 4)
    refused = conflict(client.post(f"{TOY}/promotions", json=promotion()))
    assert refused["type"] == "PromotionConflict"
    assert (refused["live"]["version"], refused["live"]["event_id"]) == (2, 4)
    assert "event 2" in refused["what"]
    assert delivery.live() == (2, 4)


def test_a_version_that_left_and_came_back_while_a_bundle_was_loaded_counts_as_moved(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there_and_back(version: ModelVersion) -> None:
        if version.version == 3 and delivery.live() == (2, 2):
            for number, expected in ((1, 2), (2, 1)):
                registry.promote(
                    delivery.settings,
                    delivery.spec,
                    number,
                    expected=expected,
                    actor="bob",
                    reason="x",
                    check=lambda _version: None,
                )

    monkeypatch.setattr("tasks.wiring.release._loads_and_scores", lambda _context: there_and_back)
    refused = conflict(delivery.program().post(f"{TOY}/promotions", json=promotion()))
    assert refused["type"] == "PromotionConflict" and refused["live"]["event_id"] == 4
    assert delivery.live() == (2, 4)


def test_of_many_promotions_at_once_one_wins_and_the_others_are_told_which(delivery: Delivery) -> None:
    store = MetadataStore.open(delivery.settings)
    numbers = [3, 4, 5, 6, 7, 8]
    for number in numbers[1:]:
        store.record_model_version(delivery.spec, model(number))

    delivery.program()

    def send(number: int) -> Any:
        return delivery.program().post(f"{TOY}/promotions", json=promotion(version=number))

    with ThreadPoolExecutor(len(numbers)) as pool:
        answers = list(pool.map(send, numbers))
    (won,) = [answer.json() for answer in answers if answer.status_code == 201]
    lost = [conflict(answer) for answer in answers if answer.status_code != 201]
    assert len(lost) == len(numbers) - 1
    assert all(one["live"] == won["deployment"] for one in lost)
    assert [kind for kind, _ in delivery.moves()] == ["promote"] * 3


@pytest.mark.parametrize(("path", "order"), POSTS)
def test_one_request_sent_many_times_at_once_deploys_once(delivery: Delivery, path: str, order: Any) -> None:
    delivery.program()

    def send(_number: int) -> Any:
        return delivery.program().post(API + path, json=order)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["deployment"]["event_id"] for answer in answers} == {3}
    assert [kind for kind, _ in delivery.moves() if kind != "bar"][2:] == [
        "promote" if "promotions" in path else "rollback"
    ]


@pytest.mark.parametrize("path", ["promotions", "rollbacks"])
@pytest.mark.parametrize(
    ("fields", "which"),
    [
        ({"reason": "   "}, "reason"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 401}, "reason"),
        ({"reason": "a\0b"}, "reason"),
        ({"reason": 7}, "reason"),
        ({"version": "3"}, "version"),
        ({"version": 0}, "version"),
        ({"version": 2**31}, "version"),
        ({"version": True}, "version"),
        ({"expected_event_id": "2"}, "expected_event_id"),
        ({"expected_event_id": -1}, "expected_event_id"),
        ({"rescore": True}, "rescore"),
        ({"actor": "root"}, "actor"),
        ({"\ud800": 1}, "body"),
    ],
)
def test_a_wrong_field_is_a_422_that_names_it(
    untouched: Delivery, path: str, fields: dict[str, Any], which: str
) -> None:
    made = promotion(**fields) if path == "promotions" else reversal(**fields)
    answer = untouched.program().post(
        f"{TOY}/{path}", content=json.dumps(made), headers={"content-type": "application/json"}
    )
    assert problem(answer, 422)["which"] == which
    assert untouched.live() == (2, 2)


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"x"', "3"])
def test_a_body_that_is_no_order_is_a_422(untouched: Delivery, body: str) -> None:
    answer = untouched.program().post(
        f"{TOY}/promotions", content=body, headers={"content-type": "application/json"}
    )
    assert problem(answer, 422)["type"] == "InvalidBody"


@pytest.mark.parametrize("field", ["version", "expected_event_id", "reason"])
def test_what_a_promotion_must_say_has_no_default(untouched: Delivery, field: str) -> None:
    order = promotion()
    del order[field]
    found = problem(untouched.program().post(f"{TOY}/promotions", json=order), 422)
    assert found["which"] == field


@pytest.mark.parametrize(
    ("question", "which"),
    [
        ("deployments?kind=deploy", "kind"),
        ("deployments?limit=0", "limit"),
        ("deployments?limit=501", "limit"),
        ("deployments?before=0", "before"),
        ("deployments?since=yesterday", "since"),
        ("deployments?since=2024-03-01T00:00:00", "since"),
        ("deployments?until=0001-01-01T00:00:00%2B14:00", "until"),
        ("live?at=2024-03-01T00:00:00", "at"),
        ("verdicts?gate=none", "gate"),
        ("verdicts?version=99999999999", "version"),
        ("canaries?limit=51", "limit"),
    ],
)
def test_a_wrong_question_is_a_400_that_names_what_is_wrong(
    untouched: Delivery, question: str, which: str
) -> None:
    found = problem(untouched.client("VIEWER").get(f"{TOY}/{question}"), 400)
    assert found["type"] == "InvalidQuery" and which in found["which"]


def test_what_is_not_there_is_a_404(untouched: Delivery) -> None:
    client = untouched.program()
    for path in GETS[1:]:
        assert problem(client.get((API + path).replace("toy", "no_such")), 404)["which"] == "no_such"
    for path, order in POSTS:
        missing = (API + path).replace("toy", "no_such")
        assert problem(client.post(missing, json=order), 404)["which"] == "no_such"
        found = problem(client.post(API + path, json={**order, "version": 77}), 404)
        assert found["which"] == "toy version 77"
    assert problem(client.get(f"{TOY}/promotions"), 405)["type"] == "MethodNotAllowed"
    assert untouched.live() == (2, 2)


def test_a_version_that_cannot_be_loaded_is_not_promoted(delivery: Delivery) -> None:
    MetadataStore.open(delivery.settings).record_model_version(delivery.spec, model(9))
    refused = conflict(delivery.program().post(f"{TOY}/promotions", json=promotion(version=9)))
    assert (refused["type"], refused["fix"]) == ("DigestMismatch", "restore it")
    assert refused["live"]["version"] == 2
    assert delivery.live() == (2, 2)


@pytest.mark.parametrize(("path", "order"), POSTS)
def test_a_version_whose_bundle_is_gone_is_a_conflict_that_tells_no_place_of_the_store(
    untouched: Delivery, path: str, order: Any
) -> None:
    refused = conflict(untouched.program().post(API + path, json=order))
    assert "cannot be loaded" in refused["what"]
    assert str(untouched.settings.home) not in json.dumps(refused)


def test_a_real_bundle_is_loaded_and_a_changed_one_is_refused(settings: Settings, tmp_path: Path) -> None:
    sys.path.append(str(ROOT / "tests" / "inference"))
    from bundle_support import upload_random_bundle

    from tasks.core import load_pipeline

    spec = load_pipeline(settings, "toy")
    digest, _ = upload_random_bundle(settings, spec, tmp_path / "bundle")
    MetadataStore.open(settings).record_model_version(spec, model(1, digest))
    real = Delivery(settings, spec)
    order = promotion(version=1, expected_event_id=None)
    store = open_store(settings, prefix=spec.prefix)
    weights = max(store.list("bundles"), key=lambda info: info.size_bytes).key
    whole = store.get(weights)
    path = settings.home / "store" / spec.prefix / weights
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert conflict(real.program().post(f"{TOY}/promotions", json=order))["type"] == "DigestMismatch"
    path.write_bytes(whole)
    assert said(real.program().post(f"{TOY}/promotions", json=order), "Promotion", 201)
    assert real.live() == (1, 1)


@pytest.mark.parametrize(
    "error",
    [
        ServiceUnavailable("does not answer", which="the database", fix="try again"),
        CommitOutcomeUnknown("may have landed", which="the log", fix="read it"),
    ],
)
def test_a_database_that_does_not_answer_is_a_503_to_be_tried_again(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(MetadataStore, "append_events", fail)
        for path, order in POSTS:
            answer = delivery.program().post(API + path, json=order)
            assert problem(answer, 503)["type"] == type(error).__name__
            assert answer.headers["retry-after"]
    assert delivery.program().post(f"{TOY}/promotions", json=promotion()).status_code == 201
