"""A real S3 endpoint for tests: `ministack`, from an environment of its own because it pins its own libraries.

Make it with `python3.11 -m venv .penstock/venv-s3 && .penstock/venv-s3/bin/pip install ministack`.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

VENV = Path(__file__).resolve().parents[1] / ".penstock" / "venv-s3"
BUCKET = "penstock-tests"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def available() -> bool:
    """Whether the endpoint's environment exists."""
    return (VENV / "bin" / "ministack").exists()


def start_s3(tmp: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """Start an endpoint on a free port of loopback with the bucket `BUCKET`; (URL, process to end by the caller)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(tmp),
        "TMPDIR": str(tmp),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "S3_DATA_DIR": str(tmp / "s3"),
        "LOG_LEVEL": "WARNING",
    }
    with (tmp / "s3.log").open("wb") as output:
        process = subprocess.Popen(
            [str(VENV / "bin" / "ministack")], env=env, stdout=output, stderr=subprocess.STDOUT, cwd=tmp
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            with urllib.request.urlopen(request, timeout=5):
                return url, process
        except (OSError, urllib.error.URLError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                log = (tmp / "s3.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 endpoint did not start: {error}\n{log}") from error
            time.sleep(0.2)


def fresh_store_url() -> str:
    """A store root of its own inside the bucket."""
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"
