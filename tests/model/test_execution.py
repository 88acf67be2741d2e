"""Where and how a network runs changes its speed, not what it says."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from test_scorer import encoded

from tasks.core.errors import ConfigError
from tasks.model import Scorer
from tasks.model.attribution import added_in_rounds, columns_in_rounds
from tasks.model.execution import Execution, fastest_size
from tasks.model.scorer import BFLOAT16_TOLERANCE, GOLDEN_TOLERANCE


def test_blocks_of_another_size_give_the_same_scores_and_attributions(make_bundle) -> None:
    scorer, other = Scorer(make_bundle()), Scorer(make_bundle(), execution=Execution(block_rows=96))
    x = encoded(scorer, 1000)
    np.testing.assert_allclose(other.predict(x), scorer.predict(x), atol=1e-6)
    np.testing.assert_allclose(other.explain(x).attributions, scorer.explain(x).attributions, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 31, 32, 191, 192, 193, 255, 256, 257, 500, 1000, 1024])
def test_in_large_and_small_blocks_every_row_has_the_bits_of_its_block_s_size(make_bundle, rows: int) -> None:
    mixed = Scorer(make_bundle(), execution=Execution(block_rows=32, large_block_rows=256))
    small = Scorer(make_bundle(), execution=Execution(block_rows=32))
    large = Scorer(make_bundle(), execution=Execution(block_rows=256))
    x = encoded(mixed, rows)
    many = rows if rows % 256 >= 192 else rows - rows % 256
    for ask in (Scorer.predict, lambda scorer, x: scorer.explain(x).attributions):
        wanted = np.concatenate([ask(large, x)[:many], ask(small, x[many:])])
        assert ask(mixed, x).tobytes() == wanted.tobytes()


def test_bfloat16_moves_scores_by_less_than_its_tolerance_and_by_more_than_rounding(make_bundle) -> None:
    scorer = Scorer(make_bundle())
    low = Scorer(make_bundle(), execution=Execution(bfloat16=True))
    x = encoded(scorer, 1000)
    moved = np.abs(low.predict(x) - scorer.predict(x)).max()
    assert GOLDEN_TOLERANCE < moved < BFLOAT16_TOLERANCE
    assert low.check_golden() < BFLOAT16_TOLERANCE
    assert low.predict(x).dtype == np.float32


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_scores_the_same(make_bundle) -> None:
    scorer, compiled = Scorer(make_bundle()), Scorer(make_bundle(), compiled=True)
    x = encoded(scorer, 1500)
    np.testing.assert_allclose(compiled.predict(x), scorer.predict(x), atol=1e-6)
    assert compiled.check_golden() < GOLDEN_TOLERANCE


def test_a_machine_that_cannot_compile_says_what_it_lacks(
    make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> object:
        def forward(_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("No working C++ compiler found\nlong story")

        return forward

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ConfigError, match="No working C\\+\\+ compiler found") as caught:
        Scorer(make_bundle(), compiled=True)
    assert "inference.compile: false" in str(caught.value) and "long story" not in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({4096: 1.0, 8192: 2.0, 16384: 3.0, 32768: 3.1}, 16384),
        ({4096: 1.0, 8192: 2.0, 16384: None}, 8192),
        ({4096: None}, 4096),
        ({4096 << doubling: 2.0**doubling for doubling in range(7)}, 1 << 18),
    ],
    ids=["no longer faster", "does not fit", "nothing fits", "the most"],
)
def test_a_block_grows_while_that_pays_and_fits(rates: dict[int, float | None], size: int) -> None:
    assert fastest_size(rates.__getitem__) == size


def test_columns_added_in_rounds_give_the_bits_of_columns_added_one_by_one() -> None:
    owner = torch.tensor([0, 1, 2, 1, 0, 3, 3, 3, 3, 0])
    parts = torch.randn(500, len(owner), generator=torch.Generator().manual_seed(1))
    wanted = torch.zeros(500, 4).index_add_(1, owner, parts)
    rounds = columns_in_rounds(owner)
    assert [features.tolist() for features, _ in rounds] == [[0, 1, 2, 3], [1, 0, 3], [3, 0], [3]]
    assert torch.equal(added_in_rounds(parts, rounds, 4), wanted)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
@pytest.mark.parametrize("memory_share", [None, 0.3])
def test_a_gpu_scores_as_the_cpu_does(make_bundle, memory_share: float | None) -> None:
    scorer = Scorer(make_bundle())
    other = Scorer(make_bundle(), execution=Execution("cuda:0", block_rows=4096), memory_share=memory_share)
    x = encoded(scorer, 50_000)
    np.testing.assert_allclose(other.predict(x), scorer.predict(x), atol=1e-5)
    np.testing.assert_allclose(other.explain(x).attributions, scorer.explain(x).attributions, atol=1e-4)
    assert other.check_golden() < GOLDEN_TOLERANCE


@on_a_gpu
def test_a_gpu_gives_a_row_the_same_bits_each_time_and_in_any_company(make_bundle) -> None:
    scorer = Scorer(make_bundle(), execution=Execution("cuda:0", block_rows=4096))
    x = encoded(scorer, 50_000)
    scores, attributions = scorer.predict(x), scorer.explain(x).attributions
    order = np.random.default_rng(0).permutation(len(x))
    for again in (np.arange(len(x)), order, order[:5000], order[:70]):
        np.testing.assert_array_equal(scorer.predict(x[again]), scores[again])
        np.testing.assert_array_equal(scorer.explain(x[again]).attributions, attributions[again])
