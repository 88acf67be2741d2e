"""An installation with something of everything in it, and what of it can be seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from children import Script, assert_killed
from hot_support import everywhere, online_row
from inference_support import score_and_publish, scoring_snapshot, table_rows
from metadata_support import open_filled

from tasks.audit.hot import HotLog
from tasks.core import PipelineSpec, Settings, open_store
from tasks.metadata.checking import check_metadata

TESTS = Path(__file__).parents[1]
BESIDE = [str(TESTS / name) for name in ("inference", "metadata", "audit")]


def fill(settings: Settings, spec: PipelineSpec) -> str:
    """Rows in every table of the database, a published run, and online rows of a writer that has ended; the run's id."""
    open_filled(settings)
    run_id = score_and_publish(settings, spec, scoring_snapshot(settings, spec, days=2))
    online = HotLog(settings, spec, node="n1")
    online.append([online_row(number) for number in range(7)])
    online.close()
    return run_id


def objects(settings: Settings) -> dict[str, bytes]:
    """Every object of the store with its content, passing ones and those that are not kept left out."""
    store = open_store(settings)
    return {
        info.key: store.get(info.key)
        for info in store.list()
        if not info.key.startswith("_") and "_last_checkpoint" not in info.key
    }


def seen(settings: Settings, spec: PipelineSpec) -> dict[str, Any]:
    """What people and programs find in an installation."""
    return {
        "objects": objects(settings),
        "tables": {name: table_rows(settings, spec, name) for name in ("predictions", "audit")},
        "online": everywhere(settings, spec),
        "database": check_metadata(settings.metadata_url).tables,
    }


def killed_in_a_child(settings: Settings, script: str, *arguments: str) -> None:
    """Run Python code that ends itself by SIGKILL, in a process that sees this installation."""
    path = os.pathsep.join([*BESIDE, str(TESTS), str(TESTS.parent), str(Path(__file__).parent)])
    env = {**os.environ, **settings.as_environment(), "PYTHONPATH": path}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        assert_killed(Script(Path(file.name), *arguments, env=env))
