"""The stub model of the inference tests is used here as well."""

from __future__ import annotations

import sys
from pathlib import Path

INFERENCE = str(Path(__file__).parents[1] / "inference")
if INFERENCE not in sys.path:
    sys.path.append(INFERENCE)
