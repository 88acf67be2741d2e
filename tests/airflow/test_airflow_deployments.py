"""The deployments page: what it shows, who may change what, and that a stale or foreign form changes nothing."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from deployment_support import EVIL, deployed, model
from fastapi.testclient import TestClient
from shared_app import SharedApp

from plugins import pages
from plugins.penstock import PenstockPlugin
from tasks import registry, wiring
from tasks.core import Finding, PipelineSpec, Settings, Verdict, load_pipeline, open_store
from tasks.core.errors import DigestMismatch
from tasks.metadata import CanaryStep, MetadataStore, ModelVersion
from tasks.metadata.deployments import NewEvent

SAME = {"sec-fetch-site": "same-origin"}
TOY = "/deployments/toy"


@pytest.fixture
def spec(settings: Settings) -> PipelineSpec:
    """The toy pipeline with version 1 live before version 2, which is live; 3 waits."""
    return deployed(settings)


@pytest.fixture
def site(settings: Settings, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The pages over the real steps; a version's bundle is taken for whole unless it is version 9's."""

    def check(version: ModelVersion) -> None:
        if version.version == 9:
            raise DigestMismatch("was changed", which="bundle 9", fix="restore it")

    def promote_model(
        to: Settings, pipeline: str, *, version: int, expected: int, despite_case: bool, **who: str
    ) -> Any:
        assert despite_case, "a person promotes in spite of an open case"
        return registry.promote(
            to, load_pipeline(to, pipeline), version, expected=expected or None, check=check, **who
        )

    def rollback_model(to: Settings, pipeline: str, *, expected: int, to_version: int, **who: str) -> Any:
        return registry.rollback(
            to,
            load_pipeline(to, pipeline),
            expected=expected,
            to_version=to_version,
            check=check,
            **who,
        )

    create_auth_manager()
    monkeypatch.setattr("airflow.models.dag.DagModel.get_team_name", lambda *_, **__: None)
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: settings
    app.dependency_overrides[pages.read_wiring] = lambda: SimpleNamespace(
        deployments=wiring.deployments,
        deployments_overview=wiring.deployments_overview,
        promote_model=promote_model,
        rollback_model=rollback_model,
        withdraw_model=wiring.withdraw_model,
        bar_model=wiring.bar_model,
        unbar_model=wiring.unbar_model,
    )
    return TestClient(app, follow_redirects=False, raise_server_exceptions=False)


def as_user(site: TestClient, role: str | None) -> TestClient:
    site.app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="ada", role=role)
    return site


@pytest.fixture
def viewer(site: TestClient) -> TestClient:
    return as_user(site, "VIEWER")


@pytest.fixture
def admin(site: TestClient) -> TestClient:
    return as_user(site, "ADMIN")


def form(**fields: Any) -> dict[str, Any]:
    return {"action": "promote", "version": 3, "live": 2, "reason": "better on Mondays", **fields}


def live(settings: Settings) -> int:
    found = registry.champion(settings, load_pipeline(settings, "toy"))
    assert found is not None
    return found.version


def test_the_page_shows_what_is_live_the_timeline_the_verdicts_and_the_log(viewer: TestClient) -> None:
    answer = viewer.get(TOY)
    assert answer.status_code == 200
    for part in (
        "version 2",
        "A rollback goes to",
        "<svg",
        "version 1, ",
        "min_auc: AUC 0.5",
        "1 checks passed",
        "airflow:ada",
    ):
        assert part in answer.text, part
    assert answer.text.count('<tr><td class="num">') == 2, "two events"


def test_nothing_that_people_wrote_runs(viewer: TestClient) -> None:
    for path in (TOY, "/deployments/"):
        answer = viewer.get(path)
        assert "<script" not in answer.text and "&lt;script&gt;" in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "form-action 'self'" in policy


def test_who_may_only_read_sees_no_button_and_can_press_none(viewer: TestClient, settings: Settings) -> None:
    assert "<button" not in re.sub(r'<form class="ask".*?</form>', "", viewer.get(TOY).text, flags=re.S)
    for action in ("promote", "rollback", "bar", "unbar"):
        answer = viewer.post(TOY, data=form(action=action), headers=SAME)
        assert answer.status_code == 403
    assert live(settings) == 2


def test_nobody_without_a_login_reads_or_changes(site: TestClient) -> None:
    assert site.get(TOY).status_code == 401
    assert site.post(TOY, data=form(), headers=SAME).status_code == 401


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
    ],
)
def test_a_form_that_another_site_may_have_sent_changes_nothing(
    admin: TestClient, settings: Settings, headers: dict[str, str]
) -> None:
    answer = admin.post(TOY, data=form(), headers=headers)
    assert answer.status_code == 403 and "another site" in answer.text
    assert live(settings) == 2


