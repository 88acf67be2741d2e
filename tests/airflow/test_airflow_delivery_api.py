"""The delivery API: what it tells, who may change what, and that no request deploys twice or on a stale belief."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from airflow.api_fastapi.app import create_auth_manager, get_auth_manager
from api_support import ask_often, delivered_checks, problem
from deployment_support import API, EVIL, TOY, Delivery, deployed, installation, model, promotion, reversal
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from schemathesis import GenerationMode

from plugins.problems import MEDIA_TYPE
from tasks import registry
from tasks.audit.contract import compatible, text
from tasks.core import Finding, Settings, Verdict, open_store
from tasks.core.errors import CommitOutcomeUnknown, DigestMismatch, ServiceUnavailable
from tasks.core.ids import canonical_json
from tasks.metadata import MetadataStore, ModelVersion
from tasks.metadata.deployments import NewEvent
from tasks.wiring.delivery_contract import delivery_documents

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "docs" / "contracts" / "delivery-1.json"
GETS = [
    "/deployments",
    "/pipelines/toy/deployments",
    "/pipelines/toy/live",
    "/pipelines/toy/verdicts",
    "/pipelines/toy/canaries",
]
POSTS = [("/pipelines/toy/promotions", promotion()), ("/pipelines/toy/rollbacks", reversal())]


@pytest.fixture(autouse=True)
def _no_database_of_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    create_auth_manager()
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version's bundle is taken for whole unless it is version 9's."""

    def check(version: ModelVersion) -> None:
        if version.version == 9:
            raise DigestMismatch("was changed", which="bundle 9", fix="restore it")

    monkeypatch.setattr("tasks.wiring.release._loads_and_scores", lambda _context: check)


@pytest.fixture
def delivery(settings: Settings, unchecked: None) -> Delivery:
    return Delivery(settings, deployed(settings))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivery]:
    """For requests that are refused: its log is the same after all of them."""
    found = installation(tmp_path_factory.mktemp("untouched"))
    yield found
    assert found.moves() == [("promote", 1), ("promote", 2)]


