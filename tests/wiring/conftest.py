"""One finished chain, and copies of it that tests may change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from database_fixtures import postgres_url  # noqa: F401
from wiring_support import Chain, Finished, copy_of, install, train_here

from tasks.core import Settings


@pytest.fixture(scope="session", autouse=True)
def _train_without_ray() -> Iterator[None]:
    """The train step fits in this process: `tests/training` and the end-to-end test fit on Ray."""
    import tasks.training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.training, "train", train_here(), raising=False)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Finished:
    chain = Chain(install(tmp_path_factory.mktemp("chain"), mlflow_url))
    challenger = chain.train()
    chain.release(challenger)
    run_id = chain.score()
    window = chain.monitor(as_of="2024-02-10")
    return Finished(chain, challenger["version"], run_id, window)


@pytest.fixture
def installation(finished: Finished, tmp_path: Path) -> Settings:
    """A private copy of the finished installation."""
    return copy_of(finished.settings, tmp_path / "copy")


@pytest.fixture(scope="session")
def second(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """In a copy: a second model, trained on later days, compared in the canary and promoted."""
    chain = Chain(copy_of(finished.settings, tmp_path_factory.mktemp("second")))
    challenger = chain.train(
        train_last_day="2024-02-04", validation_first_day="2024-02-05", validation_last_day="2024-02-11"
    )
    chain("canary_model", **challenger)
    chain(
        "promote_model",
        version=challenger["version"],
        actor="ada",
        reason="better",
        expected=finished.version,
    )
    return chain


@pytest.fixture
def after_second(second: Chain, tmp_path: Path) -> Settings:
    """A private copy of the installation with two promotions."""
    return copy_of(second.settings, tmp_path / "copy")
