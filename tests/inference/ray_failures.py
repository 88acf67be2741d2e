"""A model that cannot be loaded."""

from __future__ import annotations

from typing import Any

from tasks.core.errors import DigestMismatch


def load_broken(*_: Any) -> Any:
    raise DigestMismatch("is damaged", which="bundle dddd", fix="train again")
