"""The audit API: who may ask, what is answered, and that every error is a problem document with its own status."""

from __future__ import annotations

import io
import json
import math
import sys
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import schemathesis
from api_support import ask_often, delivered_checks, problem
from audit_site import API, EVIL, READS, TOY, WINDOW, Site
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from plugins import access, audit_api, exports, problems
from plugins.explaining import Explain, ExplainOnDemand
from tasks.audit import AuditPage, AuditRecord, by_prediction
from tasks.audit.retention import retain
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import DataError, NotFound, ServiceUnavailable, StoreUnavailable

UNKNOWN = "018df9c3-4a00-8b6e-9d41-5f0c2a7e1b33"
PATHS = [
    "/pipelines",
    f"/pipelines/toy/predictions?{WINDOW}",
    f"/pipelines/toy/predictions/{UNKNOWN}",
    f"/pipelines/toy/predictions/{UNKNOWN}/export",
    f"/pipelines/toy/export?{WINDOW}",
    f"/ids/{UNKNOWN}",
    "/openapi.json",
]


@pytest.mark.parametrize("path", PATHS)
def test_nobody_asks_without_logging_in(site: Site, path: str) -> None:
    client = site.client(user=None)
    answer = client.get(API + path)
    assert problem(answer, 401)["type"] == "NotLoggedIn"
    assert answer.headers["www-authenticate"] == "Bearer"
    refused = client.get(API + path, headers={"Authorization": "Bearer not.a.token"})
    assert problem(refused, refused.status_code)["type"] in ("NotLoggedIn", "NoAccess")


@pytest.mark.parametrize("path", [path for path in PATHS if "toy" in path])
def test_without_access_a_pipeline_that_exists_looks_like_one_that_does_not(site: Site, path: str) -> None:
    client = site.client(role=None)
    there = problem(client.get(API + path), 403)
    assert problem(client.get(API + path.replace("toy", "no_such")), 403) == there
    assert there["type"] == "NoAccess"
    assert client.get(f"{API}/pipelines").json() == {"pipelines": []}


def test_a_tenant_reads_its_own_rows_only(site: Site, limited: None) -> None:
    vic, ada = site.client("vic"), site.client("ada")
    assert [one["name"] for one in vic.get(f"{API}/pipelines").json()["pipelines"]] == ["toy"]
    assert [one["name"] for one in ada.get(f"{API}/pipelines").json()["pipelines"]] == ["other", "toy"]
    for path in (f"predictions?{WINDOW}", f"predictions/{site.other_id}", f"export?{WINDOW}"):
        refused = vic.get(f"{API}/pipelines/other/{path}")
        problem(refused, 403)
        assert "rival" not in refused.text
        assert str(site.settings.home) not in refused.text
        assert ada.get(f"{API}/pipelines/other/{path}").status_code == 200
    assert problem(vic.get(f"{TOY}/predictions/{site.other_id}"), 404)["type"] == "NotFound"


def test_a_prediction_is_answered_as_python_answers_it(site: Site) -> None:
    for identifier in (site.ids[0], site.ids[-1]):
        answer = site.client().get(f"{TOY}/predictions/{identifier}")
        assert answer.headers["cache-control"] == "private, no-store"
        assert answer.json() == by_prediction(site.settings, site.toy, identifier).to_json()
    older = site.client().get(f"{TOY}/predictions/{site.ids[0]}", params={"run_id": site.first_run}).json()
    assert (older["model_version"], older["run_id"]) == (1, site.first_run)
    assert older["superseded_by"]


