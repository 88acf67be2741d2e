"""What a client can send: both forms, and everything that is wrong with a request, said with the field's name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from serving_support import PATH, json_rows, metric, toy_rows

from tasks.serving import ModelServer

Shared = tuple[ModelServer, httpx.Client]


@pytest.fixture
def client(shared: Shared) -> httpx.Client:
    return shared[1]


@pytest.fixture(scope="module")
def rows(made: Any) -> list[dict[str, Any]]:
    return json_rows(toy_rows(made[0]))


def send(client: httpx.Client, text: str | bytes, path: str = PATH, **headers: str) -> httpx.Response:
    return client.post(path, content=text, headers={"content-type": "application/json", **headers})


def problem(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == {"type", "what", "which", "fix"}
    assert document["what"]
    return document


def test_an_answer_has_id_score_and_version_of_each_row_in_order(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    together = client.post(PATH, json={"rows": rows[:5], "request_id": "r-1"}).json()
    assert together["pipeline"] == "toy" and together["request_id"] == "r-1"
    alone = [client.post(PATH, json={"rows": [row]}).json()["predictions"][0] for row in rows[:5]]
    assert together["predictions"] == alone
    assert {prediction["model_version"] for prediction in alone} == {1}
    assert len({prediction["prediction_id"] for prediction in alone}) == 5
    assert all(0 <= prediction["score"] <= 1 for prediction in alone)


def test_the_four_forms_of_mlflow_give_the_scores_of_the_native_one(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    chosen = rows[:3]
    native = [one["score"] for one in client.post(PATH, json={"rows": chosen}).json()["predictions"]]
    names = list(chosen[0])
    forms: list[dict[str, Any]] = [
        {"dataframe_records": chosen},
        {"dataframe_split": {"columns": names, "data": [[row[name] for name in names] for row in chosen]}},
        {"instances": chosen},
        {"inputs": {name: [row[name] for row in chosen] for name in names}},
        {"inputs": chosen, "params": {}},
    ]
    for form in forms:
        answer = client.post("/invocations", json=form)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"predictions": native}
        assert answer.headers["x-model-version"] == "1"


@pytest.mark.parametrize(
    ("change", "which", "what"),
    [
        ({"price": "12"}, "rows[1].price", "a text, not a number"),
        ({"price": True}, "rows[1].price", "true or false, not a number"),
        ({"price": 10**400}, "rows[1].price", "too large"),
        ({"visits": 1.5}, "rows[1].visits", "not an integer"),
        ({"visits": 2**63}, "rows[1].visits", "not between"),
        ({"city": 4}, "rows[1].city", "a number, not a text"),
        ({"city": "\ud800"}, "rows[1].city", "surrogate"),
        ({"city": ["Bern"]}, "rows[1].city", "a list, not a text"),
        ({"customer": None}, "rows[1].customer", "null"),
        ({"asked_at": None}, "rows[1].asked_at", "null"),
        ({"asked_at": "yesterday"}, "rows[1].asked_at", "not a time"),
        ({"asked_at": "2024-03-01T10:00:00"}, "rows[1].asked_at", "time zone"),
        ({"asked_at": "1969-12-31T23:59:59Z"}, "rows[1].asked_at", "1970"),
        ({"asked_at": 1709287200000}, "rows[1].asked_at", "a number, not a time"),
        ({"paid": 3.0}, "rows[1].paid", "afterwards"),
        ({"pric": 3.0}, "rows[1].pric", "not a field"),
    ],
)
def test_a_wrong_value_is_refused_with_the_path_of_its_field(
    client: httpx.Client, rows: list[dict[str, Any]], change: dict[str, Any], which: str, what: str
) -> None:
    text = json.dumps({"rows": [rows[0], {**rows[1], **change}]})
    found = problem(send(client, text), 422)
    assert found["type"] == "InvalidField"
    assert found["which"] == which
    assert what in found["what"]
    assert found["fix"]
    assert ("null where" in found["fix"]) is (which.split(".")[1] in ("price", "visits", "city"))


def test_a_missing_column_is_named_and_the_fix_says_whose_history_columns_are(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    row = {name: value for name, value in rows[0].items() if name != "visits"}
    found = problem(client.post("/invocations", json={"instances": [row]}), 422)
    assert found["which"] == "instances[0].visits"
    assert "history" in found["fix"]


def test_a_misspelt_field_is_told_the_nearest_name(client: httpx.Client, rows: list[dict[str, Any]]) -> None:
    assert "'price'" in problem(client.post(PATH, json={"rows": [{**rows[0], "pricee": 1}]}), 422)["fix"]


def test_a_field_under_another_name_is_missing_and_both_names_are_said(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    row = {name.replace("price", "pricee"): value for name, value in rows[0].items()}
    found = problem(client.post(PATH, json={"rows": [row]}), 422)
    assert (found["which"], found["what"]) == ("rows[0].price", "is missing; was it meant by 'pricee'?")


def test_null_integers_as_floats_unknown_categories_and_zones_are_fine(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    same = {**rows[0], "visits": float(rows[0]["visits"])}
    first = client.post(PATH, json={"rows": [rows[0]]}).json()["predictions"]
    assert client.post(PATH, json={"rows": [same]}).json()["predictions"] == first
    moved = rows[0]["asked_at"].replace("+00:00", "Z")
    assert client.post(PATH, json={"rows": [{**rows[0], "asked_at": moved}]}).json()["predictions"] == first
    odd = {**rows[0], "price": None, "city": "Atlantis", "device": None, "visits": None}
    assert client.post(PATH, json={"rows": [odd]}).status_code == 200


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"rows": [{"price": NaN}]}', "NaN"),
        ('{"rows": [{"price": Infinity}]}', "Infinity"),
        ('{"rows": [{"price": -Infinity}]}', "Infinity"),
        ("[" * 100_000, "cannot be read"),
        ("9" * 10_000, "cannot be read"),
        ("[]", "not an object"),
        ("{}", "missing"),
        ('{"rows": 3}', "not a list"),
        ('{"rows": [], "more": 1}', "not known"),
        ('{"rows": [{}], "timeout_ms": 0}', "time"),
        ('{"rows": [{}], "timeout_ms": "x"}', "time"),
        ('{"rows": [{}], "timeout_ms": true}', "time"),
        ('{"rows": [{}], "request_id": ""}', "request id"),
        ('{"rows": [{}], "request_id": 7}', "request id"),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_message_says_why(
    client: httpx.Client, text: str | bytes, what: str
) -> None:
    assert what in problem(send(client, text), 400)["what"]


def test_a_number_that_is_infinite_only_when_read_is_refused_by_its_field(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    text = json.dumps({"rows": [{**rows[0], "price": 7.5}]}).replace("7.5", "1e999")
    assert problem(send(client, text), 422)["which"] == "rows[0].price"


@pytest.mark.parametrize(
    ("body", "which"),
    [
        ({}, "body"),
        ({"instances": [], "inputs": []}, "body"),
        ({"frames": []}, "body"),
        ({"instances": 3}, "instances"),
        ({"inputs": {"price": 3}}, "inputs.price"),
        ({"inputs": {"price": [3], "city": []}}, "inputs"),
        ({"dataframe_split": []}, "dataframe_split"),
        ({"dataframe_split": {"columns": [1], "data": []}}, "dataframe_split.columns"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": []}}, "dataframe_split.columns"),
        ({"dataframe_split": {"columns": ["a"], "data": 1}}, "dataframe_split.data"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, "dataframe_split.data[0]"),
        ({"instances": [], "params": {"x": 1}}, "params"),
    ],
)
def test_a_wrong_mlflow_form_is_named(client: httpx.Client, body: dict[str, Any], which: str) -> None:
    assert problem(client.post("/invocations", json=body), 400)["which"] == which


def test_rows_that_are_no_objects_none_and_too_many_are_refused(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    assert problem(client.post(PATH, json={"rows": [3]}), 422)["which"] == "rows[0]"
    assert problem(client.post(PATH, json={"rows": []}), 422)["which"] == "rows"
    many = problem(client.post(PATH, json={"rows": [rows[0]] * 1001}), 413)
    assert "1,001 rows" in many["what"]


def test_a_body_beyond_the_limit_is_refused_whether_its_length_is_told_or_not(client: httpx.Client) -> None:
    large = b'{"rows": [' + b" " * (5 << 20)
    assert "4,194,304 bytes" in problem(send(client, large), 413)["what"]

    def parts() -> Any:
        for _ in range(100):
            yield b" " * 65_536

    answer = client.post(PATH, content=parts(), headers={"content-type": "application/json"})
    assert problem(answer, 413)["type"] == "RequestTooLarge"


def test_other_media_types_headers_and_paths_are_refused_as_problem_documents(
    client: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    body = json.dumps({"rows": rows[:1]})
    assert problem(client.post(PATH, content=body, headers={"content-type": "text/csv"}), 415)
    assert (
        problem(send(client, body, **{"x-request-timeout-ms": "soon"}), 400)["which"]
        == "X-Request-Timeout-Ms"
    )
    assert problem(send(client, body, **{"x-request-id": "x" * 201}), 400)["which"] == "X-Request-Id"
    nothing = problem(client.post("/v1/pipelines/other/predictions", content=body), 404)
    assert (nothing["type"], nothing["which"]) == ("NotFound", "POST /v1/pipelines/other/predictions")
    assert f"answers POST {PATH} " in nothing["fix"]
    assert problem(client.get(PATH), 405)["type"] == "MethodNotAllowed"


def test_the_request_id_of_the_header_comes_back(client: httpx.Client, rows: list[dict[str, Any]]) -> None:
    answer = send(client, json.dumps({"rows": rows[:1]}), **{"x-request-id": "abc"})
    assert (answer.headers["x-request-id"], answer.json()["request_id"]) == ("abc", "abc")


def test_refusals_are_counted_by_cause(client: httpx.Client) -> None:
    before = metric(client, "penstock_serving_errors_total", cause="media_type")
    client.post(PATH, content="x", headers={"content-type": "text/plain"})
    assert metric(client, "penstock_serving_errors_total", cause="media_type") == before + 1


def test_the_document_describes_a_row_by_the_model_s_own_signature(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == ["customer", "asked_at", "price", "visits", "city", "device"]
    assert row["properties"]["price"] == {"type": ["number", "null"]}
    assert row["properties"]["customer"] == {"type": "string"}
    assert client.get("/docs").status_code == 200


def test_health_says_what_answers(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/ping").status_code == 200
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert (ready.json()["model_version"], ready.json()["challenger_version"]) == (1, None)
