"""The fixtures of tests in `pipelines/<name>/tests`, as a pytest plugin. docs/evaluation.md shows how to use them.

`run_folder_tests` starts pytest with it. A test that asks for the model is skipped while there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, pipeline_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tasks.model import Bundle, FeatureCode, Scorer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--penstock-task", default="", help="File that says which pipeline and bundle.")


@pytest.fixture(scope="session")
def penstock_task(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `run_folder_tests` wrote: the spec, and where the bundle lies."""
    task: dict[str, Any] = json.loads(Path(request.config.getoption("--penstock-task")).read_text())
    return task


@pytest.fixture(scope="session")
def spec(penstock_task: dict[str, Any]) -> PipelineSpec:
    """`pipeline.yaml` as it is now."""
    return PipelineSpec.model_validate(penstock_task["spec"])


@pytest.fixture(scope="session")
def feature_code(spec: PipelineSpec) -> FeatureCode:
    """`features.py` as it is now; `feature_code.compute(rows, spec.features)`. Needs no model."""
    from tasks.model import FeatureCode

    settings = Settings.from_environment()
    return FeatureCode.from_file(pipeline_folder(settings, spec.name) / "features.py")


@pytest.fixture(scope="session")
def bundle(penstock_task: dict[str, Any]) -> Bundle:
    """The candidate's bundle."""
    from tasks.model import Bundle

    if not penstock_task["bundle_digest"]:
        pytest.skip("needs a trained model")
    return Bundle(Path(penstock_task["bundle_folder"]), penstock_task["bundle_digest"]).verified()


@pytest.fixture(scope="session")
def scorer(bundle: Bundle) -> Scorer:
    """The candidate, loaded as batch scoring loads it."""
    from tasks.model import Scorer

    return Scorer(bundle)


@pytest.fixture(scope="session")
def golden_rows(bundle: Bundle) -> pa.Table:
    """Up to 256 source rows of the candidate's validation days, without label and outcomes."""
    from tasks.evaluation.load_process import golden_inputs

    return golden_inputs(bundle)


@pytest.fixture(scope="session")
def predict(scorer: Scorer) -> Callable[[pa.Table], np.ndarray[Any, Any]]:
    """`predict(rows)`: the candidate's calibrated probabilities of source rows, shape (rows,)."""
    return lambda rows: scorer.predict(scorer.encode(scorer.features(rows)))
