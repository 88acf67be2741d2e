"""Loads a model as those do that have never seen it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tasks.core import ObjectStore

if TYPE_CHECKING:
    from tasks.model import Scorer


@contextmanager
def loaded_anew(store: ObjectStore, digest: str) -> Iterator[Scorer]:
    """The scorer of a bundle, fetched by digest from the store, past this machine's cache; its golden rows replayed.

    A copy that is good here says nothing about what the workers get.
    """
    from tasks.model import Scorer, fetch_bundle

    with TemporaryDirectory(prefix="penstock-check-") as fresh:
        scorer = Scorer(fetch_bundle(store, digest, Path(fresh)))
        scorer.check_golden()
        yield scorer
