"""Scores do not depend on company, and attributions add up to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fresh_imports import imported_by

from tasks.core.errors import DataError, DigestMismatch
from tasks.model import Scorer
from tasks.model.execution import CPU_BLOCK_ROWS

GELU = """
from torch import nn
from tasks.model import TabularMLP
class Smooth(TabularMLP):
    def __init__(self, spec):
        super().__init__(spec)
        self.layers = nn.Sequential(nn.Linear(spec.numeric + sum(spec.embedding_dims), 16), nn.GELU(), nn.Linear(16, 1))
def build(spec):
    return Smooth(spec)
"""
CUSTOM = """
import torch
from torch import nn
class Own(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.numeric, self.codes = spec.numeric, spec.cardinalities
        self.first = nn.Linear(spec.numeric + sum(spec.cardinalities), 12)
        self.last = nn.Linear(12, 1)
    def forward(self, x):
        parts = [x[:, :self.numeric]]
        for i, n in enumerate(self.codes):
            parts.append(nn.functional.one_hot(x[:, self.numeric + i].long(), n).float())
        return self.last(torch.tanh(self.first(torch.cat(parts, 1)))).squeeze(-1)
def build(spec):
    return Own(spec)
"""
LYING = """
from tasks.model import TabularMLP
class Lying(TabularMLP):
    def forward(self, x):
        return super().forward(x) + x[:, 0] ** 2
def build(spec):
    return Lying(spec)
"""


def rows(n: int, seed: int = 5) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "customer": [f"c{i}" for i in range(n)],
            "price": pa.array(
                np.where(rng.random(n) < 0.1, np.nan, rng.gamma(2.0, 10.0, n)), from_pandas=True
            ),
            "visits": rng.poisson(3, n),
            "city": rng.choice(["Basel", "Bern", "Chur", "Genf", "Unseen"], n),
            "device": rng.choice(["phone", "desktop"], n),
        }
    )


def encoded(scorer: Scorer, n: int, seed: int = 5) -> Any:
    return scorer.encode(scorer.features(rows(n, seed)))


def test_a_row_scores_the_same_to_the_last_bit_in_any_batch_and_at_any_place(make_bundle) -> None:
    scorer = Scorer(make_bundle())
    x = encoded(scorer, 2 * CPU_BLOCK_ROWS + 77)
    together, why = scorer.predict(x), scorer.explain(x)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(scorer.predict(x[order]), together[order])
    np.testing.assert_array_equal(scorer.explain(x[order]).attributions, why.attributions[order])
    for size in (1, 7, 64, 1000):
        parts = [scorer.predict(x[i : i + size]) for i in range(0, 2 * size, size)]
        np.testing.assert_array_equal(np.concatenate(parts), together[: 2 * size])


def test_scores_are_calibrated_probabilities(make_bundle) -> None:
    scorer = Scorer(make_bundle())
    x = encoded(scorer, 200)
    found = scorer.predict(x)
    with torch.no_grad():
        logits = scorer._network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(1.25 * logits - 0.5))), rtol=1e-5)
    assert found.dtype == np.float32 and scorer.predict(x[:0]).shape == (0,)
    assert scorer.explain(x[:0]).attributions.shape == (0, 4)


@pytest.mark.parametrize(
    ("source", "name", "tolerance"),
    [
        (None, "deeplift-rescale", 1e-5),
        (GELU, "integrated-gradients-16", 1e-3),
        (CUSTOM, "permutation-shapley-8", 1e-5),
        (LYING, "permutation-shapley-8", 1e-4),
    ],
)
def test_attributions_of_original_features_add_up_to_the_prediction(
    make_bundle, source: str | None, name: str, tolerance: float
) -> None:
    scorer = Scorer(make_bundle(source) if source else make_bundle())
    x = encoded(scorer, 300)
    why = scorer.explain(x)
    assert scorer.explainer == name
    assert why.attributions.shape == (300, len(scorer.feature_names)) == (300, 4)
    logit = why.base_value + why.attributions.sum(1) + why.residual
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), scorer.predict(x), atol=1e-5)
    assert np.abs(why.residual).max() < tolerance
    assert np.abs(why.attributions).max() > 0.01


@pytest.mark.parametrize("wide", [True, False])
def test_our_deeplift_equals_captums(make_bundle, wide: bool) -> None:
    from captum.attr import DeepLift
    from torch import nn

    scorer = Scorer(make_bundle(wide=wide))
    x = torch.from_numpy(encoded(scorer, 100))
    network = scorer._network

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.wide = network.layers, network.wide

        def forward(self, e: torch.Tensor) -> torch.Tensor:
            return self.layers(e) if self.wide is None else self.layers(e) + self.wide(e)

    embedded = network.embed(x).detach().clone()
    baseline = scorer._explainer._baseline.clone().expand(len(embedded), -1)
    theirs = DeepLift(Head()).attribute(embedded, baseline).detach().numpy()
    by_feature = np.zeros((100, 4), np.float32)
    np.add.at(by_feature.T, scorer._explainer._owner.numpy(), theirs.T)
    np.testing.assert_allclose(scorer.explain(x.numpy()).attributions, 1.25 * by_feature, atol=1e-5)


def test_shapley_attributions_of_an_additive_model_are_its_terms(make_bundle) -> None:
    source = (
        "from torch import nn\n"
        "class Sum(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = nn.Parameter(__import__('torch').tensor([1.0, 2.0, 3.0]))\n"
        "    def forward(self, x):\n"
        "        return x[:, :3] @ self.scale\n"
        "def build(spec):\n"
        "    return Sum()\n"
    )
    scorer = Scorer(make_bundle(source))
    x = encoded(scorer, 50)
    base = np.array(scorer.encoder.baseline_numeric)
    price = (x[:, 0] - base[0]) + 3 * (x[:, 2] - base[2])  # the value and its null indicator
    expected = 1.25 * np.stack([price, 2 * (x[:, 1] - base[1]), 0 * price, 0 * price], axis=1)
    np.testing.assert_allclose(scorer.explain(x).attributions, expected, atol=1e-4)


def test_the_average_training_row_is_the_baseline_of_a_linear_head(make_bundle) -> None:
    source = (
        "from torch import nn\nfrom tasks.model import TabularMLP\n"
        "class Flat(TabularMLP):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__(spec)\n"
        "        self.layers = nn.Sequential(nn.Linear(spec.numeric + sum(spec.embedding_dims), 1))\n"
        "def build(spec):\n    return Flat(spec)\n"
    )
    bundle = make_bundle(source)
    scorer = Scorer(bundle)
    train = scorer.encode(scorer.features(_training_rows()))
    np.testing.assert_allclose(scorer.explain(train).attributions.mean(axis=0), 0, atol=1e-5)


def _training_rows() -> pa.Table:
    rng = np.random.default_rng(0)  # as tests/model/conftest.py draws them
    price = rng.gamma(2.0, 10.0, 400)
    return pa.table(
        {
            "price": pa.array(np.where(rng.random(400) < 0.1, np.nan, price), from_pandas=True),
            "visits": rng.poisson(3, 400),
            "city": rng.choice(["Basel", "Bern", "Chur", "Genf"], 400),
            "device": rng.choice(["phone", "desktop"], 400),
        }
    )


def test_golden_rows_replay_exactly(make_bundle) -> None:
    assert Scorer(make_bundle()).check_golden() == 0.0


def test_golden_rows_find_weights_that_moved(make_bundle) -> None:
    scorer = Scorer(make_bundle())
    with torch.no_grad():
        scorer._network.layers[0].weight.mul_(1.001)
    with pytest.raises(DigestMismatch, match="of 40 golden predictions moved"):
        scorer.check_golden()


def test_golden_rows_find_an_encoder_skew_and_name_the_feature(make_bundle) -> None:
    from dataclasses import replace

    scorer = Scorer(make_bundle())
    skewed = replace(scorer.encoder.numeric[1], mean=scorer.encoder.numeric[1].mean + 0.5)
    scorer.encoder = replace(scorer.encoder, numeric=(scorer.encoder.numeric[0], skewed))
    with pytest.raises(DigestMismatch, match="other features than in training: visits"):
        scorer.check_golden()


def test_outcome_columns_never_reach_the_feature_code(make_bundle) -> None:
    scorer = Scorer(make_bundle())
    plain = rows(10)
    leaking = plain.append_column("bought", pa.array([1] * 10)).append_column("paid", pa.array([9.0] * 10))
    seen: list[str] = []
    scorer.feature_code._function = lambda table: (
        seen.extend(table.column_names) or table.select(["price", "visits", "city", "device"])
    )
    scorer.features(leaking)
    assert seen == plain.column_names


def test_a_matrix_of_another_width_is_refused(make_bundle) -> None:
    with pytest.raises(DataError, match=r"this model reads \[n, 5\]"):
        Scorer(make_bundle()).predict(np.zeros((2, 4), np.float32))


def test_scoring_leaves_the_thread_count_of_the_process_alone(make_bundle) -> None:
    before = torch.get_num_threads()
    scorer = Scorer(make_bundle())
    scorer.predict(encoded(scorer, 5))
    assert torch.get_num_threads() == before


def test_scoring_imports_neither_the_compiler_nor_training_libraries(make_bundle) -> None:
    script = (
        "from pathlib import Path; from tasks.model import Bundle, Scorer;"
        f"s = Scorer(Bundle.at(Path({str(make_bundle().folder)!r}))); s.check_golden(); s.explain(s.golden_encoded())"
    )
    others = ("sympy", "torch._dynamo", "sklearn", "ray", "mlflow", "captum", "matplotlib")
    assert imported_by(script, *others) == []
