"""A model may say more of a row than its score: each output is a column of the predictions table."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from bundle_support import upload_random_bundle
from inference_support import AUDIT, FIRST_DAY, scoring_snapshot, table_rows

from tasks.core import PipelineSpec, Settings
from tasks.core.errors import PipelineCodeError
from tasks.core.spec import pipeline_folder
from tasks.inference import plan, publish, run_plan, verify
from tasks.model import NetworkSpec, build_network

LATER = date(2024, 4, 1)
WITH_OUTPUTS = """
import torch
from tasks.model import NetworkSpec, TabularMLP

class Talkative(TabularMLP):
    def outputs(self, x):
        logits = self(x)
        return {"raw_logit": logits, "log_of_first": torch.log(x[:, 0])}

def build(spec: NetworkSpec) -> Talkative:
    return Talkative(spec)
"""


def score(settings: Settings, spec: PipelineSpec, folder: Path, first_day: date, version: int) -> str:
    """Upload the pipeline's model as it is now, score one day with it and publish; the run's id."""
    digest, features = upload_random_bundle(settings, spec, folder)
    snapshot = scoring_snapshot(settings, spec, first_day=first_day, days=1)
    run_id = plan(
        settings, spec, snapshot, model_version=version, bundle_digest=digest, feature_version=features
    ).run_id
    run_plan(settings, spec, run_id, local=True, audit_table=AUDIT)
    publish(settings, spec, run_id)
    return run_id


def test_a_model_that_gains_outputs_adds_columns_and_its_scores_stay(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    import math

    first = score(settings, toy, tmp_path / "plain", FIRST_DAY, 1)
    (pipeline_folder(settings, toy.name) / "model.py").write_text(WITH_OUTPUTS)
    second = score(settings, toy, tmp_path / "talkative", LATER, 2)
    rows = table_rows(settings, toy)
    before = [row for row in rows if row["run_id"] == first]
    after = [row for row in rows if row["run_id"] == second]
    assert (len(before), len(after)) == (120, 120)
    assert {(row["output_raw_logit"], row["output_log_of_first"]) for row in before} == {(None, None)}
    for row in after:  # the bundle's calibration: slope 1.25, intercept -0.5
        assert 1 / (1 + math.exp(-(1.25 * row["output_raw_logit"] - 0.5))) == pytest.approx(
            row["score"], abs=1e-6
        )
    silent = [
        row["output_log_of_first"] is None for row in after
    ]  # a standardised price below 0 has no logarithm
    assert any(silent) and not all(silent)
    assert all(verify(settings, toy, run_id).ok for run_id in (first, second))


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("[x[:, 0]]", "outputs(x) returned list"),
        ("{'Raw Logit': x[:, 0]}", "returned the names ['Raw Logit']"),
        ("{'wide': x}", "outputs(x)['wide'] must be floats of [n]; for n = 3 it is (3, 5)"),
        ("{'code': x[:, 0].long()}", "outputs(x)['code'] must be floats of [n]"),
        ("x.nothing", "model.py:4"),
    ],
)
def test_outputs_that_cannot_be_columns_are_refused_before_anything_is_trained(
    returned: str, says: str
) -> None:
    source = (
        "from tasks.model import TabularMLP\nclass M(TabularMLP):\n    def outputs(self, x):\n"
        f"        return {returned}\ndef build(spec):\n    return M(spec)\n"
    )
    shape = NetworkSpec(3, (4, 3), (3, 2), (16, 8), 0.1)
    with pytest.raises(PipelineCodeError) as caught:
        build_network(source, shape, origin="model.py")
    assert says in str(caught.value)
