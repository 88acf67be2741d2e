"""One set of services of the profile `production`, with real flights in it, which ends with its tests: idle services cost the others time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_endpoint
from production_line import Line
from services import NO_POSTGRES, postgres_binaries

from tasks.local import credentials
from tasks.local.parts import ray_folder


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    """The set, started with the `penstock` command."""
    if postgres_binaries() is None:
        pytest.skip(NO_POSTGRES)
    if not s3_endpoint.available():
        pytest.skip("needs an S3 endpoint: `make test` installs it into .penstock/venv-s3")
    root = Path(tempfile.mkdtemp(prefix="penstock-production-"))
    root.chmod(0o755)  # PostgreSQL may run as another user
    made = Line(
        root, shard_rows=120
    )  # a dozen shards for two workers: some before a fault strikes, some after it
    before = dict(os.environ)
    try:
        made.up()
        # Those of the store alone: Ray reads how it authenticates once in a process, and other tests' Ray asks for nothing.
        given = credentials(made.installation.settings)
        os.environ.update({name: value for name, value in given.items() if name.startswith("AWS_")})
        yield made
    finally:
        os.environ.clear()
        os.environ.update(before)
        made.installation.penstock("down")
        left = made.installation.leftovers()
        shutil.rmtree(ray_folder(made.installation.settings), ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
        assert not left
