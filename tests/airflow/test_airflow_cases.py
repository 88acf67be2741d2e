"""Cases in Airflow: the page, who may answer on it, and the question that waits under *Required Actions*."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException
from fastapi.testclient import TestClient
from shared_app import SharedApp

from plugins import case_question, pages
from plugins.case_question import CaseQuestion, CaseTrigger, RetrainForCase, StartCase, case_body
from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.monitoring.cases import Answer, Case, answer_case, close_case, open_case, options_of, read_cases

EVIL = '<script>alert("x")</script>'
SAME = {"sec-fetch-site": "same-origin"}
FIRST = date(2024, 2, 10)
FAULT = f"fault-{FIRST}"
HERE = f"/cases/toy/{FAULT}"


def a_case(kind: str = "data fault") -> Case:
    return Case(
        case_id="",
        kind=kind,
        days=(FIRST,),
        signals=("nulls:price",),
        first_day=FIRST,
        last_day=FIRST,
        headline=f"Something is wrong {EVIL}",
        reasons=(f"half of price is null {EVIL}", "a | b"),
        next_steps=("Look at it.",),
        causes=({"what": f"Most likely the feed {EVIL}"},),
        options=options_of(kind, ("nulls:price",), target=1),
        suggestion="incident",
        because="the feed is to be repaired",
        model_version=1,
        outcome="held",
        report_key="monitoring/2024-02-10_2024-02-10/report.html",
        dag_run="toy.monitor/run 1",
    )


@pytest.fixture
def opened(settings: Settings) -> Settings:
    open_case(open_store(settings, prefix=load_pipeline(settings, "toy").prefix), a_case(), taken=[])
    return settings


@pytest.fixture
def site(opened: Settings, no_airflow_database: None) -> TestClient:
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: opened
    app.dependency_overrides[pages.read_wiring] = lambda: wiring
    return as_user(TestClient(app, follow_redirects=False, raise_server_exceptions=False), "USER")


def as_user(site: TestClient, role: str | None) -> TestClient:
    site.app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="ada", role=role)
    return site


def answer(site: TestClient, headers: dict[str, str] = SAME, **form: str) -> Any:
    return site.post(HERE, data={"answer": "accept", "reason": "it is right", **form}, headers=headers)


def test_the_page_shows_the_evidence_and_what_each_answer_does(site: TestClient) -> None:
    shown = site.get(HERE)
    assert shown.status_code == 200
    for text in (
        "half of price is null",
        "Most likely the feed",
        "Mark as incident",
        "Look at it.",
        "Nobody has answered",
    ):
        assert text in shown.text
    assert EVIL not in shown.text and "&lt;script&gt;" in shown.text
    assert "form-action 'self'" in shown.headers["content-security-policy"]
    listed = site.get("/cases/")
    assert "1 case waits for an answer" in listed.text and FAULT in listed.text


def test_the_page_says_that_something_was_compared_only_where_there_was_a_version_to_compare_with(
    site: TestClient, settings: Settings
) -> None:
    store = open_store(settings, prefix=load_pipeline(settings, "toy").prefix)
    for target, words in ((1, "compared, and asks"), (None, "asks a person")):
        options = options_of("performance damage", ("performance",), target=target)
        case = replace(a_case("performance damage"), outcome="asked", options=options)
        kept = open_case(store, case, taken=[file.case_id for file in read_cases(store)])
        assert f">{words}<" in site.get(f"/cases/toy/{kept.case_id}").text


def test_an_answer_is_kept_with_the_name_of_who_is_logged_in(site: TestClient, opened: Settings) -> None:
    done = answer(site)
    assert done.status_code == 303 and done.headers["location"].endswith(f"{HERE}?done=accept")
    shown = site.get(f"{HERE}?done=accept").text
    assert "Answered: Accept" in shown and "airflow:ada answered accept: it is right" in shown
    assert (
        f"penstock monitoring revoke toy {FAULT} --reason" in shown and "What the playbook says" not in shown
    )
    assert "What is to be done?" not in shown
    assert wiring.case_status(opened, "toy", case_id=FAULT)["actor"] == "airflow:ada"
    late = answer(site, answer="incident")
    assert late.status_code == 400 and "was answered already" in late.text


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"answer": "shrug"}, 400, "does not say what to answer"),
        ({"reason": " "}, 400, "A reason of 1 to 400"),
        ({"answer": "roll_back"}, 400, "is no answer to a case of data fault"),
        ({"answer": "mute", "until": "2030-01-01"}, 400, "at most 30 days later"),
        ({"answer": "mute", "until": "soon"}, 400, "is not a day"),
        ({"reason": "x" * 20_000}, 413, "too long"),
    ],
)
def test_an_answer_that_cannot_be_kept_says_why(
    site: TestClient, opened: Settings, form: dict[str, str], status: int, words: str
) -> None:
    refused = answer(site, **form)
    assert (refused.status_code, words in refused.text) == (status, True), refused.text
    assert wiring.case_status(opened, "toy", case_id=FAULT)["status"] == "open"


def test_a_form_of_another_site_a_viewer_and_a_stranger_answer_nothing(
    site: TestClient, opened: Settings
) -> None:
    assert answer(site, {"sec-fetch-site": "cross-site"}).status_code == 403
    assert answer(as_user(site, "VIEWER")).status_code == 403
    assert "answering needs the right" in site.get(HERE).text
    assert as_user(site, None).get(HERE).status_code == 403
    assert wiring.case_status(opened, "toy", case_id=FAULT)["status"] == "open"


def test_only_responders_answer_where_the_pipeline_names_some(site: TestClient, opened: Settings) -> None:
    path = opened.pipelines_dir / "toy" / "pipeline.yaml"
    text = path.read_text()
    path.write_text(text.replace("drift: {", "drift: {responders: [bob], ", 1))
    assert path.read_text() != text
    refused = answer(site)
    assert refused.status_code == 403 and "drift.responders" in refused.text
    path.write_text(text.replace("drift: {", "drift: {responders: [ada], ", 1))
    assert answer(site).status_code == 303


@pytest.mark.parametrize(
    "path", ["/cases/toy/fault-1999-01-01", "/cases/toy/..%2Fholds", "/cases/nothing/fault-2024-02-10"]
)
def test_what_is_no_case_is_not_found(site: TestClient, path: str) -> None:
    assert site.get(path).status_code == 404


def test_the_tab_of_a_run_shows_its_case_and_that_of_another_run_says_so(site: TestClient) -> None:
    assert "Something is wrong" in site.get(f"/cases/run/toy.case/{FAULT}").text
    assert "asks about no case" in site.get("/cases/run/toy.train/manual__1").text


# -- the question


@pytest.fixture
def at_work(opened: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(case_question.Settings, "from_environment", staticmethod(lambda: opened))
    return opened


def question() -> CaseQuestion:
    return CaseQuestion(
        task_id="ask", subject="?", pipeline="toy", case_id=FAULT, drift_timeout=timedelta(days=7)
    )


def event(label: str, user: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    given = {"reason": "", "mute_until": "", **fields}
    return {
        "chosen_options": [label],
        "params_input": given,
        "responded_by_user": user,
        "responded_at": SimpleNamespace(isoformat=lambda: ""),
    }


CONTEXT = {"ti": SimpleNamespace(dag_id="toy.case", run_id=FAULT), "params": {}}


def test_a_question_has_the_options_of_its_case_and_the_evidence_as_text(
    at_work: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def waits(self: CaseQuestion, context: Any) -> None:
        asked.update(options=self.options, subject=self.subject, body=self.body, defaults=self.defaults)

    monkeypatch.setattr(case_question.HITLOperator, "execute", waits)
    question().execute(CONTEXT)
    assert asked["options"] == ["Mark as incident", "Accept", "New normal", "Mute"]
    assert asked["subject"] == "Data fault in toy: what is to be done?"
    assert asked["defaults"] is None, "a fault waits for as long as it takes"
    assert "**Suggested: Mark as incident**: the feed is to be repaired." in asked["body"]
    assert "- a \\| b" in asked["body"] and "Most likely the feed" in asked["body"]


def test_what_was_pressed_becomes_the_answer(at_work: Settings) -> None:
    said = question().execute_complete(
        CONTEXT, event("New normal", {"id": "1", "name": "ada"}, reason=" a partner left ", mute_until="")
    )
    assert said == {"answer": "new_normal", "actor": "airflow:ada", "reason": "a partner left", "until": None}
    muted = question().execute_complete(CONTEXT, event("Mute", {"id": "1"}, mute_until="2024-02-20"))
    assert (muted["until"], muted["actor"], muted["reason"]) == (
        "2024-02-20",
        "airflow:1",
        "no reason was given",
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (event("Mute", {"id": "1"}, mute_until="2031-01-30"), "choose a day up to"),
        (
            {
                "error": "Invalid input for param mute_until: '22.11.2026' does not match",
                "error_type": "validation",
            },
            "mute_until: '22.11.2026'",
        ),
    ],
    ids=["too late a day", "no day"],
)
def test_an_answer_that_cannot_be_kept_opens_the_question_again_and_the_log_says_why(
    at_work: Settings, monkeypatch: pytest.MonkeyPatch, given: Any, says: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        case_question.HITLOperator, "execute", lambda self, context: asked.append(self.subject)
    )
    made = question()
    logged: list[str] = []
    monkeypatch.setattr(made.log, "error", lambda text, *values: logged.append(text % values))
    made.execute_complete(CONTEXT, given)
    assert asked == ["Data fault in toy: what is to be done?"]
    assert len(logged) == 1 and "not kept; the question is open again" in logged[0] and says in logged[0]
    assert wiring.case_status(at_work, "toy", case_id=FAULT)["status"] == "open"


def test_when_nobody_answers_in_time_the_case_is_closed_and_nothing_follows(at_work: Settings) -> None:
    with pytest.raises(AirflowSkipException, match="nobody answered in 7 days"):
        question().execute_complete(CONTEXT, event("Accept"))
    assert wiring.case_status(at_work, "toy", case_id=FAULT)["over"] == "nobody answered in 7 days"
    with pytest.raises(AirflowSkipException, match="The case is over"):
        question().execute(CONTEXT)


def test_an_answer_from_elsewhere_is_taken_before_asking(at_work: Settings) -> None:
    wiring.answer_case(at_work, "toy", case_id=FAULT, answer="incident", actor="bob", reason="true")
    said = {"answer": "incident", "actor": "bob", "reason": "true", "until": None}
    assert question().execute(CONTEXT) == said
    assert question().execute_complete(CONTEXT, {"elsewhere": True}) == said


def test_the_trigger_survives_the_triggerer_and_ends_when_the_case_is_answered_elsewhere(
    at_work: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[dict[str, Any]] = []
    nothing = SimpleNamespace(response_received=False, chosen_options=None, responded_at=None)
    module = "airflow.providers.standard.triggers.hitl"
    monkeypatch.setattr(f"{module}.get_hitl_detail_content_detail", lambda ti_id: nothing)
    monkeypatch.setattr(case_question, "update_hitl_detail_response", lambda **given: closed.append(given))
    monkeypatch.setattr(case_question, "_LOOK_S", 0.0)
    made = CaseTrigger(
        ti_id=uuid4(),
        options=["Accept", "Mute"],
        params=question().serialized_params,
        timeout_datetime=None,
        poke_interval=0.01,
        pipeline="toy",
        case_id=FAULT,
    )
    path, arguments = made.serialize()
    assert path == "plugins.case_question.CaseTrigger"
    trigger = CaseTrigger(**arguments)

    async def follow() -> Any:
        stream = trigger.run()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "the case is open"
        wiring.answer_case(at_work, "toy", case_id=FAULT, answer="mute", actor="bob", reason="known")
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(follow()).payload == {"elsewhere": True}
    (given,) = closed
    assert given["chosen_options"] == ["Mute"]
    assert given["params_input"] == {"reason": "known", "mute_until": "2024-02-17"}


def test_a_store_that_does_not_answer_leaves_the_question_waiting(
    at_work: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.core.errors import StoreUnavailable

    trigger = CaseTrigger(
        ti_id=uuid4(), options=["Accept"], params={}, timeout_datetime=None, pipeline="toy", case_id=FAULT
    )

    def down(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("does not answer", which="store", fix="wait")

    monkeypatch.setattr(wiring, "case_status", down, raising=False)
    assert asyncio.run(trigger._answered_elsewhere()) is None


# -- what starts a run


def start(case_id: str) -> StartCase:
    return StartCase(task_id="case", pipeline="toy", case_id=case_id, started_dag="toy.case")


def test_a_case_starts_one_run_under_its_own_id_and_no_case_starts_none(at_work: Settings) -> None:
    with pytest.raises(AirflowSkipException):
        start("").execute(CONTEXT)
    task = start(FAULT)
    with pytest.raises(DagRunTriggerException) as raised:
        task.execute(CONTEXT)
    ordered = raised.value
    assert (ordered.trigger_dag_id, ordered.dag_run_id, ordered.conf) == (
        "toy.case",
        FAULT,
        {"case_id": FAULT},
    )
    assert ordered.skip_when_already_exists and not ordered.wait_for_completion
    assert task.links["started_run"].endswith(f"/dags/toy.case/runs/{FAULT}")


def test_a_training_starts_only_when_that_was_the_answer(at_work: Settings) -> None:
    store = open_store(at_work, prefix=load_pipeline(at_work, "toy").prefix)
    case_id = open_case(store, a_case("performance damage"), taken=[]).case_id
    task = RetrainForCase(task_id="retrain", pipeline="toy", case_id=case_id, started_dag="toy.train")
    with pytest.raises(AirflowSkipException, match="a training was not asked for"):
        task.execute(CONTEXT)
    answer_case(store, load_pipeline(at_work, "toy"), case_id, Answer("retrain", "ada", "labels changed"))
    with pytest.raises(DagRunTriggerException) as raised:
        task.execute(CONTEXT)
    assert raised.value.dag_run_id == f"case-{case_id}"
    assert raised.value.conf == {"actor": "ada", "reason": f"case {case_id}: labels changed"}


def test_the_text_of_a_long_case_is_cut_and_says_so() -> None:
    shown = {
        "headline": "h",
        "causes": [],
        "reasons": [f"reason {n}" for n in range(12)],
        "suggestion": "",
        "because": "wait for labels",
        "options": [{"answer": "accept", "does": "nothing"}],
        "next_steps": [],
        "page_url": "http://a/case",
        "report_url": "http://a/report",
    }
    body = case_body(shown)
    assert "reason 7" in body and "reason 8" not in body and "and 4 more, in the report" in body
    assert "**Suggested: wait**: wait for labels." in body


def test_a_closed_case_shows_why(site: TestClient, opened: Settings) -> None:
    store = open_store(opened, prefix=load_pipeline(opened, "toy").prefix)
    close_case(store, FAULT, "its hold was released")
    open_case(store, replace(a_case(), days=(FIRST + timedelta(days=20),)), taken=[])
    assert "Over: its hold was released." in site.get(HERE).text
    listed = site.get("/cases/").text
    assert listed.index("fault-2024-03-01") < listed.index(FAULT), "open ones first"
