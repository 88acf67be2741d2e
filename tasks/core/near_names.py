"""A name that is not there, with those that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, before: str = ", ") -> str:
    """`, did you mean 'other'?`; nothing where none of `known` is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"{before}did you mean {near[0]!r}?" if near else ""


def or_near(name: str, present: Iterable[str]) -> str:
    """`name (did you mean other?)`; the name alone where none of `present` is near."""
    known = sorted(present)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7) or [
        other for other in known if other.lower() == name.lower()
    ]
    return f"{name} (did you mean {' or '.join(near)}?)" if near else name
