"""Tables of history refuse UPDATE, DELETE and TRUNCATE in the database itself.

Revision: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

HISTORY = (
    "penstock_deployment_events",
    "penstock_model_versions",
    "penstock_trainings",
    "penstock_verdicts",
    "penstock_decisions",
    "penstock_audit_actions",
)


def upgrade() -> None:
    """Triggers: a grant would not bind the user who owns the tables, which is the one that Penstock connects as."""
    if op.get_bind().dialect.name == "sqlite":
        for table in HISTORY:
            for verb in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} BEGIN "
                    f"SELECT RAISE(ABORT, '{table} is append-only, {verb} is refused'); END"
                )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION penstock_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION USING ERRCODE = 'restrict_violation', "
        "MESSAGE = TG_TABLE_NAME || ' is append-only, ' || lower(TG_OP) || ' is refused'; END $$"
    )
    for table in HISTORY:
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION penstock_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION penstock_append_only()"
        )
