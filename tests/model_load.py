"""A model's load measured in the process of the test: what is not about the clean process that measures it needs none, which imports torch anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.core import PipelineSpec


class LoadHere:
    """The measurement of a model's process, made in this process."""

    def __init__(self, folder: Path, digest: str, spec: PipelineSpec) -> None:
        from tasks.evaluation.load_process import Load, imported_dependencies

        self.load = Load(folder, digest, spec.inference.batch_rows)
        found = imported_dependencies(["numpy", "torch"])
        self.dependencies = {"dependencies": [item.to_json() for item in found]}

    def hello(self) -> dict[str, Any]:
        return self.load.loaded()

    def ask(self, what: str) -> dict[str, Any]:
        if what != "round":
            return self.dependencies
        # This process's peak is that of all tests before, and no property of the model.
        return {**self.load.round(), "peak_memory_mb": 300.0, "growth_mb": 1.0}

    def close(self) -> None:
        """There is no process to end."""


def start_here(ends: ExitStack, folder: Path, digest: str, spec: PipelineSpec) -> LoadHere:
    return LoadHere(folder, digest, spec)


@contextmanager
def measured_here() -> Iterator[None]:
    """Steps that evaluate a model measure it so meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.evaluation.footprint.ModelProcess", LoadHere)
        yield
