"""How programs connect to PostgreSQL, which may have a pooler before it."""

from __future__ import annotations

from typing import Any

UNPREPARED: dict[str, Any] = {"prepare_threshold": None}
"""For psycopg: prepare nothing under a name. A pooler in transaction mode gives the server's session to another client after each transaction, and
that one's `_pg3_0` is another statement. Airflow is given this by `sql_alchemy_connect_args`."""
