"""Log lines of commands and jobs: on stderr, so that stdout holds nothing but the result."""

from __future__ import annotations

import logging
import sys

_QUIET = ("alembic", "great_expectations", "httpx", "matplotlib", "mlflow", "py4j", "urllib3")
"""Libraries whose INFO lines say nothing about the pipeline."""


def log_to_stderr(level: int) -> None:
    """Send lines of `level` and above to stderr; of chatty libraries only warnings."""
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
