"""Whoever asks too often or sends too much is told so, others are not held up, and what was sent changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from api_support import problem
from deployment_support import promotion
from shared_app import application

from plugins.request_limits import MAX_BODY_BYTES, request_counter

PAGE = "/penstock/deployments/toy"
pytestmark = pytest.mark.usefixtures("no_airflow_database")
STATE = "/penstock/api/v1/pipelines/toy/deployments"
PROMOTE = "/penstock/api/v1/pipelines/toy/promotions"


@pytest.fixture
def three_a_minute(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an application of its own, whose counter stays in one minute: where the next one begins it lets one more pass."""
    monkeypatch.setenv("AIRFLOW__PENSTOCK__REQUESTS_PER_MINUTE", "3")
    clock = SimpleNamespace(time=lambda: 60.0 * 30_000_000 + 10)
    for module in ("limits.storage.memory", "limits.strategies", "plugins.request_limits"):
        monkeypatch.setattr(f"{module}.time", clock)
    application.cache_clear()
    yield
    application.cache_clear()


def test_the_fourth_request_of_a_minute_is_refused_with_when_to_come_again(
    three_a_minute: None, delivery: Any
) -> None:
    client = delivery.client()
    assert [client.get(STATE).status_code for _ in range(3)] == [200, 200, 200]
    refused = client.get(STATE)
    found = problem(refused, 429)
    assert found["type"] == "TooManyRequests" and "more than 3 times" in found["what"]
    assert refused.headers["retry-after"] == "50"


def test_pages_and_api_count_together_and_a_page_says_it_as_a_page(
    three_a_minute: None, delivery: Any
) -> None:
    client = delivery.client()
    for address in (PAGE, STATE, PAGE):
        assert client.get(address).status_code == 200
    page = client.get(PAGE, headers={"Accept": "text/html"})
    assert page.status_code == 429 and "Too many requests" in page.text
    assert int(page.headers["retry-after"]) >= 1


def test_who_is_not_logged_in_is_told_that_and_is_not_counted(three_a_minute: None, delivery: Any) -> None:
    nobody = delivery.client(user=None)
    assert {nobody.get(STATE).status_code for _ in range(5)} == {401}


def test_a_refused_promotion_promotes_nothing(three_a_minute: None, delivery: Any) -> None:
    program = delivery.program()
    before = delivery.moves()
    for _ in range(3):
        program.get(STATE)
    problem(program.post(PROMOTE, json=promotion()), 429)
    assert delivery.moves() == before


def chunks() -> Iterator[bytes]:
    for _ in range(MAX_BODY_BYTES // 1000 + 1):
        yield b"x" * 1000


@pytest.mark.parametrize("body", [b"x" * (MAX_BODY_BYTES + 1), chunks], ids=["declared", "in pieces"])
def test_a_body_that_is_too_large_is_refused(delivery: Any, body: Any) -> None:
    before = delivery.moves()
    content = body() if callable(body) else body
    sent = delivery.program().post(PROMOTE, content=content, headers={"Content-Type": "application/json"})
    assert problem(sent, 413)["type"] == "TooLarge"
    assert delivery.moves() == before


def test_a_number_that_cannot_be_is_refused_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__PENSTOCK__REQUESTS_PER_MINUTE", "-1")
    with pytest.raises(ValueError, match="requests_per_minute is -1"):
        request_counter()