def test_a_window_comes_in_pages_that_lose_and_repeat_nothing(site: Site) -> None:
    client, seen, cursor = site.client(), [], None
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        page = client.get(f"{TOY}/predictions?{WINDOW}&limit=100{more}").json()
        seen += [record["prediction_id"] for record in page["records"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == list(site.ids)


def test_filters_let_through_what_they_say(site: Site) -> None:
    client = site.client()

    def found(**filters: Any) -> list[dict[str, Any]]:
        params = {"start": "2024-03-01T00:00:00Z", "end": "2024-03-03T00:00:00Z", "limit": 1000, **filters}
        return client.get(f"{TOY}/predictions", params=params).json()["records"]

    everything = found()
    band = [r["prediction_id"] for r in everything if 0.2 <= r["prediction"] <= 0.4]
    assert band
    inside = found(min_prediction=0.2, max_prediction=0.4)
    assert all(0.2 <= r["prediction"] <= 0.4 for r in inside)
    assert [r["prediction_id"] for r in inside if not r["superseded_by"]] == band
    assert len(found(model_version=1)) == 120
    one = everything[7]
    assert [r["prediction_id"] for r in found(entity_id=one["entity_id"])] == [one["prediction_id"]]
    assert found(model_version=99) == []


@pytest.mark.parametrize(
    ("path", "which"),
    [
        ("/pipelines/toy/predictions/not-an-id", "not-an-id"),
        ("/ids/018DF9C3-4A00-8B6E-9D41-5F0C2A7E1B33", "018DF9C3"),
        ("/ids/ffffffff-ffff-8b6e-9d41-5f0c2a7e1b33", "ffffffff"),
        ("/pipelines/toy/predictions?start=2024-03-02T00:00:00Z&end=2024-03-01T00:00:00Z", "window"),
        ("/pipelines/toy/predictions?start=2020-03-02T00:00:00Z&end=2024-03-01T00:00:00Z", "window"),
        ("/pipelines/toy/predictions?start=2024-03-01T00:00:00&end=2024-03-02T00:00:00Z", "start"),
        ("/pipelines/toy/predictions?start=0001-01-01T00:00:00%2B14:00&end=2024-03-02T00:00:00Z", "start"),
        ("/pipelines/toy/predictions?start=2024-03-01T00:00:00Z&end=9999-12-31T23:00:00-08:00", "end"),
        ("/pipelines/toy/predictions?start=yesterday&end=2024-03-02T00:00:00Z", "start"),
        ("/pipelines/toy/predictions?end=2024-03-02T00:00:00Z", "start"),
        (f"/pipelines/toy/predictions?{WINDOW}&limit=0", "limit"),
        (f"/pipelines/toy/predictions?{WINDOW}&limit=100000", "limit"),
        (f"/pipelines/toy/predictions?{WINDOW}&min_prediction=nan", "min_prediction"),
        (f"/pipelines/toy/predictions?{WINDOW}&min_prediction=0.7&max_prediction=0.2", "score band"),
        (f"/pipelines/toy/predictions?{WINDOW}&model_version=99999999999", "model_version"),
        (f"/pipelines/toy/predictions?{WINDOW}&cursor=bm9uc2Vuc2U=", "bm9uc2Vuc2U="),
        (f"/pipelines/toy/export?{WINDOW}&format=xlsx", "format"),
        (f"/pipelines/No%20Name/predictions/{UNKNOWN}", "pipeline"),
    ],
)
def test_a_wrong_question_is_a_400_that_names_what_is_wrong(site: Site, path: str, which: str) -> None:
    found = problem(site.client().get(API + path), 400)
    assert found["type"] == "InvalidQuery"
    assert which in found["which"]
    assert found["fix"]


def test_the_cursor_of_another_question_is_refused(site: Site) -> None:
    client = site.client()
    cursor = client.get(f"{TOY}/predictions?{WINDOW}&limit=5").json()["cursor"]
    other = client.get(f"{TOY}/predictions?{WINDOW}&limit=5&model_version=1&cursor={cursor}")
    assert "another query" in problem(other, 400)["what"]


def test_what_does_not_exist_is_a_404(site: Site) -> None:
    client = site.client()
    assert problem(client.get(f"{TOY}/predictions/{UNKNOWN}"), 404)["which"] == UNKNOWN
    assert problem(client.get(f"{API}/pipelines/no_such/predictions/{UNKNOWN}"), 404)["which"] == "no_such"
    assert "Not Found" in problem(client.get(f"{API}/nothing"), 404)["what"]
    assert problem(client.post(f"{API}/pipelines"), 405)["type"] == "MethodNotAllowed"
    answer = client.get(f"{TOY}/predictions/{site.ids[0]}", params={"run_id": "0" * 16})
    assert "was not predicted by run" in problem(answer, 404)["what"]


def test_what_retention_has_deleted_is_a_410(site: Site, tmp_path: Path) -> None:
    from audit_site import build_site

    own = build_site(tmp_path)
    retain(own.settings, own.toy, as_of=date(2026, 6, 1), warm_days=1, expire_days=30)
    found = problem(own.client().get(f"{TOY}/predictions/{own.ids[0]}"), 410)
    assert "expired" in found["what"]
    page = own.client().get(f"/penstock/audit/toy/{own.ids[0]}")
    assert page.status_code == 410
    assert "expired at" in page.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailable("does not answer", which="s3", fix="try again"), 503),
        (DataError("an audit file is damaged", which="s3://b/x.parquet", fix="restore it"), 500),
        (NotFound("is not kept", which="x", fix="check"), 404),
        (ZeroDivisionError("oops"), 500),
    ],
)
def test_a_failing_store_has_its_status_and_its_reason(site: Site, error: Exception, status: int) -> None:
    class Broken:
        def __getattr__(self, _name: str) -> Any:
            def fail(*_: Any, **__: Any) -> Any:
                raise error

            return fail

    client = site.client(read_wiring=Broken())
    answer = client.get(f"{TOY}/predictions/{site.ids[0]}")
    found = problem(answer, status)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert found["what"] == getattr(error, "what", "the server failed")
    assert problem(client.get(f"{TOY}/export?{WINDOW}"), status) == found
    page = client.get(f"/penstock/audit/toy/{site.ids[0]}")
    assert page.status_code == status
    assert ("retry-after" in page.headers) == (status == 503)
    assert getattr(error, "fix", "") in page.text


