"""A trained toy bundle in a store, and the toy snapshot it is evaluated on."""

from __future__ import annotations

import pytest
from toy_support import Toy

from tasks.core import Settings, load_pipeline


@pytest.fixture
def toy_store(settings: Settings) -> Toy:
    return Toy(settings, load_pipeline(settings, "toy"))
