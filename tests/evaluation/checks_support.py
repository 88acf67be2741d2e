"""What several tests of the model checks call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.evaluation.check_records import (
    Dependency,
    FolderTests,
    Footprint,
    ModelChecks,
    ProcessLoad,
    Signature,
)

COLUMNS = {"price": "double", "visits": "int64", "city": "string", "device": "string"}


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