def test_a_damaged_file_is_a_500_that_names_it(tmp_path: Path, site: Site) -> None:
    from audit_site import build_site

    own = build_site(tmp_path)
    store = open_store(own.settings, prefix=own.toy.prefix)
    files = [info.key for info in store.list("tables/audit") if info.key.endswith(".parquet")]
    for key in files:
        (own.settings.home / "store" / own.toy.prefix / key).write_bytes(b"PAR1 not a file PAR1")
    found = problem(own.client().get(f"{TOY}/predictions/{own.ids[0]}"), 500)
    assert found["type"] == "DataError"
    assert any(key in found["which"] for key in files)


def test_an_id_is_decoded_without_a_look_up(site: Site) -> None:
    assert site.client().get(f"{API}/ids/{UNKNOWN}").json() == {
        "prediction_id": UNKNOWN,
        "event_time": "2024-03-01T11:25:41.760000+00:00",
        "event_date": "2024-03-01",
    }


def test_exports_hold_every_row_with_values_and_attributions(site: Site) -> None:
    client = site.client()
    lines = client.get(f"{TOY}/export?{WINDOW}&format=jsonl").text.splitlines()
    records = [AuditRecord.from_json(json.loads(line)) for line in lines]
    assert tuple(record.prediction_id for record in records) == site.ids
    answer = client.get(f"{TOY}/export?{WINDOW}&format=parquet")
    assert 'filename="toy-20240301T000000-20240303T000000.parquet"' in answer.headers["content-disposition"]
    table = pq.read_table(io.BytesIO(answer.content))
    assert table.column("prediction_id").to_pylist() == list(site.ids)
    assert table.column("feature.city").to_pylist() == [record.features["city"] for record in records]
    assert table.column("attribution.price").to_pylist() == [
        (record.attributions or {}).get("price") for record in records
    ]
    csv = client.get(f"{TOY}/export?{WINDOW}&format=csv")
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    rows = pyarrow.csv.read_csv(io.BytesIO(csv.content))
    assert rows.column_names == table.column_names
    assert rows.num_rows == len(site.ids)
    one = client.get(f"{TOY}/predictions/{site.ids[3]}/export?format=jsonl").text
    assert json.loads(one) == by_prediction(site.settings, site.toy, site.ids[3]).to_json()
    nothing = "start=2020-03-01T00:00:00Z&end=2020-03-03T00:00:00Z"
    assert client.get(f"{TOY}/export?{nothing}&format=csv").text.startswith('"prediction_id"')


def test_a_text_that_a_spreadsheet_would_run_is_marked_in_csv_and_nowhere_else(site: Site) -> None:
    client = site.client()
    csv = pyarrow.csv.read_csv(io.BytesIO(client.get(f"{TOY}/export?{WINDOW}").content))
    parquet = pq.read_table(io.BytesIO(client.get(f"{TOY}/export?{WINDOW}&format=parquet").content))
    assert f"'=1+1{EVIL}" in csv.column("entity_id").to_pylist()
    assert f"=1+1{EVIL}" in parquet.column("entity_id").to_pylist()


