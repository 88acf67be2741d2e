"""The delivery API: what it tells, who may ask and change, its contract and its document."""

from __future__ import annotations

import json
import math
import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import schemathesis
from airflow.api_fastapi.app import get_auth_manager
from api_support import ask_often, delivered_checks, problem
from deployment_support import (
    API,
    CONTRACT,
    EVIL,
    GETS,
    POSTS,
    ROOT,
    TOY,
    Delivery,
    model,
    promotion,
    reversal,
    said,
)
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode

from plugins.problems import MEDIA_TYPE
from tasks import registry
from tasks.audit.contract import compatible, text
from tasks.core import Finding, Verdict, open_store
from tasks.core.ids import canonical_json
from tasks.metadata import MetadataStore
from tasks.metadata.deployments import NewEvent
from tasks.wiring.delivery_contract import delivery_documents

pytestmark = pytest.mark.usefixtures("no_airflow_database")


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
        "share": None,
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


def test_an_exposed_challenger_is_told_beside_what_is_live(delivery: Delivery) -> None:
    client = delivery.client("VIEWER")
    assert said(client.get(f"{TOY}/live"), "LiveVersion")["exposed"] is None
    event = NewEvent("expose", 3, model(3).bundle_digest, "1+toy", 2, "ada", "passed", 0.05)
    MetadataStore.open(delivery.settings).append_events(delivery.spec, lambda _head: [event])
    now = said(client.get(f"{TOY}/live"), "LiveVersion")
    assert (now["live"]["version"], now["exposed"]["version"], now["exposed"]["share"]) == (2, 3, 0.05)


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
