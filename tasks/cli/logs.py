"""Log lines of commands and jobs: on stderr, so that stdout holds nothing but the result."""

from __future__ import annotations

import logging
import sys

from tasks.core.log_lines import handler
from tasks.core.settings import log_format

_QUIET = ("alembic", "great_expectations", "httpx", "matplotlib", "mlflow", "py4j", "urllib3")
"""Libraries whose INFO lines say nothing about the pipeline."""


def log_to_stderr(level: int) -> None:
    """Send lines of `level` and above to stderr, as `PENSTOCK_LOG_FORMAT` says; of chatty libraries only warnings."""
    logging.basicConfig(level=level, handlers=[handler(sys.stderr, log_format())], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