def said(answer: Any, kind: str, status: int = 200) -> dict[str, Any]:
    """The body of an answer, which must be what the published contract says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["cache-control"] == "private, no-store"
    document = {**json.loads(CONTRACT.read_text()), "$ref": f"#/$defs/{kind}"}
    Draft202012Validator(document, format_checker=FormatChecker()).validate(answer.json())
    return answer.json()


def conflict(answer: Any) -> dict[str, Any]:
    """The problem document of a request that changed nothing."""
    assert answer.status_code == 409, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert set(answer.json()) == {"type", "what", "which", "fix", "live"}
    return answer.json()


# -- what is told


def test_the_log_comes_newest_first_in_pages_that_lose_and_repeat_nothing(delivery: Delivery) -> None:
    store, made = MetadataStore.open(delivery.settings), model(3)
    for kind in ("bar", "unbar") * 6:
        event = NewEvent(kind, 3, made.bundle_digest, "1+toy", None, "ada", "again")
        store.append_events(delivery.spec, lambda _head, event=event: [event])
    client, seen, question = delivery.client("VIEWER"), [], "limit=5"
    while True:
        page = said(client.get(f"{TOY}/deployments?{question}"), "DeploymentPage")
        seen += [event["event_id"] for event in page["events"]]
        if page["before"] is None:
            break
        question = f"limit=5&before={page['before']}"
    assert seen == list(range(14, 0, -1))
    whole = said(client.get(f"{TOY}/deployments?limit=14"), "DeploymentPage")
    assert len(whole["events"]) == 14 and whole["before"] is None


def test_a_line_says_who_did_what_and_why(untouched: Delivery) -> None:
    newest = said(untouched.client("VIEWER").get(f"{TOY}/deployments"), "DeploymentPage")["events"][0]
    assert datetime.fromisoformat(newest.pop("at_utc")).tzinfo is not None
    assert newest == {
        "pipeline": "toy",
        "event_id": 2,
        "kind": "promote",
        "moves": True,
        "version": 2,
        "previous_version": 1,
        "bundle_digest": model(2).bundle_digest,
        "feature_version": "1+toy",
        "actor": "airflow:ada",
        "reason": f"number 2 {EVIL}",
    }


def test_the_log_is_narrowed_by_kind_and_time(delivery: Delivery) -> None:
    registry.bar(delivery.settings, delivery.spec, 3, actor="ada", reason="slow")
    registry.unbar(delivery.settings, delivery.spec, 3, actor="ada", reason="fast again")
    client = delivery.client("VIEWER")

    def events(**question: Any) -> list[int]:
        page = said(client.get(f"{TOY}/deployments", params=question), "DeploymentPage")
        return [event["event_id"] for event in page["events"]]

    moments = [event.at_utc for event in reversed(registry.history(delivery.settings, delivery.spec))]
    assert events(kind="bar") == [3]
    assert events(kind=["bar", "promote"]) == [3, 2, 1]
    assert events(since=moments[2].isoformat()) == [4, 3]
    assert events(until=moments[2].isoformat()) == [2, 1]
    assert events(since=moments[1].isoformat(), until=moments[3].isoformat(), limit=1) == [3]
    assert events(since=(moments[3] + timedelta(days=1)).isoformat()) == []


def test_what_is_live_now_and_was_at_a_moment(untouched: Delivery) -> None:
    client = untouched.client("VIEWER")
    assert said(client.get(f"{TOY}/live"), "LiveVersion")["live"]["version"] == 2
    first = registry.history(untouched.settings, untouched.spec)[-1].at_utc
    then = said(client.get(f"{TOY}/live", params={"at": first.isoformat()}), "LiveVersion")
    assert (then["live"]["version"], then["at_utc"]) == (1, first.isoformat())
    assert said(client.get(f"{TOY}/live?at=2020-01-01T00:00:00Z"), "LiveVersion")["live"] is None


def test_verdicts_tell_every_finding_and_are_narrowed_by_gate_and_version(delivery: Delivery) -> None:
    odd = Finding("data", "warn", "no rows", value=math.nan, waived="waived by ada until 2024-03-01: known")
    MetadataStore.open(delivery.settings).record_verdict(
        delivery.spec,
        Verdict(
            "data", "toy", "1" * 16, "pass", (odd,), "2024-02-04T00:00:00Z", report_key="validation/x.html"
        ),
    )
    client = delivery.client("VIEWER")
    data, gate = said(client.get(f"{TOY}/verdicts"), "VerdictList")["verdicts"]
    assert (data["gate"], data["version"], data["waived"]) == ("data", None, True)
    assert data["findings"][0]["value"] is None
    assert data["report_url"].endswith("/penstock/report/toy/validation/x.html")
    assert (gate["outcome"], gate["version"]) == ("fail", 3)
    assert gate["reasons"] == [f"[fail] min_auc: AUC 0.5 {EVIL}"]
    assert [(one["name"], one["status"]) for one in gate["findings"]] == [
        ("min_auc", "fail"),
        ("data", "pass"),
    ]
    for question, wanted in (
        ("gate=evaluation", [gate]),
        ("version=3", [gate]),
        ("version=2", []),
        ("limit=1", [data]),
    ):
        assert said(client.get(f"{TOY}/verdicts?{question}"), "VerdictList")["verdicts"] == wanted
    assert problem(client.get(f"{TOY}/verdicts?version=77"), 404)["which"] == "toy version 77"


def canary_verdict(delivery: Delivery, key: str | None) -> None:
    MetadataStore.open(delivery.settings).record_verdict(
        delivery.spec,
        Verdict(
            gate="canary",
            pipeline="toy",
            subject=model(3).bundle_digest,
            outcome="pass",
            findings=(Finding("days", "pass", "2 of 2 days"),),
            decided_at_utc="2024-02-03T00:00:00Z",
            evidence_key=key,
        ),
    )


def test_a_canary_tells_its_days_and_its_confidence_sequence(delivery: Delivery) -> None:
    days = [
        {
            "day": f"2024-03-0{day}",
            "rows": 100,
            "challenger_brier": 0.19,
            "champion_brier": 0.2,
            "row_spread": 0.1,
        }
        for day in (1, 2)
    ]
    sequence = [
        {"day": "2024-03-01", "days": 1, "mean": -0.01, "low": None, "high": None},
        {"day": "2024-03-02", "days": 2, "mean": -0.01, "low": -0.03, "high": 0.002},
    ]
    evidence = {
        "champion_digest": model(2).bundle_digest,
        "canary": {"margin_brier": 0.005},
        "days": days,
        "sequence": sequence,
    }
    open_store(delivery.settings, prefix=delivery.spec.prefix).put(
        "evaluation/a.json", canonical_json(evidence)
    )
    canary_verdict(delivery, "evaluation/a.json")
    (found,) = said(delivery.client("VIEWER").get(f"{TOY}/canaries"), "CanaryList")["canaries"]
    assert (found["version"], found["champion_version"], found["margin_brier"]) == (3, 2, 0.005)
    assert [(step["day"], step["rows"], step["low"], step["high"]) for step in found["steps"]] == [
        ("2024-03-01", 100, None, None),
        ("2024-03-02", 100, -0.03, 0.002),
    ]
    assert found["evidence"] == "read"


def test_a_canary_without_readable_evidence_is_told_with_the_reason(delivery: Delivery) -> None:
    store = open_store(delivery.settings, prefix=delivery.spec.prefix)
    store.put("evaluation/b.json", b"{}")
    store.put("evaluation/c.json", b"no json")
    for key in (None, "evaluation/gone.json", "evaluation/b.json", "evaluation/c.json"):
        canary_verdict(delivery, key)
    found = said(delivery.client("VIEWER").get(f"{TOY}/canaries"), "CanaryList")["canaries"]
    assert len(found) == 4
    assert all(one["evidence"].startswith("cannot be read") and one["steps"] == [] for one in found)
    assert {one["outcome"] for one in found} == {"pass"}


def test_the_overview_tells_what_is_live_everywhere_and_what_cannot_be_loaded(delivery: Delivery) -> None:
    broken = delivery.settings.pipelines_dir / "broken"
    broken.mkdir()
    (broken / "pipeline.yaml").write_text("name: broken\n")
    found = said(delivery.client("VIEWER").get(f"{API}/deployments"), "PipelineStates")["pipelines"]
    assert [(one["pipeline"], bool(one["error"])) for one in found] == [("broken", True), ("toy", False)]
    toy = found[1]
    assert (toy["live"]["version"], toy["last_gate"], toy["events_of_last_day"]) == (2, "fail", 2)
    assert (
        problem(delivery.client("VIEWER").get(f"{API}/pipelines/broken/live"), 500)["type"] == "ConfigError"
    )


# -- who may


@pytest.mark.parametrize("path", GETS)
def test_nobody_reads_without_logging_in(untouched: Delivery, path: str) -> None:
    answer = untouched.client(user=None).get(API + path)
    assert problem(answer, 401)["type"] == "NotLoggedIn"


@pytest.mark.parametrize(("path", "order"), POSTS)
def test_nobody_changes_anything_without_logging_in(untouched: Delivery, path: str, order: Any) -> None:
    answer = untouched.client(user=None, **{"sec-fetch-site": "same-origin"}).post(API + path, json=order)
    assert problem(answer, 401)["type"] == "NotLoggedIn"
    assert untouched.live() == (2, 2)


def test_without_access_a_pipeline_that_exists_looks_like_one_that_does_not(untouched: Delivery) -> None:
    client = untouched.client(role=None, authorization="Bearer of-a-program")
    for path in GETS[1:]:
        there = problem(client.get(API + path), 403)
        assert there["type"] == "NoAccess" and "<pipeline>.train" in there["fix"]
        assert problem(client.get((API + path).replace("toy", "no_such")), 403) == there
    for path, order in POSTS:
        there = problem(client.post(API + path, json=order), 403)
        assert problem(client.post((API + path).replace("toy", "no_such"), json=order), 403) == there
    assert client.get(f"{API}/deployments").json() == {"pipelines": []}


@pytest.mark.parametrize(("path", "order"), POSTS)
def test_who_may_only_read_changes_nothing(untouched: Delivery, path: str, order: Any) -> None:
    client = untouched.client("VIEWER", authorization="Bearer of-a-program")
    found = problem(client.post(API + path, json=order), 403)
    assert found["type"] == "NoAccess" and "trigger" in found["fix"]
    assert untouched.live() == (2, 2)


def test_promotion_and_rollback_are_rights_of_their_own(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rights = {("ada", "GET", "toy.train"), ("ada", "POST", "toy.train"), ("bob", "POST", "toy.rollback")}

    def may(*, user: Any, method: str, details: Any, **_: Any) -> bool:
        return (user.username, method, details.id) in rights

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", may)
    ada, bob = delivery.program("ada"), delivery.program("bob")
    problem(ada.post(f"{TOY}/rollbacks", json=reversal()), 403)
    problem(bob.post(f"{TOY}/promotions", json=promotion()), 403)
    problem(bob.get(f"{TOY}/live"), 403)
    assert delivery.live() == (2, 2)
    assert ada.post(f"{TOY}/promotions", json=promotion()).status_code == 201
    assert bob.post(f"{TOY}/rollbacks", json=reversal(expected_event_id=3)).status_code == 201


@pytest.mark.parametrize(("path", "order"), POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"authorization": "Basic dTpw", "sec-fetch-site": "cross-site"},
        {"authorization": "Negotiate abc", "sec-fetch-site": "cross-site"},
        {"authorization": "Bearer of-nobody", "cookie": "_token=of-ada", "sec-fetch-site": "cross-site"},
        {"authorization": "Bearer of-nobody", "cookie": "_token=of-ada"},
        {"authorization": "Negotiate abc"},
    ],
)
def test_a_request_that_another_site_may_have_sent_changes_nothing(
    untouched: Delivery, path: str, order: Any, headers: dict[str, str]
) -> None:
    found = problem(untouched.client(**headers).post(API + path, json=order), 403)
    assert found["type"] == "ForeignOrigin"
    assert untouched.live() == (2, 2)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"origin": "http://testserver"},
        {"authorization": "Bearer of-a-program"},
    ],
)
def test_a_page_of_this_site_and_a_program_with_a_token_may(
    delivery: Delivery, headers: dict[str, str]
) -> None:
    assert delivery.client(**headers).post(f"{TOY}/promotions", json=promotion()).status_code == 201


def test_a_body_that_is_no_json_by_its_type_changes_nothing(untouched: Delivery) -> None:
    """A form of another site can send text, and no JSON without asking the server first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = untouched.program().post(
            f"{TOY}/promotions", content=json.dumps(promotion()), headers={"content-type": kind}
        )
        assert problem(answer, 422)["type"] == "InvalidBody"
    assert untouched.live() == (2, 2)


