"""Every route of the plugin, tried by somebody of another tenant: none of them tells him anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from audit_site import Site
from starlette.routing import Mount, Route

from plugins import pages
from tasks.metadata import MetadataStore

THEIRS = "other"
"""A pipeline of tenant `rival`; whoever tries may read `toy`, of tenant `default`."""
ARITHMETIC = ("/penstock/api/v1/ids/{prediction_id}",)
"""Says what is in an id itself, and looks nothing up."""
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def outsider(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Airflow's permissions by DAG, as an auth manager that has them decides: only those of `toy`."""

    def of_toy(_: object, *, details: Any = None, **__: object) -> bool:
        return details is not None and str(details.id).startswith("toy.")

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", of_toy)
    allowed = {f"toy.{kind}" for kind in ("train", "score", "monitor", "case", "rollback")}
    monkeypatch.setattr(SimpleAuthManager, "get_authorized_dag_ids", lambda *_, **__: allowed)
    return site


def routes() -> Iterator[tuple[str, str]]:
    """(method, path) of every route, mounted applications included."""

    def walk(found: Any, before: str) -> Iterator[tuple[str, str]]:
        for route in found:
            if isinstance(route, Mount):
                yield from walk(route.routes, before + route.path)
            elif isinstance(route, Route) or hasattr(route, "methods"):
                for method in sorted(route.methods - {"HEAD", "OPTIONS"}):
                    yield method, before + route.path

    yield from walk(pages.create_app().routes, "/penstock")


def filled(path: str, site: Site) -> str:
    """The path with the rival's names in it."""
    of_case = "/cases/" in path
    values = {
        "pipeline": THEIRS,
        "dag_id": f"{THEIRS}.{'case' if of_case else 'score'}",
        "run_id": "fault-2024-03-01" if of_case else "scheduled__1",
        "key": "evaluation/x/report.html",
        "case_id": "fault-2024-03-01",
        "prediction_id": site.other_id,
        "version": "1",
    }
    return re.sub(r"\{(\w+)(:path)?\}", lambda found: values[found.group(1)], path)


def test_no_route_tells_an_outsider_anything_of_another_tenants_pipeline(outsider: Site) -> None:
    store = MetadataStore.open(outsider.settings)
    assert "rival" not in store.tenants()
    client = outsider.client("vic", "USER")
    named, lists = 0, 0
    for method, path in routes():
        if path in ARITHMETIC:
            continue
        body = {"json": {}} if "/api/" in path else {"data": {"reason": "let me in"}}
        sent = {} if method == "GET" else body
        answer = client.request(method, filled(path, outsider), headers=SAME, follow_redirects=True, **sent)
        said = answer.text.replace(filled(path, outsider), "")
        assert "rival" not in said and outsider.other_id not in said, f"{method} {path}"
        if "{" in path:
            named += 1
            assert answer.status_code in (403, 404), f"{method} {path}: {answer.status_code} {said[:300]}"
        else:
            lists += 1
            assert not re.search(rf'[">/]{THEIRS}["</]', said), f"{method} {path}: {said[:500]}"
    assert named >= 20 and lists >= 10, (named, lists)


def test_the_same_routes_answer_whoever_may_read_the_pipeline(site: Site) -> None:
    """What the test above refuses is there: for a user with the right, the pages and the API know the pipeline."""
    client = site.client("ada", "USER")
    found = {
        path: client.get(filled(path, site)).status_code
        for method, path in routes()
        if method == "GET" and "{pipeline}" in path and "{case_id}" not in path and "{key" not in path
    }
    assert sum(status == 200 for status in found.values()) >= 8, found


@pytest.mark.parametrize("query", ["pipeline=other", "pipelines=other", "tenant=rival"])
def test_naming_another_tenant_in_a_question_brings_nothing_of_it(outsider: Site, query: str) -> None:
    client = outsider.client("vic", "USER")
    for method, path in routes():
        if method != "GET" or "{" in path:
            continue
        said = client.get(f"{path}?{query}").text.replace(query, "")
        assert outsider.other_id not in said and not re.search(rf'[">/]{THEIRS}["</]', said), path
