"""The stub model of the inference tests is used here as well, and both databases."""

from __future__ import annotations

import sys
from pathlib import Path

from database_fixtures import postgres_url  # noqa: F401

INFERENCE = str(Path(__file__).parents[1] / "inference")
if INFERENCE not in sys.path:
    sys.path.append(INFERENCE)
