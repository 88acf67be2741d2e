"""`python -m tasks.local.mlflow_server OPTION...`: `mlflow server` in one process.

MLflow's own command makes the tables, starts uvicorn in a second process that imports all of MLflow again, and waits for it, with
170 MB of its own. With one worker and no jobs there is nothing that it would have to do meanwhile.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def main(options: Sequence[str]) -> None:
    """Be the server until SIGTERM, with the options of `mlflow server`, among them `--workers 1`."""
    # MLflow's modules look when they are imported which hosts they answer to, and whether they are a server at all: by uvicorn.
    if "--allowed-hosts" in options:
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = options[options.index("--allowed-hosts") + 1]
    gc.disable()  # what is imported stays
    import uvicorn  # noqa: F401
    from mlflow import server
    from mlflow.cli import cli

    assert callable(server._exec_cmd)
    server._exec_cmd = _serve_here
    cli(["server", *options], prog_name="mlflow")


def _serve_here(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> None:
    """In the place of what starts `PYTHON -m uvicorn ...`; it ends by leaving the process."""
    import uvicorn

    assert list(command[1:3]) == ["-m", "uvicorn"]
    os.environ.update(extra_env)
    gc.freeze()
    gc.enable()
    uvicorn.main(command[3:], prog_name="uvicorn")


if __name__ == "__main__":
    main(sys.argv[1:])
