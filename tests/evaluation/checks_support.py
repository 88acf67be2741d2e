"""What several tests of the model checks call."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.core import PipelineSpec
from tasks.evaluation.check_records import (
    Dependency,
    FolderTests,
    Footprint,
    ModelChecks,
    ProcessLoad,
    Signature,
)

COLUMNS = {"price": "double", "visits": "int64", "city": "string", "device": "string"}


class LoadHere:
    """The measurement of a model's process, made in this process: what is not about the process itself needs none."""

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


def start_here(ends: ExitStack, folder: Path, digest: str, spec: PipelineSpec) -> LoadHere:
    return LoadHere(folder, digest, spec)


def sound_checks(**changes: Any) -> ModelChecks:
    """Model checks of the toy pipeline with which nothing is wrong."""
    load = ProcessLoad(5, 64, 1.0, 2.0, 1.0, 50_000.0, 300.0, 1.0, 2.0)
    signature = Signature(
        COLUMNS, tuple(COLUMNS), {"city": ("a", "b"), "device": ("phone",)}, {"prediction": "float"}
    )
    found = ModelChecks(
        footprint=Footprint(load, load, one_row_ratio=1.0, batch_ratio=1.1),
        signature=signature,
        champion_signature=signature,
        scoring_columns={"customer": "string", **COLUMNS},
        dependencies=(Dependency("numpy", "2.0", "BSD-3-Clause"), Dependency("torch", "2.9", "BSD-3-Clause")),
        python_version="3.11.9",
        tests=FolderTests(0, 0, 0, "", ""),
    )
    return replace(found, **changes)