@pytest.mark.parametrize(
    "headers", [SAME, {"origin": "http://testserver"}, {"authorization": "Bearer of-a-program"}]
)
def test_a_promotion_from_the_page_is_the_users_with_the_reason(
    admin: TestClient, settings: Settings, headers: dict[str, str]
) -> None:
    answer = admin.post(TOY, data=form(), headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, "/penstock/deployments/toy?done=promote")
    newest = registry.history(settings, load_pipeline(settings, "toy"))[0]
    assert (newest.kind, newest.version, newest.actor, newest.reason) == (
        "promote",
        3,
        "airflow:ada",
        "better on Mondays",
    )
    assert "Done: promoted" in admin.get(f"{TOY}?done=promote").text


def test_a_rollback_bars_the_version_and_it_can_be_unbarred(admin: TestClient, settings: Settings) -> None:
    assert admin.post(TOY, data=form(action="rollback", version=1), headers=SAME).status_code == 303
    assert live(settings) == 1
    page = admin.get(TOY).text
    assert "Unbar version 2" in page and "Promote version 2" not in page
    assert admin.post(TOY, data=form(action="unbar", version=2), headers=SAME).status_code == 303
    assert "Promote version 2" in admin.get(TOY).text
    assert admin.post(TOY, data=form(action="bar", version=3), headers=SAME).status_code == 303
    assert "Unbar version 3" in admin.get(TOY).text


def test_a_form_of_a_page_that_is_out_of_date_moves_nothing_and_says_who_did(
    admin: TestClient, settings: Settings
) -> None:
    answer = admin.post(TOY, data=form(live=1), headers=SAME)
    assert answer.status_code == 409
    for part in ("Nothing was changed", "version 1 was expected to be live", "version 2 is"):
        assert part in answer.text
    assert live(settings) == 2


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"reason": "  "}, 400, "A reason"),
        ({"reason": "x" * 401}, 400, "A reason"),
        ({"version": "three"}, 400, "version"),
        ({"version": -1}, 400, "version"),
        ({"action": "delete"}, 400, "what to do"),
        ({"version": 77}, 404, "is not registered"),
        ({"reason": "x" * 20_000}, 413, "too long"),
    ],
)
def test_a_wrong_form_is_refused_in_words(
    admin: TestClient, settings: Settings, fields: dict[str, Any], status: int, words: str
) -> None:
    answer = admin.post(TOY, data=form(**fields), headers=SAME)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert live(settings) == 2


def test_a_version_that_cannot_be_loaded_is_not_promoted_and_the_page_says_why(
    admin: TestClient, settings: Settings, spec: PipelineSpec
) -> None:
    MetadataStore.open(settings).record_model_version(spec, model(9))
    answer = admin.post(TOY, data=form(version=9), headers=SAME)
    assert answer.status_code == 400
    assert "was changed" in answer.text and "restore it" in answer.text
    assert live(settings) == 2


def test_what_was_live_at_a_moment_can_be_asked(viewer: TestClient) -> None:
    assert "<b>nothing</b>" in viewer.get(f"{TOY}?at=2020-01-01T00:00").text
    assert "<b>version 2</b>" in viewer.get(f"{TOY}?at=2124-01-01T00:00").text
    for wrong in ("yesterday", "0001-01-01T00:00%2B14:00", EVIL):
        answer = viewer.get(f"{TOY}?at={wrong}")
        assert answer.status_code == 400 and "is not a moment" in answer.text


def test_the_log_is_paged_by_event(viewer: TestClient, settings: Settings, spec: PipelineSpec) -> None:
    store, made = MetadataStore.open(settings), model(3)
    for kind in ("bar", "unbar") * 30:
        event = NewEvent(kind, 3, made.bundle_digest, "1+toy", None, "ada", "again")
        store.append_events(spec, lambda _head, event=event: [event])
    seen: list[int] = []
    path = TOY
    while path:
        text = viewer.get(path).text
        seen += [int(number) for number in re.findall(r'<tr><td class="num">(\d+)</td>', text)]
        older = re.search(r'href="/penstock(/deployments/toy\?before=\d+)"', text)
        path = older.group(1) if older else ""
    assert seen == list(range(62, 0, -1))


