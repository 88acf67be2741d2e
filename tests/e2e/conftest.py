"""One set of services for all tests of the chain, started and ended with the `penstock` command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from damaged import add_damaged_pipelines
from installation import Installation
from receivers import Receiver, receiving

from tasks.local.parts import ray_folder

HOLD = """

def _wait_while_held() -> None:
    import os
    import time
    from pathlib import Path

    while Path(os.environ["PENSTOCK_PROJECT"], "hold").exists():
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def lineage() -> Iterator[Receiver]:
    """Gets the OpenLineage events of Airflow and of the steps."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, lineage: Receiver) -> Iterator[Installation]:
    """An installation nothing has been started in. The file `hold` in its project keeps features from coming."""
    made = Installation(tmp_path_factory.mktemp("e2e"))
    made.given = {
        "PENSTOCK_LINEAGE": f"{lineage.url}/api/v1/lineage",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "http", "url": lineage.url}),
    }
    made.edit(
        "toy",
        "features.py",
        {'    return rows.select(["price"': '    _wait_while_held()\n    return rows.select(["price"'},
    )
    features = made.project / "pipelines" / "toy" / "features.py"
    features.write_text(features.read_text() + HOLD)
    add_damaged_pipelines(made.project)
    yield made
    made.penstock("down")
    assert not made.leftovers()
    shutil.rmtree(ray_folder(made.settings), ignore_errors=True)


@pytest.fixture(scope="module")
def installation(stopped: Installation) -> Installation:
    """The installation with its services up."""
    done = stopped.penstock("up")
    assert done.returncode == 0, done.stdout
    return stopped
