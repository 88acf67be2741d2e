"""Fixtures that give a test each kind of store; a conftest imports them by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_endpoint
from fault_proxy import FaultProxy

from tasks.core import Settings


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint URL of an S3 server that lives as long as the session; `tests/conftest.py` has it for all folders."""
    if not s3_endpoint.available():
        pytest.skip(
            "needs an S3 endpoint: python3.11 -m venv .penstock/venv-s3 && .penstock/venv-s3/bin/pip install ministack"
        )
    url, process = s3_endpoint.start_s3(tmp_path_factory.mktemp("s3"))
    yield url
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def s3_url(s3_server: str) -> str:
    """Endpoint URL of the S3 server, whose credentials the module's environment has from now on."""
    os.environ.update(s3_endpoint.CREDENTIALS)
    return s3_server


@pytest.fixture(scope="module")
def proxy_of_module(s3_url: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server for all tests of a module: with its address, they share their client of S3 too."""
    with FaultProxy(s3_url) as found:
        yield found


@pytest.fixture
def proxy(proxy_of_module: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy before the S3 server that has seen nothing and has no fault yet."""
    proxy_of_module.forget()
    yield proxy_of_module
    proxy_of_module.clear()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store_settings(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    """`settings`, once on a local folder and once on S3."""
    if request.param == "local":
        return settings
    url = request.getfixturevalue("s3_url")
    return dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=url)