def test_an_export_over_the_limit_is_a_413(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_api, "MAX_EXPORT_ROWS", len(site.ids) - 1)
    monkeypatch.setattr(exports.exported, "__kwdefaults__", {"most": len(site.ids) - 1})
    found = problem(site.client().get(f"{TOY}/export?{WINDOW}"), 413)
    assert found["type"] == "TooManyRows"
    assert "narrow" in found["fix"]
    monkeypatch.setattr(exports.exported, "__kwdefaults__", {"most": len(site.ids)})
    assert site.client().get(f"{TOY}/export?{WINDOW}").status_code == 200


def unexplained(site: Site) -> AuditRecord:
    """A prediction whose explanation was not kept."""
    records = (by_prediction(site.settings, site.toy, identifier) for identifier in site.ids)
    return next(record for record in records if record.explanation is None)


def with_explanation(client: Any, explain: Explain) -> None:
    """Let the application compute explanations in this way."""
    client.app.routes[-1].app.dependency_overrides[audit_api.read_explainer] = lambda: explain


def computed(settings: Settings, pipeline: str, prediction_id: str, run_id: str | None = None) -> AuditRecord:
    """The record as if its explanation had been computed: every feature moved the logit by a quarter."""
    spec = load_pipeline(settings, pipeline)
    record = by_prediction(settings, spec, prediction_id, run_id=run_id)
    shifts = dict.fromkeys(record.features, 0.25)
    return replace(record, explanation="computed", attributions=shifts, base_value=-1.0, residual=0.0)


def script(tmp_path: Path, code: str) -> tuple[str, ...]:
    path = tmp_path / "show.py"
    path.write_text(f"import json, os, sys, time\n{code}\n")
    return (sys.executable, str(path))


def test_an_explanation_is_computed_in_a_process_of_its_own(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "not for the model's code")
    record = unexplained(site)
    answer = computed(site.settings, "toy", record.prediction_id)
    (tmp_path / "answer.json").write_text(json.dumps(answer.to_json()))
    command = script(
        tmp_path,
        f"assert sys.argv[1:] == ['toy', {record.prediction_id!r}, '--explain', '--json'], sys.argv\n"
        "assert not [name for name in os.environ if name.startswith('AIRFLOW')]\n"
        f"assert os.environ['PENSTOCK_STORE'] == {site.settings.store_url!r}\n"
        f"print(open({str(tmp_path / 'answer.json')!r}).read())",
    )
    client = site.client()
    with_explanation(client, ExplainOnDemand(command=command))
    asked = f"{TOY}/predictions/{record.prediction_id}"
    assert client.get(asked).json()["explanation"] is None
    assert client.get(asked, params={"explain": "true"}).json() == answer.to_json()


@pytest.mark.parametrize(
    ("code", "status", "what"),
    [
        ("sys.exit('PipelineCodeError x: model.py broke\\n  Fix: mend it') ", 500, "model.py broke"),
        ("print('NotFound x: the bundle is gone', file=sys.stderr); sys.exit(2)", 404, "the bundle is gone"),
        ("print('StoreUnavailable s3: silent', file=sys.stderr); sys.exit(75)", 503, "silent"),
        (
            "print('NotKnownHere x: features are gone', file=sys.stderr); sys.exit(2)",
            500,
            "features are gone",
        ),
        ("sys.exit(3)", 500, "exit code 3"),
        ("print('no json')", 500, "is no audit record"),
    ],
)
def test_what_the_explaining_process_says_reaches_the_client(
    site: Site, tmp_path: Path, code: str, status: int, what: str
) -> None:
    client = site.client()
    with_explanation(client, ExplainOnDemand(command=script(tmp_path, code)))
    answer = client.get(f"{TOY}/predictions/{unexplained(site).prediction_id}?explain=true")
    assert what in problem(answer, status)["what"]


def test_explanations_are_bounded_in_number_and_time(site: Site, tmp_path: Path) -> None:
    identifier = unexplained(site).prediction_id
    release = tmp_path / "release"
    waiting = f"\nwhile not os.path.exists({str(release)!r}): time.sleep(0.01)\nsys.exit(2)"
    begun = tmp_path / "begun"
    explain = ExplainOnDemand(
        at_once=1, command=script(tmp_path, f"open({str(begun)!r}, 'w').close(){waiting}")
    )
    first: list[BaseException] = []

    def ask() -> None:
        try:
            explain(site.settings, "toy", identifier)
        except BaseException as error:
            first.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not begun.exists() and thread.is_alive():
        thread.join(0.01)
    with pytest.raises(ServiceUnavailable, match="others are being computed"):
        explain(site.settings, "toy", identifier)
    release.touch()
    thread.join()
    assert "exit code 2" in str(first[0])
    slow = ExplainOnDemand(timeout_s=0.2, command=script(tmp_path, "time.sleep(600)"))
    with pytest.raises(ServiceUnavailable, match="was not done"):
        slow(site.settings, "toy", identifier)


