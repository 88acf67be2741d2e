"""A tenant's login of the metadata database: its workers do their work with it, and cross none of the walls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import psycopg
import pytest
import services
from metadata_support import OTHER, TOY, event, populate, register
from serving_support import PATH, json_rows, make_bundle, put_live, serving, toy_rows, until
from share_files import say
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.core.errors import AccessDenied, ConfigError
from tasks.core.tenants import load_shares
from tasks.metadata import MetadataStore
from tasks.metadata.content import content_of
from tasks.metadata.database import Database
from tasks.metadata.tables import metadata
from tasks.tenancy.database_policy import GRANTS, WITHHELD
from tasks.wiring.budget import release_budget, reserve_budget
from tasks.wiring.context import Context, open_context
from tasks.wiring.gang import gang
from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease

SEEN_BY_ALL = {"penstock_leases", "penstock_lease_ends"}
Refused = (psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation)


@pytest.fixture
def empty(settings: Settings, postgres_url: str, tmp_path: Path) -> Settings:
    """A database without rows, and a login for each of two tenants."""
    found = dataclasses.replace(settings, metadata_url=services.new_postgres_database(postgres_url))
    MetadataStore.open(found)
    say(found, None, default="{}", acme="{}")
    rendered = wiring.render_tenancy(found, "postgres", tmp_path / "sql")
    assert rendered["files"] == ["acme.sql", "default.sql"]
    for _ in range(2):  # it may be run again
        for name in rendered["files"]:
            with psycopg.connect(found.metadata_url, autocommit=True) as connection:
                connection.execute((tmp_path / "sql" / name).read_bytes())
    return found


@pytest.fixture
def owner(empty: Settings) -> Settings:
    """Rows of two tenants in every table, and the logins."""
    populate(MetadataStore.open(empty))
    return empty


def as_tenant(owner: Settings, tenant: str) -> Settings:
    url = owner.metadata_url.replace("penstock@", f"penstock_{tenant}@")
    assert url != owner.metadata_url
    return dataclasses.replace(owner, metadata_url=url)


def contents(settings: Settings) -> list[Any]:
    with Database(settings.metadata_url).read() as connection:
        return [content_of(connection, table) for table in metadata.sorted_tables]


def answered(login: Settings, statement: str) -> tuple[int, list[Any]]:
    """Rows that a statement touched and gave, in a transaction of its own."""
    with psycopg.connect(login.metadata_url) as connection:
        done = connection.execute(statement.encode())
        return done.rowcount, done.fetchall() if done.description else []


def test_of_every_table_it_is_decided_what_a_tenants_workers_may_do() -> None:
    assert set(GRANTS) | WITHHELD == set(metadata.tables) and not set(GRANTS) & WITHHELD


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_no_row_of_another_tenant_is_read_changed_deleted_or_forged(owner: Settings, table: str) -> None:
    login, before = as_tenant(owner, "acme"), contents(owner)
    if table in WITHHELD:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            answered(login, f"SELECT 1 FROM {table}")
    else:
        _, rows = answered(login, f"SELECT tenant, count(*) FROM {table} GROUP BY tenant")
        assert {tenant for tenant, _ in rows} - {"*"} == (
            {"acme", "default"} if table in SEEN_BY_ALL else {"acme"}
        )
    columns = ", ".join(column.name for column in metadata.tables[table].c)
    forged = columns.replace("tenant, pipeline", "'default', 'forged'")
    for statement in (
        f"UPDATE {table} SET pipeline = pipeline || 'x' WHERE tenant = 'default'",
        f"UPDATE {table} SET tenant = 'default' WHERE tenant = 'acme'",
        f"DELETE FROM {table} WHERE tenant = 'default'",
        f"INSERT INTO {table} ({columns}) SELECT {forged} FROM {table} WHERE tenant = 'acme'",
        f"TRUNCATE {table}",
        f"SELECT 1 FROM {table} WHERE tenant = 'default' FOR UPDATE",
    ):
        try:
            touched, _ = answered(login, statement)
        except Refused:
            continue
        assert touched == 0, statement
    assert contents(owner) == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "DROP TABLE penstock_leases",
        "ALTER TABLE penstock_scoring_runs DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY all_of_it ON penstock_scoring_runs USING (true)",
        "CREATE OR REPLACE FUNCTION penstock_append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "ALTER TABLE penstock_trainings DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SET ROLE penstock",
        "SET ROLE penstock_default",
        "ALTER ROLE penstock_acme BYPASSRLS",
        "CREATE ROLE another",
        "GRANT SELECT ON penstock_verdicts TO penstock_acme",
        "UPDATE penstock_schema_version SET version_num = '0001'",
        "COPY penstock_scoring_runs TO PROGRAM 'cat'",
        "SELECT pg_read_file('PG_VERSION')",
    ],
)
def test_nothing_is_made_changed_or_taken_that_would_move_a_wall(owner: Settings, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        answered(as_tenant(owner, "acme"), statement)


def test_a_workers_login_cannot_promote_and_says_which_one_can(owner: Settings) -> None:
    store = MetadataStore.open(as_tenant(owner, "acme"))
    assert store.live(OTHER) is not None and store.live(TOY) is None
    with pytest.raises(AccessDenied, match=r"user penstock_acme: permission denied .*(?s:.*)use the owner's"):
        store.append_events(OTHER, lambda _: [event(2, "unbar")])


def test_each_tenants_workers_share_the_cluster_with_their_own_login(owner: Settings) -> None:
    say(
        owner,
        "{gpus: 4, cpus: 16, beat_s: 1, lease_s: 60}",
        _prices="{currency: EUR, cpu_hour: 1, gpu_hour: 1}",
        **dict.fromkeys(("default", "acme"), "{share: {guarantee: {gpus: 2}}, budget: {month_hard: 99}}"),
    )
    with MetadataStore.open(owner).lease_ledger() as ledger:
        for row in MetadataStore.open(owner).lease_rows():
            ledger.end(row, "finished")
    holders = {}
    for tenant in ("default", "acme"):
        login = as_tenant(owner, tenant)
        pipeline_of(login, tenant, "{max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 4}")
        context = open_context(login, f"{tenant}_toy")
        assert reserve_budget(context, "training", "s1") == ""
        with gang(context, "t1", lambda: 1.0):
            context.metadata.record_training(
                context.spec,
                {"training_id": "t1", "bundle_digest": "b", "snapshot_id": "s1", "feature_version": "f"},
            )
        release_budget(context, "training", "s1")
        run = context.metadata.record_run(context.spec, "r1", status="planned")
        assert run.run_id == "r1"
        holders[tenant] = _holder(context)
    first, second = holders["default"], holders["acme"]
    assert first.beat(NOTHING, workers=0, most=4).width == 4
    assert second.beat(NOTHING, workers=0, most=4).width == 0
    assert first.beat(NOTHING, workers=4, most=4).width == 2
    first.beat(NOTHING, workers=2, most=4)
    assert second.beat(NOTHING, workers=0, most=4).width == 2

    silent = "UPDATE penstock_leases SET beat_s = beat_s - 61 WHERE tenant = 'default'"
    assert answered(owner, silent)[0] == 1
    assert second.beat(NOTHING, workers=2, most=4).width == 4, "whoever is silent is not counted"
    rows = MetadataStore.open(owner).lease_rows()
    assert [row["tenant"] for row in rows] == ["acme", "default"], "and is its own tenant's to end"
    first.end({**NOTHING, "allocated_s": 2.0}, "finished")
    second.end({**NOTHING, "allocated_s": 3.0}, "finished")
    assert MetadataStore.open(owner).lease_rows() == []
    assert [line["tenant"] for line in wiring.cost_ledger(as_tenant(owner, "acme"))["by_tenant"]] == ["acme"]


def test_a_tenants_login_scores_publishes_scores_anew_and_serves(empty: Settings) -> None:
    spec, login = load_pipeline(empty, "toy"), as_tenant(empty, "default")
    bundles = {version: make_bundle(empty, spec, seed=version) for version in (1, 2)}
    for version, (digest, _) in bundles.items():
        register(MetadataStore.open(empty), spec, version, digest)
    put_live(empty, spec, 1, bundles[1])

    def step(settings: Settings, name: str, **arguments: Any) -> dict[str, Any]:
        return wiring.step(name)(settings, "toy", **arguments)

    snapshot = step(empty, "snapshot_scoring", first_day="2024-03-01", last_day="2024-03-02")["snapshot_id"]
    clean = step(empty, "validate_snapshot", snapshot_id=snapshot)["snapshot_id"]
    run_id = step(empty, "plan_scoring", snapshot_id=clean)["run_id"]
    rows = step(login, "score_run", run_id=run_id, local=True)["rows_scored"]
    assert step(login, "publish_run", run_id=run_id)["rows"] == rows > 0
    step(login, "verify_run", run_id=run_id)

    put_live(empty, spec, 2, bundles[2])
    anew = step(login, "rescore_version", version=1, local=True)
    assert (anew["rows"], anew["model_version"], anew["visible_rows_left"]) == (rows, 2, 0)

    with serving(login) as (server, client):
        answer = client.post(PATH, json={"rows": json_rows(toy_rows(empty))[:3]})
        assert answer.status_code == 200, answer.text
        assert {one["model_version"] for one in answer.json()["predictions"]} == {2}
        put_live(empty, spec, 1, bundles[1])
        until(lambda: server.live is not None and server.live.champion.deployed.version == 1)


def _holder(context: Context) -> LeaseHolder:
    found = load_shares(context.settings)
    assert found is not None
    return LeaseHolder(context, first_lease(context, "r1", "scoring"), *found)


def test_a_name_that_is_no_tenants_is_not_written_into_sql(settings: Settings, tmp_path: Path) -> None:
    say(settings, None, **{"a'; DROP TABLE x; --": "{}"})
    with pytest.raises(ConfigError, match="DROP TABLE"):
        wiring.render_tenancy(settings, "postgres", tmp_path / "sql")
