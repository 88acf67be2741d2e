"""Quotas hold what a pipeline may ask for, budgets hold what it may begin, and the ledger adds up."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
from calendar import monthrange
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import services
from children import at_once
from database_fixtures import on_database
from wiring_support import Finished, edit, pipeline_file, plan_next_days, score

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store, utc_now
from tasks.core.errors import ConfigError, TerminalError, TransientError
from tasks.core.partitions import load_snapshot
from tasks.core.pools import POOLS, RAY_POOL
from tasks.core.tenants import pools_of
from tasks.inference.records import ShardRecord, read_plan
from tasks.inference.shard import ShardWorker
from tasks.metadata import UNDER_WAY, MetadataStore, Scope
from tasks.metadata.copying import copy_metadata
from tasks.wiring.budget import release_budget, reserve_budget
from tasks.wiring.context import open_context
from tasks.wiring.storage import look_at_storage

PRICES = "{currency: EUR, cpu_hour: 3600, gpu_hour: 36000}"
"""A CPU-second costs 1, a GPU-second 10."""
TOY = Scope("toy")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation whose ledger is empty, once on each database."""
    return on_database(request, settings)


def say(settings: Settings, tenant: str = "", *, prices: str = PRICES, name: str = "default") -> None:
    folder = settings.project / "tenants"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(tenant)
    (folder / "_prices.yaml").write_text(prices)


def test_the_ledger_has_every_attempt_and_its_sums_are_those_of_its_lines(installation: Settings) -> None:
    say(installation)
    run = score(installation)
    ledger = wiring.cost_ledger(installation, stored=True)
    scored = [line for line in ledger["lines"] if line["kind"] == "scoring"]
    assert [line["run"] for line in scored][-1] == run["run_id"] and len(scored) == 2
    store = open_store(installation, prefix="default/toy")
    for line in scored:
        found = MetadataStore.open(installation).run(load_pipeline(installation, "toy"), line["run"])
        assert found is not None and line["outcome"] == "finished"
        assert line["measured_cpu_seconds"] == pytest.approx(found.cpu_seconds, abs=1e-3)
        assert line["rows"] == found.rows and line["model_version"] == found.model_version
    first, last = scored
    files = [info.size_bytes for info in store.list("tables") if run["run_id"] in info.key]
    assert last["bytes_written"] == last["bytes_stored"] == sum(files) > 0
    assert 0 < first["bytes_stored"] < first["bytes_written"], "explanations of its days are archived"
    (trained,) = [line for line in ledger["lines"] if line["kind"] == "training"]
    assert trained["cpu_seconds"] > 0 and trained["outcome"] == "finished" and trained["used_s"] > 0
    snapshot = load_snapshot(store, MetadataStore.open(installation).trainings(TOY)[0].snapshot_id)
    assert trained["bytes_read"] == sum(part.size_bytes for part in snapshot.partitions)
    planned = read_plan(store, run["run_id"])
    assert last["bytes_read"] >= sum(part.size_bytes for part in planned.partitions)
    assert last["bytes_read"] == sum(planned.bytes_read(shard.shard) for shard in planned.shards)
    (whole,) = ledger["by_tenant"]
    assert whole["cost"] == pytest.approx(sum(line["cost"] for line in ledger["lines"]), abs=1e-6)
    assert sum(item["runs"] for item in ledger["by_pipeline"]) == len(ledger["lines"]) == whole["runs"]
    assert sum(line["bytes_stored"] or 0 for line in ledger["lines"]) == ledger["stored"][0]["bytes"]
    rows = list(csv.DictReader(io.StringIO(wiring.ledger_csv(ledger))))
    assert [row["run"] for row in rows] == [line["run"] for line in ledger["lines"]]
    assert {row["currency"] for row in rows} == {"EUR"}
    for row in rows:
        adds_up({name: float(row[name]) for name in PARTS})


PARTS = (
    *("allocated_s", "used_s", "idle_s", "wasted_s", "cpu_seconds"),
    *("cost", "cost_used", "cost_idle", "cost_wasted"),
)


def adds_up(line: Mapping[str, float]) -> None:
    """Used, idle and wasted are what was allocated, in seconds and in money; a CPU-second costs 1."""
    rounded = 3e-6  # each figure is given in millionths
    seconds = line["used_s"] + line["idle_s"] + line["wasted_s"]
    assert line["allocated_s"] == pytest.approx(seconds, abs=rounded)
    money = line["cost_used"] + line["cost_idle"] + line["cost_wasted"]
    assert line["cost"] == pytest.approx(money, abs=rounded)
    assert line["cost"] == pytest.approx(line["cpu_seconds"], abs=rounded)


