"""The stub model of the inference tests and the rows of the metadata tests are used here as well, and both databases."""

from __future__ import annotations

import sys
from pathlib import Path

from database_fixtures import postgres_url  # noqa: F401

for folder in ("inference", "metadata"):
    path = str(Path(__file__).parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)
