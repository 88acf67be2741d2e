"""The least that a tenant's workers have to be allowed in the metadata database, where that is PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.core.mlflow_login import tenant_user

_READ, _ADD = "SELECT", "SELECT, INSERT"
_CHANGE, _OWN = "SELECT, INSERT, UPDATE", "SELECT, INSERT, UPDATE, DELETE"
GRANTS = {
    "penstock_trainings": _ADD,
    "penstock_scoring_runs": _CHANGE,
    "penstock_publications": _CHANGE,
    "penstock_publication_days": _CHANGE,
    "penstock_deployment_events": _READ,
    "penstock_model_versions": _READ,
    "penstock_dag_links": _CHANGE,
    "penstock_leases": _OWN,
    "penstock_lease_ends": _OWN,
    "penstock_allocations": _CHANGE,
    "penstock_reservations": _OWN,
    "penstock_stored": _READ,
}
"""What runs in a tenant's Ray jobs does to these tables: train, score, publish, verify, score again. Who promotes, judges, decides or
alerts is Airflow's worker, with the owner's login."""
WITHHELD = frozenset(
    {
        *("penstock_verdicts", "penstock_alias_projections", "penstock_day_signals", "penstock_decisions"),
        *("penstock_audit_actions", "penstock_metrics", "penstock_canary_steps"),
        *("penstock_alerts", "penstock_alert_deliveries"),
    }
)
"""Tables of which a tenant's workers get nothing."""
_EVERYBODY = ("penstock_leases", "penstock_lease_ends")
"""Admission has to see who holds what."""
_CLOCK = "tenant = '*' AND pipeline = '*' AND run_id = '*'"


def postgres_policy(tenant: str) -> str:
    """SQL that makes a tenant's login and says which rows it may see and write; it may be run again and again.

    Row-level security, by the tenant that every row starts with. It binds every login but the tables' owner.

    Source: PostgreSQL, "Row Security Policies".
    """
    return "\n".join(_lines(tenant, tenant_user(tenant))) + "\n"


def _lines(tenant: str, role: str) -> Iterator[str]:
    yield f"-- The login of tenant {tenant}'s workers. Run as the owner of Penstock's tables, again after each upgrade of Penstock:"
    yield f"--   psql --set ON_ERROR_STOP=1 --file {tenant}.sql DATABASE"
    yield f"-- and once, for its password:  \\password {role}"
    yield "BEGIN;"
    yield f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
    yield f'  CREATE ROLE "{role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS;'
    yield "END IF; END $$;"
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
    yield f'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "{role}";'
    yield f'REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM "{role}";'
    yield f'GRANT USAGE ON SCHEMA public TO "{role}";'
    yield f'GRANT SELECT ON penstock_schema_version TO "{role}";'
    for table, grant in GRANTS.items():
        yield ""
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
        yield f'GRANT {grant} ON {table} TO "{role}";'
        yield from _policy(
            table, role, f"TO \"{role}\" USING (tenant = '{tenant}') WITH CHECK (tenant = '{tenant}')"
        )
        if table in _EVERYBODY:
            yield from _policy(table, f"{role}_sees", f'FOR SELECT TO "{role}" USING (true)')
    yield ""
    yield "-- The ledger's one clock is set by whoever beats."
    yield from _policy("penstock_leases", f"{role}_starts", f'FOR INSERT TO "{role}" WITH CHECK ({_CLOCK})')
    yield from _policy("penstock_leases", f"{role}_clock", f'FOR UPDATE TO "{role}" USING ({_CLOCK})')
    yield "COMMIT;"


def _policy(table: str, name: str, rule: str) -> Iterator[str]:
    yield f'DROP POLICY IF EXISTS "{name}" ON {table};'
    yield f'CREATE POLICY "{name}" ON {table} {rule};'