def test_bytes_have_prices_of_their_own_and_what_has_none_costs_nothing_and_says_so(
    settings: Settings,
) -> None:
    key = {"tenant": "red", "pipeline": "toy", "holder": "h", "kind": "scoring", "gpus": 0.0, "cpus": 2.0}
    had = {"allocated_s": 10.0, "used_s": 4.0, "wasted_s": 1.0, "cpu_seconds": 3.0, "gpu_seconds": 0.0}
    store = MetadataStore.open(settings)
    for run_id, read in (("old", None), ("new", 3 << 30)):
        made = {"run_id": run_id, "rows": 5, "bytes_read": read, "bytes_written": 1 << 29}
        store.put_allocation({**key, **had, **made, "asked_at_utc": utc_now()}, "finished")
    say(settings, prices=PRICES.replace("}", ", read_gib: 7, written_gib: 4}"))
    ledger = wiring.cost_ledger(settings)
    lines = {line["run"]: line for line in ledger["lines"]}
    assert (lines["new"]["cost_read"], lines["new"]["cost_written"], lines["new"]["cost"]) == (21, 2, 43)
    assert lines["old"]["bytes_read"] is lines["old"]["cost_read"] is None and lines["old"]["cost"] == 22
    (whole,) = ledger["by_tenant"]
    assert (whole["bytes_read"], whole["cost_read"], whole["cost_written"], whole["cost"]) == (
        *(3 << 30, 21, 4),
        65,
    )
    assert whole["cost_stored"] is None and ledger["unpriced"] == ["storage"]
    say(settings)
    ledger = wiring.cost_ledger(settings)
    assert ledger["unpriced"] == ["reading", "writing", "storage"] and ledger["by_tenant"][0]["cost"] == 40
    for row in csv.DictReader(io.StringIO(wiring.ledger_csv(ledger))):
        assert row["cost_read"] == row["cost_written"] == row["cost_stored"] == "" and row["bytes_written"]


@pytest.mark.parametrize("price", ["read_gib: -1", "written_gib: .inf", "stored_gib_month: much", "a_gib: 1"])
def test_a_price_that_is_none_is_refused_with_its_name(settings: Settings, price: str) -> None:
    say(settings, prices=PRICES.replace("}", f", {price}}}"))
    with pytest.raises(ConfigError, match=price.partition(":")[0]):
        wiring.cost_ledger(settings)


