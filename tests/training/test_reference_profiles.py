"""Reference days carry on what the model's scores rest, chosen as scoring chooses rows to explain."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from training_support import load, model_source

from tasks.core import PipelineSpec, Settings, Snapshot
from tasks.core.spec import DriftSpec, ExplanationSpec
from tasks.model import Calibration, build_network
from tasks.model.attribution_sums import selection_of
from tasks.model.profile import Profile, ProfileSpec
from tasks.training import reference
from tasks.training.reference import reference_profiles


def profiles(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    null_when: Mapping[str, object] = MappingProxyType({}),
    **policy: object,
) -> tuple[PipelineSpec, list[Profile]]:
    import torch

    drift = DriftSpec.model_validate({**spec.drift.model_dump(), "null_when": null_when})
    spec = spec.model_copy(update={"drift": drift})
    chosen = spec.model_copy(update={"explanations": ExplanationSpec.model_validate(policy)})
    data = load(settings, spec, snapshot)
    torch.manual_seed(0)
    network = build_network(model_source(settings), data.network, origin="model.py").eval()
    days = (*data.train_days, *data.validation_days)
    grid = ProfileSpec.fit(days[0].features, None, spec)
    found = reference_profiles(chosen, data, grid, network, Calibration(1.0, 0.0))
    assert list(found) == [day.day for day in days]
    return chosen, list(found.values())


def test_every_reference_day_has_explained_rows_up_to_the_cap_whatever_the_share(
    settings, toy, snapshot, monkeypatch
) -> None:
    monkeypatch.setattr(reference, "EXPLAINED_A_DAY", 50)
    _, found = profiles(settings, toy, snapshot, share=0.1)
    assert {item.attributions and item.attributions.rows for item in found} == {50}
    assert {item.attributions and item.attributions.selection for item in found} == {"any"}
    assert all(item.attributions and item.attributions.magnitude.any() for item in found)


def test_the_same_training_explains_the_same_rows(settings, toy, snapshot) -> None:
    assert profiles(settings, toy, snapshot)[1] == profiles(settings, toy, snapshot)[1]


def test_a_pipeline_that_explains_nothing_pays_nothing(settings, toy, snapshot) -> None:
    _, found = profiles(settings, toy, snapshot, share=0.0)
    assert all(item.attributions is None for item in found)


@pytest.mark.parametrize("band", [(0.0, 1.0), (0.5, 1.0)])
def test_clauses_that_prefer_rows_choose_the_same_ones_here(settings, toy, snapshot, band) -> None:
    spec, found = profiles(settings, toy, snapshot, share=0.0, score_bands=[band])
    inside = [int(np.round(p.score.histogram()[:50][25:].sum())) if band[0] else p.rows for p in found]
    assert [p.attributions.rows if p.attributions else 0 for p in found] == inside
    assert {p.attributions.selection for p in found if p.attributions} == {selection_of(spec)}
    assert selection_of(spec) != "any"


def test_expected_nulls_of_reference_days_are_counted_on_source_columns(
    settings, toy, snapshot, caplog
) -> None:
    _, found = profiles(settings, toy, snapshot, null_when={"price": {"visits": [0, 1, 2]}}, share=0.0)
    nulls = sum(item.numeric["price"].nulls for item in found)
    assert 0 < sum(item.expected_nulls["price"] for item in found) < nulls
    assert "null_when" not in caplog.text


def test_a_condition_that_holds_for_no_null_of_the_training_is_logged(
    settings, toy, snapshot, caplog
) -> None:
    profiles(settings, toy, snapshot, null_when={"price": {"customer": "nobody"}}, share=0.0)
    assert "drift.null_when.price: of its " in caplog.text
    assert "nulls on 35 reference days none is where customer is nobody" in caplog.text


def test_a_network_that_cannot_be_explained_is_trained_without(
    settings, toy, snapshot, monkeypatch, caplog
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no gradient")

    monkeypatch.setattr(reference, "explained", fails)
    _, found = profiles(settings, toy, snapshot)
    assert all(item.attributions is None for item in found)
    assert "attribution drift will not be judged: RuntimeError: no gradient" in caplog.text
