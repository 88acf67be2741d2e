"""Quotas hold what a pipeline may ask for, budgets hold what it may begin, and the ledger adds up."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest
from wiring_support import Finished, edit, pipeline_file, score

from tasks import wiring
from tasks.core import Settings, load_pipeline, utc_now
from tasks.core.errors import ConfigError, TerminalError
from tasks.core.pools import POOLS, RAY_POOL
from tasks.core.tenants import pools_of
from tasks.metadata import MetadataStore, Scope
from tasks.wiring.tenancy import ledger_csv

PRICES = "{currency: EUR, cpu_hour: 3600, gpu_hour: 36000}"
"""A CPU-second costs 1, a GPU-second 10."""


def say(settings: Settings, tenant: str = "", *, prices: str = PRICES, name: str = "default") -> None:
    folder = settings.project / "tenants"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(tenant)
    (folder / "_prices.yaml").write_text(prices)


def test_the_ledger_has_every_run_and_training_and_its_sums_are_those_of_its_lines(
    installation: Settings,
) -> None:
    say(installation)
    run = score(installation)
    ledger = wiring.cost_ledger(installation)
    scored = [line for line in ledger["lines"] if line["kind"] == "scoring"]
    assert [line["run"] for line in scored][-1] == run["run_id"] and len(scored) == 2
    for line in scored:
        found = MetadataStore.open(installation).run(load_pipeline(installation, "toy"), line["run"])
        assert found is not None and line["cpu_seconds"] == found.cpu_seconds
        assert line["cost"] == pytest.approx(line["cpu_seconds"])
    (trained,) = [line for line in ledger["lines"] if line["kind"] == "training"]
    assert trained["cpu_seconds"] > 0
    (whole,) = ledger["by_tenant"]
    assert whole["cost"] == pytest.approx(sum(line["cost"] for line in ledger["lines"]), abs=1e-6)
    assert sum(item["runs"] for item in ledger["by_pipeline"]) == len(ledger["lines"]) == whole["runs"]
    rows = list(csv.DictReader(io.StringIO(ledger_csv(ledger))))
    assert [row["run"] for row in rows] == [line["run"] for line in ledger["lines"]]
    assert {row["currency"] for row in rows} == {"EUR"}


def test_a_run_counts_in_its_month_for_its_tenant_and_gpu_seconds_have_their_own_price(
    settings: Settings,
) -> None:
    say(settings)
    moments = iter(
        [
            datetime(2024, 1, 31, 23, 59, tzinfo=UTC),
            datetime(2024, 2, 1, tzinfo=UTC),
            datetime(2024, 12, 31, tzinfo=UTC),
        ]
    )
    store = MetadataStore.open(settings, clock=lambda: next(moments))
    for run_id, tenant in (("a", "red"), ("b", "red"), ("c", "blue")):
        store.record_run(Scope("toy", tenant), run_id, status="scored", cpu_seconds=5.0, gpu_seconds=2.0)
    cost = {
        month: [line["run"] for line in wiring.cost_ledger(settings, month=month)["lines"]]
        for month in ("2024-01", "2024-02", "2024-12", "2025-01")
    }
    assert cost == {"2024-01": ["a"], "2024-02": ["b"], "2024-12": ["c"], "2025-01": []}
    (line,) = wiring.cost_ledger(settings, month="2024-02", tenant="red")["lines"]
    assert line["cost"] == 5 + 2 * 10
    assert wiring.cost_ledger(settings, month="2024-02", tenant="blue")["lines"] == []
    with pytest.raises(ConfigError, match="month"):
        wiring.cost_ledger(settings, month="2024-13")


def test_above_the_soft_limit_runs_are_warned_of_and_from_the_hard_one_on_nothing_new_is_begun(
    installation: Settings,
) -> None:
    run = score(installation)
    spent = wiring.cost_ledger(installation)["by_tenant"][0]["cpu_seconds"]
    snapshot = wiring.step("snapshot_scoring")(installation, "toy")
    clean = wiring.step("validate_snapshot")(installation, "toy", snapshot_id=snapshot["snapshot_id"])[
        "snapshot_id"
    ]
    plan = wiring.step("plan_scoring")

    say(installation, f"budget: {{month_soft: {spent * 2}, month_hard: {spent * 4}}}")
    assert "budget" not in plan(installation, "toy", snapshot_id=clean)
    say(installation, f"budget: {{month_soft: {spent / 2}, month_hard: {spent * 4}}}")
    planned = plan(installation, "toy", snapshot_id=clean)
    assert "above its soft limit" in planned["budget"]
    say(installation, f"budget: {{month_soft: {spent / 4}, month_hard: {spent / 2}}}")
    with pytest.raises(
        TerminalError, match=r"scoring is refused: tenant default has used .* its hard limit is"
    ):
        plan(installation, "toy", snapshot_id=clean)
    with pytest.raises(TerminalError, match="training is refused"):
        wiring.step("train_model")(installation, "toy", snapshot_id=clean, validation_first_day="2024-01-29")
    goes_on = wiring.step("score_run")(installation, "toy", run_id=planned["run_id"], local=True)
    assert goes_on["shards_committed"] > 0, "what was planned goes on"
    (tenant,) = wiring.tenancy_status(installation)["tenants"]
    assert tenant["budget"] == "spent: nothing new is begun" and tenant["pipelines"] == ["toy"]
    assert run["run_id"]


def test_a_budget_without_prices_is_refused_and_names_the_file_to_write(installation: Settings) -> None:
    (installation.project / "tenants").mkdir()
    (installation.project / "tenants" / "default.yaml").write_text("budget: {month_hard: 5}")
    with pytest.raises(ConfigError, match=r"_prices\.yaml"):
        score(installation)


@pytest.mark.parametrize(
    ("tenant", "pipeline", "says"),
    [
        (
            "quota: {max_workers: 2}",
            "max_workers: 3",
            "asks for 3 workers, above the tenant's quota.max_workers 2",
        ),
        (
            "quota: {max_gpus: 1}",
            "max_workers: 2, gpus_per_worker: 1",
            "asks for 2 GPUs, above the tenant's quota.max_gpus 1",
        ),
        ("quota: {ray_jobs: 0}", "", "quota.ray_jobs"),
        ("budget: {month_soft: 9, month_hard: 5}", "", "month_hard 5 is below month_soft 9"),
        ("budget: {month_hard: -1}", "", "budget.month_hard"),
    ],
)
def test_a_pipeline_or_a_tenant_that_asks_for_too_much_is_refused_with_file_and_figure(
    finished: Finished, installation: Settings, tenant: str, pipeline: str, says: str
) -> None:
    say(installation, tenant)
    if pipeline:
        edit(pipeline_file(installation), {"max_days_per_run: 4": f"max_days_per_run: 4, {pipeline}"})
    with pytest.raises(ConfigError, match=says):
        load_pipeline(installation, "toy")


def test_a_tenant_with_a_quota_has_a_pool_of_its_own_and_others_share_one(settings: Settings) -> None:
    assert load_pipeline(settings, "toy").ray_pool == RAY_POOL and pools_of(settings) == POOLS
    say(settings, "quota: {ray_jobs: 3}")
    assert load_pipeline(settings, "toy").ray_pool == "penstock_ray_default"
    own = pools_of(settings)["penstock_ray_default"]
    assert (own.slots, own.include_deferred) == (3, True)
    assert set(POOLS) < set(pools_of(settings))


def test_a_wrong_price_table_is_named_with_its_field(settings: Settings) -> None:
    say(settings, prices="{currency: EUR, cpu_hour: -1}")
    with pytest.raises(ConfigError, match=r"(?s)cpu_hour.*gpu_hour"):
        wiring.cost_ledger(settings, month=f"{utc_now():%Y-%m}")
