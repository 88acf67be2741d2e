"""The toy project of the tests, and installations of their own that have a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.core import Settings

TOY_PROJECT = Path(__file__).parent / "toy_project"


def install_toy(root: Path) -> Settings:
    """A fresh installation under `root`, whose project folder is a private copy of the toy project."""
    project = root / "project"
    shutil.copytree(TOY_PROJECT, project)
    return Settings.at_home(root / "home", project=project)
