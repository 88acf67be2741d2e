"""What the questions to people have in common: who may answer, who did, and text that breaks no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def assigned_users(names: Sequence[str]) -> list[dict[str, str]] | None:
    """Users of Airflow by id, as its question wants them; None: everybody who may answer at all."""
    return [{"id": name, "name": name} for name in names] or None


def actor_of(user: Mapping[str, Any]) -> str:
    """The name under which an Airflow user's answer is kept."""
    return f"airflow:{user.get('name') or user['id']}"


def cell(value: Any) -> str:
    """A value as one line of Markdown that ends no cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
