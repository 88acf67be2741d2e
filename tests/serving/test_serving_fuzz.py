"""Whatever is sent, the answer is one that the OpenAPI document tells, and the server stays up."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serving_support import PATH, json_rows, toy_rows

from tasks.serving import ModelServer, ServingLimits
from tasks.serving.refusals import Refused
from tasks.serving.requests import RawRequest, decode_json, invocations, native

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "rows",
                    "entities",
                    "timeout_ms",
                    "request_id",
                    "instances",
                    "inputs",
                    "dataframe_split",
                    "columns",
                    "data",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
FEW = hypothesis_settings(max_examples=300)


@FEW
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_the_decoder_gives_a_value_or_a_refusal(body: bytes) -> None:
    try:
        decode_json(body)
    except Refused as refused:
        assert refused.status == 400 and refused.what


@FEW
@given(JSON)
def test_both_forms_give_rows_or_a_refusal(raw: Any) -> None:
    for parse in (lambda value: native(value, ServingLimits()), invocations):
        try:
            found = parse(raw)
        except Refused as refused:
            assert refused.status in (400, 422) and refused.what
        else:
            assert isinstance(found, RawRequest) and isinstance(found.rows, list)


@hypothesis_settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rows_with_anything_in_them_are_answered_or_refused_by_name(
    shared: tuple[ModelServer, httpx.Client], made: Any, data: st.DataObject
) -> None:
    row = json_rows(toy_rows(made[0]))[0]
    for name in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=3)):
        row[name] = data.draw(JSON | st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"))
    text = json.dumps({"rows": [row]})
    answer = shared[1].post(PATH, content=text, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code == 422:
        assert answer.json()["which"].startswith("rows[0]"), answer.text
    assert shared[0].ready


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(
    shared: tuple[ModelServer, httpx.Client], mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{shared[1].base_url}/openapi.json")
    checks = [
        check
        for check in schemathesis.checks.CHECKS.get_all()
        # A time may be before 1970, a form's columns may be those of no row: well-formed, and refused by name.
        if check.__name__ not in ("ignored_auth", "positive_data_acceptance", "unsupported_method")
    ]
    asked = 0
    for found in schema.get_all_operations():
        if mode is GenerationMode.NEGATIVE and found.ok().method != "post":
            continue  # nothing can be wrong in it

        @hypothesis_settings(
            max_examples=12,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=found.ok().as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            answer = case.call()
            # A deadline of a millisecond is well-formed, and passes. Schemathesis does not know 413 as a refusal of too many rows.
            may_be = {504: "not_a_server_error", 413: "negative_data_rejection"}.get(answer.status_code)
            case.validate_response(answer, checks=[one for one in checks if one.__name__ != may_be])

        ask()
    assert asked >= 20
    assert shared[0].ready
