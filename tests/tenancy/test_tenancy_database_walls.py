"""A tenant's login of the metadata database: its workers do their work with it, and cross none of the walls."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import services
from metadata_support import OTHER, TOY, event, populate, register
from serving_support import PATH, json_rows, make_bundle, put_live, serving, toy_rows, until
from share_files import say
from sqlalchemy import update
from tenancy_support import many_wait, pipeline_of, silent
from toy_installation import install_toy

from tasks import wiring
from tasks.core import Settings, load_pipeline, utc_now
from tasks.core.errors import AccessDenied, ConfigError, ServiceUnavailable, StoreUnavailable
from tasks.core.tenants import load_shares
from tasks.metadata import MetadataStore
from tasks.metadata.content import content_of
from tasks.metadata.database import Database
from tasks.metadata.tables import allocations, leases, metadata
from tasks.tenancy.database_policy import GRANTS, WITHHELD
from tasks.wiring import keeping
from tasks.wiring.budget import release_budget, reserve_budget
from tasks.wiring.context import Context, open_context
from tasks.wiring.gang import gang
from tasks.wiring.lease_holder import NOTHING, LeaseHolder, first_lease

CLUSTER = "{gpus: 4, cpus: 16, beat_s: 1, lease_s: 60}"
TWO = "{share: {guarantee: {gpus: 2}}, quota: {database_connections: 4}}"
INFERENCE = "{max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 4}"
LOCKS = ("SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE")
SEEN_BY_ALL = {"penstock_leases", "penstock_lease_ends"}
Refused = (psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation)


def with_logins_of_two_tenants(settings: Settings, url: str, sql: Path) -> Settings:
    """A database without rows, and a login for each of two tenants."""
    found = dataclasses.replace(settings, metadata_url=url)
    MetadataStore.open(found)
    say(found, None, default="{}", acme="{}")
    rendered = wiring.render_tenancy(found, "postgres", sql)
    assert rendered["files"] == ["acme.sql", "default.sql"]
    for _ in range(2):  # it may be run again
        for name in rendered["files"]:
            with psycopg.connect(found.metadata_url, autocommit=True) as connection:
                connection.execute((sql / name).read_bytes())
    return found


@pytest.fixture
def empty(settings: Settings, postgres_url: str, tmp_path: Path) -> Settings:
    return with_logins_of_two_tenants(
        settings, services.new_postgres_database(postgres_url), tmp_path / "sql"
    )


@pytest.fixture
def owner(empty: Settings) -> Settings:
    """Rows of two tenants in every table, and the logins."""
    populate(MetadataStore.open(empty))
    return empty


@pytest.fixture(scope="module")
def walled(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Any]]:
    """The same for all that try to get over a wall, with what every table holds: who does not get over leaves it as it is."""
    root = tmp_path_factory.mktemp("walled")
    found = with_logins_of_two_tenants(
        install_toy(root), services.new_postgres_database(postgres_url), root / "sql"
    )
    populate(MetadataStore.open(found))
    return found, contents(found)


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
def test_no_row_of_another_tenant_is_read_changed_deleted_or_forged(
    walled: tuple[Settings, list[Any]], table: str
) -> None:
    owner, before = walled
    login = as_tenant(owner, "acme")
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
        "UPDATE penstock_leases SET beat_s = beat_s + 1e9 WHERE tenant = '*'",
        "SELECT 1 FROM penstock_leases WHERE tenant = '*' FOR KEY SHARE",
        "DELETE FROM penstock_leases WHERE tenant = 'acme'",
        "DELETE FROM penstock_lease_requests WHERE tenant = 'acme'",
        "UPDATE penstock_leases SET width = 99 WHERE tenant = 'acme'",
        "ALTER ROLE penstock_acme CONNECTION LIMIT -1",
        "DROP TRIGGER penstock_lease_requests_limit ON penstock_lease_requests",
        "SELECT pg_read_file('PG_VERSION')",
    ],
)
def test_nothing_is_made_changed_or_taken_that_would_move_a_wall(
    walled: tuple[Settings, list[Any]], statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        answered(as_tenant(walled[0], "acme"), statement)


@pytest.mark.parametrize("table", sorted({*metadata.tables, "penstock_schema_version"}))
def test_no_table_is_locked_against_others(walled: tuple[Settings, list[Any]], table: str) -> None:
    for mode in LOCKS:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            answered(as_tenant(walled[0], "acme"), f"LOCK TABLE {table} IN {mode} MODE NOWAIT")


def test_a_workers_login_cannot_promote_and_says_which_one_can(owner: Settings) -> None:
    store = MetadataStore.open(as_tenant(owner, "acme"))
    assert store.live(OTHER) is not None and store.live(TOY) is None
    with pytest.raises(AccessDenied, match=r"user penstock_acme: permission denied .*(?s:.*)use the owner's"):
        store.append_events(OTHER, lambda _: [event(2, "unbar")])


def test_each_tenants_workers_share_the_cluster_with_their_own_login(owner: Settings) -> None:
    say(
        owner,
        CLUSTER,
        _prices="{currency: EUR, cpu_hour: 1, gpu_hour: 1}",
        **dict.fromkeys(("default", "acme"), "{share: {guarantee: {gpus: 2}}, budget: {month_hard: 99}}"),
    )
    for row in MetadataStore.open(owner).lease_rows():
        silent(owner, row["run_id"])
    holders = {}
    for tenant in ("default", "acme"):
        login = as_tenant(owner, tenant)
        pipeline_of(login, tenant, "{max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 4}")
        context = open_context(login, f"{tenant}_toy")
        assert reserve_budget(context, "training", "s1") == ""
        with gang(context, "t1", lambda: 1.0, sleep=lambda _: keep(owner)):
            context.metadata.record_training(
                context.spec,
                {"training_id": "t1", "bundle_digest": "b", "snapshot_id": "s1", "feature_version": "f"},
            )
        release_budget(context, "training", "s1")
        run = context.metadata.record_run(context.spec, "r1", status="planned")
        assert run.run_id == "r1"
        holders[tenant] = _holder(context)
    first, second = holders["default"], holders["acme"]
    waits = first.beat(NOTHING, workers=0, most=4)
    assert waits.width == 0 and "is decided next" in waits.reason
    keep(owner)
    assert first.beat(NOTHING, workers=0, most=4).width == 4
    assert second.beat(NOTHING, workers=0, most=4).width == 0
    keep(owner)
    waits = second.beat(NOTHING, workers=0, most=4)
    assert waits.width == 0
    assert first.beat(NOTHING, workers=4, most=4).width == 2
    first.beat(NOTHING, workers=2, most=4)
    keep(owner)
    assert second.beat(NOTHING, workers=0, most=4).width == 2

    silent(owner, "r1", "default")
    keep(owner)
    assert second.beat(NOTHING, workers=2, most=4).width == 4, "whoever is silent is not counted"
    rows = MetadataStore.open(owner).lease_rows()
    assert [row["tenant"] for row in rows] == ["acme"]
    assert first.beat(NOTHING, workers=2, most=2).width == 0
    first.end({**NOTHING, "allocated_s": 2.0}, "finished")
    second.end({**NOTHING, "allocated_s": 3.0}, "finished")
    keep(owner)
    assert MetadataStore.open(owner).lease_rows() == []
    assert [line["tenant"] for line in wiring.cost_ledger(as_tenant(owner, "acme"))["by_tenant"]] == ["acme"]


def test_where_nobody_decides_a_run_that_waits_says_what_has_to_run(owner: Settings) -> None:
    say(owner, CLUSTER, default=TWO, acme=TWO)
    login = as_tenant(owner, "acme")
    pipeline_of(login, "acme", INFERENCE)
    with Database(owner.metadata_url).write() as connection:
        connection.execute(update(leases).values(beat_at_utc=datetime(2024, 1, 1, tzinfo=UTC)))
    waits = _holder(open_context(login, "acme_toy")).beat(NOTHING, workers=0, most=4)
    assert waits.width == 0
    assert re.search(r"nobody decides .*\(not for \d+ s\): `penstock tenancy keep` has to run", waits.reason)
    said = wiring.tenancy_status(owner)["undecided"]
    assert re.fullmatch(r"nobody decides .*\(not for \d+ s\): `penstock tenancy keep` has to run", said)
    with pytest.raises(AccessDenied, match="use the login that owns"):
        wiring.keep_leases(login, once=True)
    keep(owner)
    decided = wiring.tenancy_status(owner)
    assert decided["undecided"] is None
    moment = datetime.fromisoformat(decided["decided_at_utc"])
    assert abs((utc_now() - moment).total_seconds()) < 3600


def test_metrics_say_whether_somebody_has_to_decide_and_when_that_was_last(owner: Settings) -> None:
    needed, decided = "penstock_lease_keeper_needed", "penstock_last_lease_decision_timestamp_seconds"
    assert needed not in wiring.batch_metrics(owner), "nothing is shared out"
    say(owner, CLUSTER, default=TWO, acme=TWO)
    with Database(owner.metadata_url).write() as connection:
        connection.execute(update(leases).values(beat_at_utc=datetime(2024, 1, 1, tzinfo=UTC)))
    text = wiring.batch_metrics(owner)
    assert f"\n{needed} 1.0\n" in text
    assert f"\n{decided} {datetime(2024, 1, 1, tzinfo=UTC).timestamp():.4g}".replace("e+09", "") in text
    for name in ("default", "acme"):
        (owner.project / "tenants" / f"{name}.yaml").unlink()
    say(owner, CLUSTER, another=TWO)
    assert f"\n{needed} 0.0\n" in wiring.batch_metrics(owner), "no tenant has a login: drivers decide"


def test_a_file_is_there_while_somebody_decides_and_new_after_each_decision(
    owner: Settings, tmp_path: Path
) -> None:
    say(owner, CLUSTER, default=TWO, acme=TWO)
    beat, seen = tmp_path / "decided", []
    beat.write_text("of a keeper that was killed")

    def look(_seconds: float) -> None:
        seen.append(beat.read_text())
        beat.write_text("as it was")
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wiring.keep_leases(owner, beat_file=beat, sleep=look)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", text) for text in seen)
    assert not beat.exists()
    with pytest.raises(StoreUnavailable, match="nowhere"):
        wiring.keep_leases(owner, once=True, beat_file=tmp_path / "nowhere" / "decided")


def test_the_file_grows_old_while_the_database_does_not_answer(owner: Settings, tmp_path: Path) -> None:
    say(owner, CLUSTER, default=TWO, acme=TWO)
    beat, seen = tmp_path / "decided", []

    def look(_seconds: float) -> None:
        seen.append(beat.exists())
        beat.unlink(missing_ok=True)
        if len(seen) == 1:
            held.enter_context(psycopg.connect(owner.metadata_url)).execute(
                "SELECT 1 FROM penstock_leases WHERE tenant = '*' FOR UPDATE"
            )
        elif len(seen) == 2:
            held.close()
        else:
            raise KeyboardInterrupt

    with ExitStack() as held, pytest.raises(KeyboardInterrupt):
        wiring.keep_leases(owner, beat_file=beat, sleep=look)
    assert seen == [True, False, True]


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


@pytest.fixture
def team(settings: Settings, postgres_url: str, tmp_path: Path) -> Iterator[Settings]:
    """Two tenants with logins, in a database whose owner is no superuser, as a managed PostgreSQL has it."""
    url = services.new_postgres_database(postgres_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS boss, penstock_north, penstock_south")
        connection.execute("CREATE ROLE boss LOGIN CREATEROLE")
        connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" OWNER TO boss'.encode())
    found = dataclasses.replace(settings, metadata_url=url.replace("penstock@", "boss@"))
    MetadataStore.open(found)
    say(found, CLUSTER, north=TWO, south=TWO, _prices="{currency: EUR, cpu_hour: 1, gpu_hour: 1}")
    for name in wiring.render_tenancy(found, "postgres", tmp_path / "sql")["files"]:
        with psycopg.connect(found.metadata_url, autocommit=True) as connection:
            connection.execute((tmp_path / "sql" / name).read_bytes())
    yield found
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY boss, penstock_north, penstock_south CASCADE")
        connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" OWNER TO penstock'.encode())
        connection.execute("DROP ROLE boss, penstock_north, penstock_south")


def login_of(team: Settings, tenant: str) -> Settings:
    return dataclasses.replace(team, metadata_url=team.metadata_url.replace("boss@", f"penstock_{tenant}@"))


@pytest.fixture
def hostile(team: Settings) -> Iterator[psycopg.Connection[Any]]:
    """South holds, in a transaction that it does not end, all that its login can lock and all rows that others could wait for."""
    login = login_of(team, "south")
    pipeline_of(login, "south", INFERENCE)
    context = open_context(login, "south_toy")
    holder = _holder(context)
    holder.beat(NOTHING, workers=0, most=4)
    keep(team)
    assert holder.beat(NOTHING, workers=0, most=4).width == 4
    holder.beat({**NOTHING, "allocated_s": 8.0}, workers=4, most=4)
    context.metadata.record_run(context.spec, "r1", status="planned")
    with context.metadata.open_budget("south") as reserved:
        key = {"tenant": "south", "pipeline": "south_toy", "kind": "scoring", "subject": "s"}
        reserved.put({**key, "cost": 1.0, "until_utc": datetime(2200, 1, 1, tzinfo=UTC)})
    with psycopg.connect(login.metadata_url) as connection:
        for table, grant in GRANTS.items():
            connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
            if "INSERT" in grant:
                connection.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE".encode())
            if "UPDATE" in grant:
                connection.execute(f"SELECT 1 FROM {table} FOR UPDATE".encode())
        columns = ", ".join(column.name for column in allocations.c)
        from_request = {"idle_s": "0", "outcome": "'mine'", "from_utc": "now()", "until_utc": "now()"}
        given = ", ".join(from_request.get(column.name, column.name) for column in allocations.c)
        connection.execute(
            f"INSERT INTO penstock_allocations ({columns}) SELECT {given} FROM penstock_lease_requests".encode()
        )
        connection.execute("SELECT pg_advisory_lock(n) FROM generate_series(0, 1000) n")
        yield connection


def test_whatever_one_tenants_login_holds_the_others_runs_are_admitted_and_go_on(
    team: Settings, hostile: psycopg.Connection[Any]
) -> None:
    login, store = login_of(team, "north"), MetadataStore.open(team, patience_s=2.0)
    pipeline_of(login, "north", INFERENCE)
    context = open_context(login, "north_toy")
    context.metadata.record_run(context.spec, "r1", status="planned")
    for of in (login, team):
        with MetadataStore.open(of, patience_s=2.0).open_budget("north") as reserved:
            assert reserved.rows == []
    store.forget_reservations()
    north = _holder(context)
    assert north.beat(NOTHING, workers=0, most=4).width == 0
    keep(team)
    north.beat(NOTHING, workers=0, most=4)
    with Database(team.metadata_url).write() as connection:  # as if fifteen minutes had passed
        over = leases.c.over_since_s
        connection.execute(update(leases).where(over.is_not(None)).values(over_since_s=over - 901))
    keep(team)
    assert north.beat(NOTHING, workers=0, most=4).width == 2, "what south does not give back counts no longer"
    clock = update(leases).where(leases.c.tenant == "*").values(beat_s=leases.c.beat_s + 61)
    with Database(team.metadata_url).write() as connection:  # as if a minute had passed
        connection.execute(clock)
    north.beat(NOTHING, workers=2, most=4)
    keep(team)
    assert north.beat(NOTHING, workers=2, most=4).width == 4, "and when it is silent, nothing does"
    assert [row["tenant"] for row in store.lease_rows()] == ["north", "south"], "its row is locked"
    north.end({**NOTHING, "allocated_s": 3.0}, "finished")
    keep(team)
    hostile.rollback()
    keep(team)
    assert store.lease_rows() == []
    lines = wiring.cost_ledger(team)["lines"]
    assert sorted((line["tenant"], line["outcome"]) for line in lines) == [
        ("north", "finished"),
        ("south", "expired"),
    ]


def test_a_transaction_that_lasts_too_long_is_ended_by_whoever_keeps_the_ledger(
    team: Settings, hostile: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep(team)["transactions_ended"] == 0
    monkeypatch.setattr(keeping, "_TRANSACTION_S", 0.0)
    with psycopg.connect(team.metadata_url) as other:
        other.execute("SELECT 1")
        assert keep(team)["transactions_ended"] == 1
        other.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        hostile.execute("SELECT 1")


def test_a_flood_of_connections_ends_at_the_tenants_limit(team: Settings) -> None:
    flood = login_of(team, "south").metadata_url
    with ExitStack() as held:
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            for _ in range(5):
                held.enter_context(psycopg.connect(flood))
        assert MetadataStore.open(login_of(team, "north")).lease_rows() == []


def test_a_flood_of_requests_ends_at_a_limit(team: Settings) -> None:
    login = login_of(team, "south")
    pipeline_of(login, "south", INFERENCE)
    first = first_lease(open_context(login, "south_toy"), "r", "scoring")
    many_wait(login, first, 10_000)
    with pytest.raises(ServiceUnavailable, match=r"may have 10000 requests for workers(?s:.*)end runs"):
        many_wait(login, dataclasses.replace(first, pipeline="another"), 1)
    assert keep(team)["runs"] == 10_000


def test_a_login_whose_transactions_may_not_be_ended_keeps_nobody_from_deciding(
    team: Settings, postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_TRANSACTION_S", 0.0)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("REVOKE penstock_south FROM boss; GRANT pg_read_all_stats TO boss")
    with psycopg.connect(login_of(team, "south").metadata_url) as open_too_long:
        open_too_long.execute("SELECT 1")
        assert keep(team)["transactions_ended"] == 0
        assert open_too_long.execute("SELECT 1").fetchone() == (1,)
    assert "last too long are not ended" in caplog.text


def keep(settings: Settings) -> dict[str, Any]:
    return wiring.keep_leases(settings, once=True)


def _holder(context: Context) -> LeaseHolder:
    found = load_shares(context.settings)
    assert found is not None
    return LeaseHolder(context, first_lease(context, "r1", "scoring"), *found)


def test_a_name_that_is_no_tenants_is_not_written_into_sql(settings: Settings, tmp_path: Path) -> None:
    say(settings, None, **{"a'; DROP TABLE x; --": "{}"})
    with pytest.raises(ConfigError, match="DROP TABLE"):
        wiring.render_tenancy(settings, "postgres", tmp_path / "sql")