# -- what is changed


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


# -- the contract, the document and the page


def test_the_code_keeps_the_published_contract_and_every_field_is_explained() -> None:
    (document,) = delivery_documents().values()
    assert compatible(json.loads(CONTRACT.read_text()), document) == []
    assert CONTRACT.read_text() == text(document), "run .penstock/venv/bin/python scripts/contract.py"
    Draft202012Validator.check_schema(document)
    for name, schema in document["$defs"].items():
        missing = [field for field, one in schema["properties"].items() if not one["description"]]
        assert missing == [], name


def test_a_field_that_held_a_record_may_not_come_as_null_or_as_another_one() -> None:
    (old,) = delivery_documents().values()
    for change, breaks in (
        ({"$ref": "#/$defs/VerdictEntry"}, "has another type"),
        ({"type": "string"}, "has another type"),
    ):
        new = json.loads(json.dumps(old))
        new["$defs"]["LiveVersion"]["properties"]["live"] = change
        assert [breaks in line for line in compatible(old, new)] == [True]
    narrowed = json.loads(json.dumps(old))
    narrowed["$defs"]["LiveVersion"]["properties"]["live"] = {"$ref": "#/$defs/DeploymentEntry"}
    assert compatible(old, narrowed) == []
    assert compatible(narrowed, old) == ["LiveVersion.live may be null now"]


