"""Of what a test module sets in the environment of its process, nothing is left for the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
FIRST = """
import os
import pytest

@pytest.fixture(scope="module", autouse=True)
def driver():
    os.environ["ADDED"] = "by the fixture"

def test_sets_and_removes():
    os.environ.update(CHANGED="by the test", RAY_AUTH_TOKEN="of the first")
    del os.environ["GONE"]

def test_the_module_keeps_what_it_has_set():
    assert (os.environ["ADDED"], os.environ["CHANGED"]) == ("by the fixture", "by the test")
    assert "GONE" not in os.environ
"""
SECOND = """
import os

def test_finds_all_as_it_was():
    assert (os.environ["CHANGED"], os.environ["GONE"]) == ("before", "before")
    assert not {"ADDED", "RAY_AUTH_TOKEN"} & os.environ.keys()
"""


def test_what_a_module_sets_adds_and_removes_in_the_environment_is_as_before_in_the_next(
    tmp_path: Path,
) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_first.py").write_text(FIRST)
    (tmp_path / "test_second.py").write_text(SECOND)
    env = {**os.environ, "CHANGED": "before", "GONE": "before"}
    env.pop("RAY_AUTH_TOKEN", None)
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