def test_a_number_that_json_has_no_word_for_is_null_or_text(site: Site) -> None:
    record = by_prediction(site.settings, site.toy, site.ids[0])
    odd = replace(record, features={"price": math.nan, "visits": math.inf, "city": "Bern"})

    class Odd:
        def audit_record(self, *_: Any) -> AuditRecord:
            return odd

    answer = site.client(read_wiring=Odd()).get(f"{TOY}/predictions/{site.ids[0]}")
    assert answer.json()["features"] == {"price": None, "visits": "Infinity", "city": "Bern"}


def test_a_token_of_airflow_opens_the_api(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager = get_auth_manager()
    monkeypatch.setattr("airflow.models.revoked_token.RevokedToken.is_revoked", lambda *_, **__: False)
    token = manager.generate_jwt(SimpleAuthManagerUser(username="vic", role="VIEWER"))
    client = site.client(user=None)
    answer = client.get(f"{API}/pipelines", headers={"Authorization": f"Bearer {token}"})
    assert [one["name"] for one in answer.json()["pipelines"]] == ["other", "toy"]


def test_the_document_describes_every_field_and_every_error(site: Site) -> None:
    document = site.client().get(f"{API}/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert set(schemas["AuditRecord"]["properties"]) == set(AuditRecord.__dataclass_fields__)
    assert set(schemas["AuditPage"]["properties"]) == set(AuditPage.__dataclass_fields__)
    assert "logit" in schemas["AuditRecord"]["properties"]["attributions"]["description"]
    assert "ValidationError" not in schemas
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert {"201" if method == "post" else "200", "401"} <= set(answers), path
            assert ("422" in answers) == (method == "post")
            assert all(list(answers[s]["content"]) == [problems.MEDIA_TYPE] for s in answers if s >= "400")
            assert all(said.get("description") for said in operation.get("parameters", [])), path
    assert document["components"]["securitySchemes"]


texts = st.text(max_size=40)


@hypothesis_settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    params=st.fixed_dictionaries(
        {},
        optional={
            "start": st.one_of(texts, st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat())),
            "end": st.one_of(texts, st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat())),
            "limit": st.one_of(texts, st.integers().map(str)),
            "cursor": texts,
            "model_version": st.one_of(texts, st.integers().map(str)),
            "min_prediction": st.one_of(texts, st.floats().map(str)),
            "max_prediction": st.one_of(texts, st.floats().map(str)),
            "entity_id": texts,
            "format": st.one_of(texts, st.sampled_from(["csv", "parquet", "jsonl"])),
            "pipeline": st.one_of(texts, st.just("toy")),
            "id": texts,
            "view": texts,
        },
    )
)
def test_no_question_is_answered_with_a_failure(site: Site, params: dict[str, str]) -> None:
    client = site.client()
    for path in (f"{TOY}/predictions", f"{TOY}/export", "/penstock/audit/"):
        answer = client.get(path, params=params)
        assert answer.status_code < 500, (path, params, answer.text)
        assert "<script" not in answer.text or path == f"{TOY}/export"


def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(site: Site) -> None:
    client = site.client()
    with_explanation(client, computed)
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", client.app).include(tag="audit")
    checks = delivered_checks()
    known = {
        "pipeline": st.sampled_from(["toy", "other", "no_such"]),
        "prediction_id": st.sampled_from([site.ids[0], site.ids[-1], UNKNOWN]),
    }
    asked = sum(
        ask_often(found.ok(), mode, checks, known if mode is GenerationMode.POSITIVE else {})
        for found in schema.get_all_operations()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    assert asked > 100


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's answer on a DAG's runs depends on who asks and on the DAG."""
    from airflow.api_fastapi.app import get_auth_manager

    def may(*, user: Any, details: Any, **_: Any) -> bool:
        return details.id.rpartition(".")[0] in READS[user.username]

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", may)


def test_a_pipelines_name_is_checked_before_airflow_is_asked() -> None:
    with pytest.raises(access.HTTPException) as refused:
        access.require_predictions(None, None, "a\x00b")  # type: ignore[arg-type]
    assert refused.value.status_code == 404