def test_the_document_has_the_contracts_records_and_their_words(untouched: Delivery) -> None:
    document = untouched.client("VIEWER").get(f"{API}/openapi.json").json()
    schemas = document["components"]["schemas"]
    (contract,) = delivery_documents().values()
    for name, schema in contract["$defs"].items():
        assert set(schemas[name]["properties"]) == set(schema["properties"]), name
        for field, promised in schema["properties"].items():
            assert schemas[name]["properties"][field]["description"] == promised["description"]
    conflicts = document["paths"]["/pipelines/{pipeline}/promotions"]["post"]["responses"]["409"]
    assert conflicts["content"] == {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Conflict"}}}
    assert all(one["description"] for one in schemas["PromotionOrder"]["properties"].values())


def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(delivery: Delivery) -> None:
    client = delivery.client()
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", client.app).include(tag="delivery")
    known = {"pipeline": st.sampled_from(["toy", "toy", "no_such"])}
    asked = sum(
        ask_often(
            found.ok(),
            mode,
            delivered_checks(),
            known if mode is GenerationMode.POSITIVE else {},
            headers={"sec-fetch-site": "same-origin"},
        )
        for found in schema.get_all_operations()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    assert asked > 100


def documented_calls() -> list[list[str]]:
    """The arguments of every `curl` of the page's section on the REST API."""
    page = (ROOT / "docs" / "delivery.md").read_text()
    section = page.split("## REST API")[1].split("\n## ")[0]
    lines = "".join(re.findall(r"```\n(.*?)```", section, re.S)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("curl")]


def test_the_calls_that_the_page_shows_work_in_their_order(delivery: Delivery) -> None:
    calls = documented_calls()
    assert len(calls) >= 6
    client = delivery.client()
    for arguments in calls:
        (address,) = [one for one in arguments if one.startswith("$AIRFLOW/")]
        headers = dict(
            arguments[place + 1].split(": ", 1) for place, one in enumerate(arguments) if one == "-H"
        )
        assert headers["Authorization"] == "Bearer $TOKEN"
        body = arguments[arguments.index("-d") + 1] if "-d" in arguments else None
        answer = client.request(
            "POST" if body else "GET",
            address.removeprefix("$AIRFLOW").replace("flight_delay", "toy"),
            headers=headers,
            content=body,
        )
        assert answer.status_code == (201 if body else 200), (arguments, answer.text)
    assert delivery.moves()[2:] == [("promote", 3), ("rollback", 2), ("bar", 3)]
    assert datetime.now(UTC) > registry.history(delivery.settings, delivery.spec)[0].at_utc
