"""The least that a tenant's workers have to be allowed in the metadata database, where that is PostgreSQL.

A login may lock what it may change, for as long as it likes. So it may change columns of its own rows and no table as a whole: PostgreSQL
lets only who may change, empty or delete all of a table lock it against others.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.core.mlflow_login import tenant_user
from tasks.metadata.tables import metadata

_READ, _ADD, _CHANGE = "SELECT", "SELECT, INSERT", "SELECT, INSERT, UPDATE"
GRANTS = {
    "penstock_trainings": _ADD,
    "penstock_scoring_runs": _CHANGE,
    "penstock_publications": _CHANGE,
    "penstock_publication_days": _CHANGE,
    "penstock_deployment_events": _READ,
    "penstock_model_versions": _READ,
    "penstock_dag_links": _CHANGE,
    "penstock_lease_requests": _CHANGE,
    "penstock_leases": _READ,
    "penstock_lease_ends": _READ,
    "penstock_allocations": _CHANGE,
    "penstock_reservations": _CHANGE,
    "penstock_stored": _READ,
}
"""What runs in a tenant's Ray jobs does to these tables: train, score, publish, verify, score again. Who promotes, judges, decides,
grants workers or alerts has the owner's login."""
WITHHELD = frozenset(
    {
        *("penstock_verdicts", "penstock_alias_projections", "penstock_day_signals", "penstock_decisions"),
        *("penstock_audit_actions", "penstock_metrics", "penstock_canary_steps"),
        *("penstock_alerts", "penstock_alert_deliveries"),
    }
)
"""Tables of which a tenant's workers get nothing."""
_EVERYBODY = ("penstock_leases", "penstock_lease_ends")
"""A driver says why its run waits, by who holds what."""
MOST_REQUESTS = 10_000
"""Of one tenant at a time: whoever decides reads them all."""


def postgres_policy(tenant: str, connections: int) -> str:
    """SQL that makes a tenant's login and says which rows it may see and write; it may be run again and again.

    Row-level security, by the tenant that every row starts with. It binds every login but the tables' owner.

    Args:
        tenant: Its name.
        connections: That it may have at a time.

    Source: PostgreSQL, "Row Security Policies", "LOCK" (privileges), "CREATE ROLE" (CONNECTION LIMIT).
    """
    return "\n".join(_lines(tenant, tenant_user(tenant), connections)) + "\n"


def _lines(tenant: str, role: str, connections: int) -> Iterator[str]:
    yield f"-- The login of tenant {tenant}'s workers. Run as the owner of Penstock's tables, again after each upgrade of Penstock:"
    yield f"--   psql --set ON_ERROR_STOP=1 --file {tenant}.sql DATABASE"
    yield f"-- and once, for its password:  \\password {role}"
    yield "BEGIN;"
    yield f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
    yield f'  CREATE ROLE "{role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS;'
    yield "END IF; END $$;"
    yield f'ALTER ROLE "{role}" CONNECTION LIMIT {connections};'
    yield "-- Whoever settles the ledger sees this login's transactions, and ends those that last too long."
    yield f'GRANT "{role}" TO CURRENT_USER;'
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
    yield f'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "{role}";'
    yield f'REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM "{role}";'
    yield f'GRANT USAGE ON SCHEMA public TO "{role}";'
    yield f'GRANT SELECT ON penstock_schema_version TO "{role}";'
    for table, grant in GRANTS.items():
        yield ""
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
        yield f'GRANT {_by_column(table, grant)} ON {table} TO "{role}";'
        yield from _policy(
            table, role, f"TO \"{role}\" USING (tenant = '{tenant}') WITH CHECK (tenant = '{tenant}')"
        )
        if table in _EVERYBODY:
            yield from _policy(table, f"{role}_sees", f'FOR SELECT TO "{role}" USING (true)')
    yield ""
    yield "-- Policies of earlier releases, in which each driver decided for itself."
    for name in ("starts", "clock"):
        yield f'DROP POLICY IF EXISTS "{role}_{name}" ON penstock_leases;'
    yield ""
    yield from _LIMIT.splitlines()
    yield "COMMIT;"


def _by_column(table: str, grant: str) -> str:
    """`grant` with its columns in the place of a table that may be changed as a whole."""
    columns = ", ".join(f'"{column.name}"' for column in metadata.tables[table].c if not column.primary_key)
    return grant.replace("UPDATE", f"UPDATE ({columns})")


def _policy(table: str, name: str, rule: str) -> Iterator[str]:
    yield f'DROP POLICY IF EXISTS "{name}" ON {table};'
    yield f'CREATE POLICY "{name}" ON {table} {rule};'


_LIMIT = f"""\
-- A login adds no more requests than can be decided on.
CREATE OR REPLACE FUNCTION penstock_lease_requests_limit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT FROM public.penstock_lease_requests WHERE tenant IN (SELECT tenant FROM added)
             GROUP BY tenant HAVING count(*) > {MOST_REQUESTS}) THEN
    RAISE EXCEPTION 'a tenant may have {MOST_REQUESTS} requests for workers' USING ERRCODE = '53400';
  END IF;
  RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS penstock_lease_requests_limit ON penstock_lease_requests;
CREATE TRIGGER penstock_lease_requests_limit AFTER INSERT ON penstock_lease_requests
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION penstock_lease_requests_limit();"""
