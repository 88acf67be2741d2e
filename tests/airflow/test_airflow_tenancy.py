"""The tenancy page: shares, the queue with its reasons, showback; and that nobody sees another tenant's."""

from __future__ import annotations

import csv
import io
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient
from shared_app import SharedApp

from plugins import access, pages, tenancy_page
from plugins.penstock import PenstockPlugin
from tasks import wiring
from tasks.core import Settings
from tasks.inference import Demand
from tasks.wiring.admission import admission
from tasks.wiring.context import open_context

PAGE = "/tenancy/"


def pipeline_of(settings: Settings, tenant: str) -> None:
    folder = settings.pipelines_dir / f"{tenant}_toy"
    shutil.copytree(settings.pipelines_dir / "toy", folder)
    path = folder / "pipeline.yaml"
    text = path.read_text().replace("name: toy", f"name: {tenant}_toy\ntenant: {tenant}")
    path.write_text(text.replace("inference: {", "inference: {max_workers: 4, gpus_per_worker: 1, "))


@pytest.fixture
def shared(settings: Settings) -> Settings:
    """Crimson has all of four GPUs, two of them borrowed; azure waits for its own; crimson has paid for an attempt that failed."""
    tenants = settings.project / "tenants"
    tenants.mkdir()
    (tenants / "_cluster.yaml").write_text("{gpus: 4, cpus: 16}")
    (tenants / "_prices.yaml").write_text("{currency: EUR, cpu_hour: 0, gpu_hour: 3600}")
    for name in ("crimson", "azure"):
        pipeline_of(settings, name)
        (tenants / f"{name}.yaml").write_text(
            "{share: {guarantee: {gpus: 2}}, budget: {month_soft: 5, month_hard: 700}}"
        )
    for run_id, seconds in (("0123456789abcdef", None), ("f" * 16, 8.0)):
        red = admission(open_context(settings, "crimson_toy"), run_id)
        red.allowed(Demand(0, 4, 10, None, 0.0, 0.0, 0.0), boundary=False)
        if seconds is not None:
            red.leave(Demand(0, 4, 10, None, seconds, seconds / 2, seconds / 4))
    blue = admission(open_context(settings, "azure_toy"), "b" * 16)
    assert blue.allowed(Demand(0, 4, 10, None, 0.0, 0.0, 0.0), boundary=False) == 0
    return settings


@pytest.fixture
def site(shared: Settings, no_airflow_database: None) -> TestClient:
    app = SharedApp()
    app.dependency_overrides[pages.read_settings] = lambda: shared
    app.dependency_overrides[pages.read_wiring] = lambda: wiring
    app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="ada", role="VIEWER")
    return TestClient(app, follow_redirects=False, raise_server_exceptions=False)


def reads_only(site: TestClient, *pipelines: str) -> TestClient:
    site.app.dependency_overrides[access.predictions_reader] = lambda: pipelines.__contains__
    return site


def test_that_nobody_decides_is_what_the_page_says_first(shared: Settings, site: TestClient) -> None:
    said = "nobody decides what runs may have (not for 300 s): `penstock tenancy keep` has to run"

    def status(*args: Any, **named: Any) -> dict[str, Any]:
        return {**wiring.tenancy_status(*args, **named), "undecided": said, "short": "more is promised"}

    asked = SimpleNamespace(tenancy_status=status, cost_ledger=wiring.cost_ledger)
    site.app.dependency_overrides[pages.read_wiring] = lambda: asked
    text = site.get(PAGE).text
    assert (
        "<h2>No run with a tenant's own login starts</h2><p>Nobody decides what runs may have (not for 300 s): "
        "`penstock tenancy keep` has to run. What runs goes on.</p>" in text
    )
    assert "more is promised" not in text


def test_the_page_shows_shares_borrowing_the_queue_with_reasons_and_what_the_month_cost(
    site: TestClient,
) -> None:
    shown = site.get(PAGE)
    assert shown.status_code == 200
    text = shown.text
    assert "1 run waits for workers" in text and "4 GPUs, 16 CPUs" in text
    assert "borrows</span> 2 GPUs" in text
    assert "gets 2 workers as soon as others have finished the shards they are at" in text
    assert "expected within a shard" in text
    assert ">8.00<" in text and "2.00 wasted" in text and "1 failed" in text
    assert "above the soft limit" in text
    assert "default-src 'none'" in shown.headers["content-security-policy"] and "<script" not in text


def test_the_months_costs_come_as_csv_and_its_sums_are_what_was_allocated(site: TestClient) -> None:
    month = site.get(PAGE).text.partition("costs.csv?month=")[2][:7]
    answer = site.get(f"/tenancy/costs.csv?month={month}")
    assert answer.headers["content-disposition"] == f'attachment; filename="costs-{month}.csv"'
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["tenant"], row["outcome"], row["currency"]) == ("crimson", "failed", "EUR")
    assert (
        float(row["allocated_s"]) == sum(float(row[name]) for name in ("used_s", "idle_s", "wasted_s")) == 8
    )
    assert list(csv.DictReader(io.StringIO(site.get("/tenancy/costs.csv?month=2020-01").text))) == []
    assert site.get(f"{PAGE}?month=2020-13").status_code == 422


@pytest.mark.parametrize("path", [PAGE, "/tenancy/costs.csv"])
def test_a_user_sees_the_tenants_of_pipelines_that_he_may_read_and_of_others_not_even_the_name(
    site: TestClient, path: str
) -> None:
    assert "crimson" in site.get(path).text
    assert "crimson" not in reads_only(site, "azure_toy").get(path).text
    nobody = reads_only(site).get(path)
    assert nobody.status_code == 200
    assert "blue" not in nobody.text and "crimson_toy" not in nobody.text


def test_without_a_login_there_is_no_page(site: TestClient) -> None:
    del site.app.dependency_overrides[get_user]
    for path in (PAGE, "/tenancy/costs.csv"):
        assert site.get(path).status_code == 401


def test_the_page_is_in_the_navigation(site: TestClient) -> None:
    views: list[dict[str, Any]] = [
        view for view in PenstockPlugin.external_views if view["name"] == "Tenancy"
    ]
    assert [view["href"] for view in views] == ["/penstock/tenancy/"]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, "0 B"),
        (1023, "1023 B"),
        (311 * 1024, "311 KiB"),
        (1010 * 1024, "0.986 MiB"),
        (5 * 1024**4, "5.0 TiB"),
    ],
)
def test_sizes_have_three_digits_and_no_exponent(count: int | None, words: str) -> None:
    assert tenancy_page._size(count) == words