def test_the_store_is_looked_at_once_a_day_and_the_look_adds_up(
    installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(installation, prices=PRICES.replace("}", ", stored_gib_month: 1000}"))
    context = open_context(installation, "toy")
    held = look_at_storage(context)
    (look,) = wiring.cost_ledger(installation)["storage"]
    sizes = {info.key: info.size_bytes for info in context.store.list()}
    assert held == look["bytes"] == sum(sizes.values()) and look["day"] == f"{utc_now():%Y-%m-%d}"
    for part, folders in {
        "predictions": ("tables/predictions/",),
        "models": ("bundles/", "training/"),
    }.items():
        assert look[part] == sum(size for key, size in sizes.items() if key.startswith(folders)) > 0
    assert sum(look[part] for part in ("predictions", "explanations", "models", "data", "other")) == held

    monkeypatch.setattr(type(context.store), "list", lambda *_: pytest.fail("a second listing"))
    assert look_at_storage(context) is None
    ledger = wiring.cost_ledger(installation)
    (line,) = [line for line in ledger["lines"] if line["kind"] == "storage"]
    assert line["gib_months"] == pytest.approx(held / 2**30 / monthrange(*utc_now().timetuple()[:2])[1])
    assert line["cost"] == line["cost_stored"] == pytest.approx(1000 * line["gib_months"])
    (whole,) = ledger["by_tenant"]
    assert whole["cost"] == pytest.approx(sum(line["cost"] for line in ledger["lines"]), abs=1e-6)
    assert whole["cost_stored"] == pytest.approx(line["cost"], abs=1e-6)
    assert whole["attempts"] == len(ledger["lines"]) - 1, "what is held is no attempt"


def test_what_is_held_is_billed_by_the_day_and_a_month_that_is_over_does_not_change(
    settings: Settings,
) -> None:
    say(settings, prices=PRICES.replace("}", ", stored_gib_month: 29}"))
    store, toy = MetadataStore.open(settings), Scope("toy", "red")
    gib = 1 << 30
    store.put_stored(toy, date(2024, 1, 30), {"data": 5 * gib})
    store.put_stored(toy, date(2024, 2, 3), {"data": gib, "models": gib})
    store.put_stored(toy, date(2024, 2, 20), {"data": 10 * gib})

    def cost(month: str, now: datetime) -> float:
        (line,) = wiring.cost_ledger(settings, month=month, clock=lambda: now)["lines"]
        return float(line["cost"])

    first_two, seven_from_the_third, seven_from_the_twentieth = 2 * 5, 7 * 2, 7 * 10
    whole = first_two + seven_from_the_third + seven_from_the_twentieth  # a day's GiB costs 1 in this month
    assert cost("2024-02", datetime(2024, 2, 4, 12, tzinfo=UTC)) == pytest.approx(first_two + 2 * 2)
    assert cost("2024-02", datetime(2024, 2, 29, 12, tzinfo=UTC)) == pytest.approx(whole)
    store.put_stored(toy, date(2024, 3, 1), {"data": 99 * gib})
    assert cost("2024-02", datetime(2024, 3, 9, tzinfo=UTC)) == pytest.approx(whole)
    assert cost("2024-01", datetime(2024, 3, 9, tzinfo=UTC)) == pytest.approx(2 * 5 * 29 / 31)


def test_an_attempt_that_failed_is_billed_and_flagged_and_the_next_one_has_a_line_of_its_own(
    installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(installation)
    before = len(wiring.cost_ledger(installation)["lines"])
    run_id = plan_next_days(installation)
    whole = ShardWorker.run

    def fails(worker: ShardWorker, shard: int, **more: Any) -> ShardRecord:
        if shard == 1:
            raise TransientError("the store is slow today", which="shard 1")
        return whole(worker, shard, **more)

    with monkeypatch.context() as patch, pytest.raises(TransientError, match="slow today"):
        patch.setattr(ShardWorker, "run", fails)
        wiring.step("score_run")(installation, "toy", run_id=run_id, local=True)
    wiring.step("score_run")(installation, "toy", run_id=run_id, local=True)
    ledger = wiring.cost_ledger(installation)
    failed, finished = ledger["lines"][before:]
    assert [failed["run"], finished["run"]] == [run_id, run_id]
    assert (failed["outcome"], finished["outcome"]) == ("failed", "finished")
    assert failed["cost"] > 0 and failed["rows"] > finished["rows"] > 0
    for line in (failed, finished):
        adds_up(line)
    (scoring,) = [item for item in ledger["by_pipeline"] if item["kind"] == "scoring"]
    assert (scoring["runs"], scoring["attempts"], scoring["failed"]) == (2, 3, 1)
    adds_up(scoring)


def test_an_attempt_whose_driver_died_is_billed_until_it_was_heard_of_last(settings: Settings) -> None:
    say(settings)
    heard = utc_now()
    moment = {"asked_at_utc": heard, "beat_at_utc": heard}
    key = {"tenant": "red", "pipeline": "toy", "run_id": "r", "holder": "h", "kind": "scoring"}
    had = {"gpus": 0.0, "cpus": 2.0, "allocated_s": 10.0, "used_s": 4.0, "wasted_s": 1.0}
    made = {"rows": 5, "bytes_read": None, "bytes_written": 6, "cpu_seconds": 3.0, "gpu_seconds": 0.0}
    MetadataStore.open(settings, clock=lambda: heard).put_allocation(
        {**key, **had, **made, **moment}, UNDER_WAY
    )
    (line,) = wiring.cost_ledger(settings, clock=lambda: heard)["lines"]
    assert line["outcome"] == "under way"
    later = heard + timedelta(minutes=6)
    if later.month == heard.month:
        (line,) = wiring.cost_ledger(settings, clock=lambda: later)["lines"]
        assert line["outcome"] == "lost" and line["cost"] == 20.0 and line["cost_idle"] == 10.0


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
    assert line["cost"] == 5 + 2 * 10 and line["outcome"] == "measured", "recorded before attempts were kept"
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


def begun(settings: Settings, tenant: str, pipeline: str, cost: float | None, *, rows: int = 10) -> None:
    """A pipeline whose last attempt cost so much for ten rows."""
    shutil.copytree(settings.pipelines_dir / "toy", settings.pipelines_dir / pipeline)
    path = settings.pipelines_dir / pipeline / "pipeline.yaml"
    path.write_text(path.read_text().replace("name: toy", f"name: {pipeline}\ntenant: {tenant}"))
    if cost is None:
        return
    key = {"tenant": tenant, "pipeline": pipeline, "run_id": "r", "holder": "h", "kind": "scoring"}
    had = {"gpus": 0.0, "cpus": 1.0, "allocated_s": cost, "used_s": cost, "wasted_s": 0.0}
    made = {"rows": rows, "bytes_read": 0, "bytes_written": 0, "cpu_seconds": cost, "gpu_seconds": 0.0}
    MetadataStore.open(settings).put_allocation({**key, **had, **made, "asked_at_utc": utc_now()}, "finished")


def test_of_two_that_begin_at_the_same_moment_the_budget_lets_only_those_in_that_it_can_pay(
    database: Settings,
) -> None:
    say(database, "budget: {month_hard: 100}", name="red")
    begun(database, "red", "one", 20.0)
    begun(database, "red", "two", 20.0)

    def begin(number: int) -> str:
        context = open_context(database, ("one", "two")[number % 2])
        reserve_budget(context, "scoring", f"s{number}", rows=15)  # is expected to cost 30
        return "begun"

    found = at_once(*[partial(begin, number) for number in range(4)])
    assert found.count("begun") == 2, found
    assert all("60.00 are reserved" not in text or "has to wait" in text for text in found)
    waits = [text for text in found if text != "begun"]
    assert all(
        "has used 40.00 EUR" in text and "expected to cost 30.00" in text and "hard limit is 100.00" in text
        for text in waits
    ), waits
    context = open_context(database, "one")
    with pytest.raises(TransientError, match="has to wait"):
        reserve_budget(context, "scoring", "new", rows=15)
    for number in range(4):
        release_budget(open_context(database, ("one", "two")[number % 2]), "scoring", f"s{number}")
    assert reserve_budget(context, "scoring", "new", rows=15) == ""
    assert reserve_budget(context, "scoring", "new", rows=15) == "", "the same again is no second reservation"
    with pytest.raises(TerminalError, match="expected to cost 62"):
        reserve_budget(context, "scoring", "large", rows=31)


def test_two_whose_cost_cannot_be_foreseen_do_not_begin_side_by_side_and_a_reservation_ends_after_a_day(
    database: Settings,
) -> None:
    say(database, "budget: {month_hard: 100}", name="red")
    for name in ("one", "two"):
        begun(database, "red", name, None)
    begun(database, "red", "known", 1.0)
    one, two, known = (open_context(database, name) for name in ("one", "two", "known"))
    reserve_budget(one, "training", "s")
    with pytest.raises(
        TransientError, match=r"cannot be foreseen, nor that of what is under way \(training of one"
    ):
        reserve_budget(two, "scoring", "s", rows=5)
    assert reserve_budget(known, "scoring", "s", rows=5) == ""
    release_budget(one, "training", "s")
    assert reserve_budget(two, "scoring", "s", rows=5) == ""
    with one.metadata.open_budget("red") as reserved:
        for row in reserved.rows:
            reserved.put({**row, "until_utc": reserved.now})
    assert reserve_budget(one, "training", "s") == "", "what was begun a day ago has been given up"


def test_a_run_is_scored_published_and_verified_with_the_login_of_its_tenants_workers(
    installation: Settings, postgres_url: str, tmp_path: Path
) -> None:
    url = services.new_postgres_database(postgres_url)
    copy_metadata(installation.metadata_url, url)
    owner = dataclasses.replace(installation, metadata_url=url)
    say(owner, "budget: {month_hard: 100000}")
    (name,) = wiring.render_tenancy(owner, "postgres", tmp_path / "sql")["files"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((tmp_path / "sql" / name).read_bytes())
    login = dataclasses.replace(owner, metadata_url=url.replace("penstock@", "penstock_default@"))
    run_id = plan_next_days(owner)
    found = wiring.step("resume_run")(
        login, "toy", run_id=run_id, local=True, dag_run="toy.score/manual__2024-03-01"
    )
    assert found["ok"] and not found["already_published"] and found["rows"] > 0
    run = MetadataStore.open(owner).run(TOY, run_id)
    assert run is not None and run.status == "verified"
    version = run.model_version
    blast = wiring.step("blast_radius")
    assert blast(login, "toy", version=version) == blast(owner, "toy", version=version)


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
