"""The stub model of the inference tests, the rows of the metadata tests and the server of the serving tests are used here as well, and both databases."""

from __future__ import annotations

import sys
from pathlib import Path

from database_fixtures import postgres_url  # noqa: F401

for folder in ("inference", "metadata", "serving"):
    path = str(Path(__file__).parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)