def test_damaged_evidence_of_a_canary_leaves_the_rest_of_the_page(
    viewer: TestClient, settings: Settings, spec: PipelineSpec
) -> None:
    open_store(settings, prefix=spec.prefix).put("evaluation/x/canary.json", b"{}")
    MetadataStore.open(settings).record_verdict(
        spec,
        Verdict(
            gate="canary",
            pipeline="toy",
            subject=model(3).bundle_digest,
            outcome="pass",
            findings=(Finding("days", "pass", "7 of 7 days"),),
            decided_at_utc="2024-02-03T00:00:00Z",
            evidence_key="evaluation/x/canary.json",
        ),
    )
    text = viewer.get(TOY).text
    assert "No canary has compared two models yet" in text and "7 of 7 days" in text


def test_all_pipelines_are_listed_with_what_is_live(viewer: TestClient, settings: Settings) -> None:
    broken = settings.pipelines_dir / "broken"
    broken.mkdir()
    (broken / "pipeline.yaml").write_text("name: broken\n")
    text = viewer.get("/deployments/").text
    for part in ('href="/penstock/deployments/toy"', "version 2", "cannot be loaded"):
        assert part in text


def test_a_pipeline_without_anything_says_what_to_do(settings: Settings, site: TestClient) -> None:
    text = as_user(site, "VIEWER").get("/deployments/Not a name")
    assert text.status_code == 404
    assert as_user(site, "VIEWER").get("/deployments/unknown").status_code == 404


def test_an_exposure_is_shown_with_its_steps_and_can_be_withdrawn_by_who_may_roll_back(
    site: TestClient, settings: Settings, spec: PipelineSpec
) -> None:
    store = MetadataStore.open(settings)
    made = model(3)
    event = NewEvent("expose", 3, made.bundle_digest, "1+toy", 2, "airflow:ada", EVIL, 0.05)
    store.append_events(spec, lambda _head: [event])
    evidence = {"rows": 12345, "errors": 2, "judged_days": 4, "next_share": 0.05}
    store.record_canary_step(spec, CanaryStep(3, 3, 2, 0.01, "advance", (f"all well {EVIL}",), evidence))
    page = as_user(site, "VIEWER").get(TOY).text
    assert "Version 3</b> is exposed to <b>5 %</b> of the entities" in page
    assert "12,345" in page and "all well &lt;script&gt;" in page and EVIL not in page
    assert "Withdraw" not in page
    admin = as_user(site, "ADMIN")
    assert "Withdraw version 3" in admin.get(TOY).text
    done = admin.post(TOY, data=form(action="withdraw", version=3, live=2), headers=SAME)
    assert (done.status_code, done.headers["location"].split("?")[1]) == (303, "done=withdraw")
    assert store.head(spec).exposed is None and store.history(spec, limit=1)[0].actor == "airflow:ada"


@pytest.mark.parametrize("dag", ["toy.train", "toy.score", "toy.monitor", "toy.rollback"])
def test_a_dag_of_a_pipeline_leads_to_its_page(viewer: TestClient, dag: str) -> None:
    text = viewer.get(f"/deployments/dag/{dag}").text
    assert (
        "version 2" in text and "A rollback goes to" in text and 'action="/penstock/deployments/toy"' in text
    )


def test_a_dag_of_no_pipeline_says_that_it_deploys_nothing(viewer: TestClient) -> None:
    for dag in ("platform.maintenance", "somebody_elses", "unknown.train", "toy.else", f"{EVIL}.train"):
        answer = viewer.get(f"/deployments/dag/{dag}")
        assert answer.status_code == (200 if "/" not in dag else 404), dag
        assert "<script" not in answer.text and "<button" not in answer.text
        assert "/" in dag or "belongs to no pipeline" in answer.text


def test_a_dags_page_needs_what_the_pipelines_page_needs(site: TestClient) -> None:
    assert site.get("/deployments/dag/toy.score").status_code == 401
    assert as_user(site, None).get("/deployments/dag/toy.score").status_code == 403
    assert as_user(site, None).get("/deployments/dag/unknown.score").status_code == 403


def test_the_page_is_a_tab_of_every_dag_and_dag_run() -> None:
    views = [view for view in PenstockPlugin.external_views if view["name"] == "Deployments"]
    assert {view["destination"]: view["href"] for view in views} == {
        "nav": "/penstock/deployments/",
        "dag": "/penstock/deployments/dag/{DAG_ID}",
        "dag_run": "/penstock/deployments/dag/{DAG_ID}",
    }
    routes = [view["url_route"] for view in PenstockPlugin.external_views if "url_route" in view]
    assert len(routes) == len(set(routes)), "Airflow drops a second view of the same route"
