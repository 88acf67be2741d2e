"""How often the evaluation gate refuses a candidate that is equal to the champion, and how often one that is worse.

    python benchmarks/gate_false_alarms.py --pairs 1000 --seed 11

Every pair is a validation window of simulated rows with labels, a champion, a candidate, a weaker logistic regression and twelve slices
in two columns. Measured and judged by the pipeline's own code: `tasks.evaluation.evidence.measure` and `tasks.evaluation.judge`.
Both models see the truth through noise of their own, of equal size: losses on the same rows correlate at about 0.97. With *day shocks* every
day shifts the label's odds (standard deviation 0.3) and each model's scores (0.1), so that rows of a day are not independent.

*Equal* pairs are A/A: any `fail` is false. *Every slice at its floor* raises `slice_min_auc` to the true AUC. The others are planted: the
candidate's AUC is worse by twice the margin on all rows, or worse on one slice of eight while it is better on all others.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core import PipelineSpec, Settings, Verdict, load_pipeline
from tasks.evaluation import judge
from tasks.evaluation.behaviour import sanity
from tasks.evaluation.evidence import measure
from tasks.evaluation.records import SliceMetrics
from tasks.evaluation.scoring import ScoredDays
from tasks.model.ranking import auc

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results") / "gate_false_alarms.md"
DAYS, ROWS = 28, 200
NOISE, BETTER, WEAK = 0.22, 0.10, 1.0
"""Standard deviation of a model's own noise on the logit: both models; a better candidate; logistic regression."""
LABEL_SHOCK, SCORE_SHOCK = 0.3, 0.1

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What is planted: losses of AUC on all rows and on the slice `group=g0`."""

    overall: float = 0.0
    on_slice: float = 0.0
    at_floor: bool = False

    @property
    def equal(self) -> bool:
        return not (self.overall or self.on_slice)


CASES = {
    "equal": Case(),
    "equal, every slice at its floor": Case(at_floor=True),
    "worse by 0.02 on all rows": Case(overall=0.02),
    "worse by 0.04 on one slice, better elsewhere": Case(on_slice=0.04),
    "worse by 0.08 on one slice, better elsewhere": Case(on_slice=0.08),
}


@cache
def noise_that_costs(loss: float) -> float:
    """Standard deviation of noise with which the AUC is `loss` lower than with `NOISE`, by bisection on many rows."""
    rng = np.random.default_rng(1)
    logit = _logits(rng, 400_000)
    labels = (rng.random(len(logit)) < _odds(logit)).astype(np.int8)
    noise = rng.normal(size=len(logit))
    wanted = auc(labels, logit + NOISE * noise) - loss
    low, high = NOISE, 5.0
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if auc(labels, logit + middle * noise) > wanted else (low, middle)
    return (low + high) / 2


@cache
def true_auc(shocks: bool) -> float:
    """AUC of a model of `NOISE` on a slice, over many days."""
    world = drawn(np.random.default_rng(2), Case(), shocks, days=1500)
    return float(auc(world.labels, world.scores["champion"]))


def drawn(rng: np.random.Generator, case: Case, shocks: bool, *, days: int = DAYS) -> ScoredDays:
    """One validation window, scored."""
    day = np.repeat(np.arange(days), ROWS)
    rows = len(day)
    logit = _logits(rng, rows) + (rng.normal(0, LABEL_SHOCK, days)[day] if shocks else 0.0)
    labels = (rng.random(rows) < _odds(logit)).astype(np.int8)
    group, kind = rng.integers(0, 8, rows), rng.integers(0, 4, rows)
    own = np.full(rows, noise_that_costs(case.overall) if case.overall else NOISE)
    if case.on_slice:
        own = np.where(group == 0, noise_that_costs(case.on_slice), BETTER)

    def seen(deviation: Array | float) -> Array:
        shift = rng.normal(0, SCORE_SHOCK, days)[day] if shocks else 0.0
        blurred = logit + rng.normal(size=rows) * deviation + shift
        return _odds(blurred / _spread(deviation))

    scores = {"candidate": seen(own), "champion": seen(NOISE), "baseline": seen(WEAK)}
    return ScoredDays(
        days=tuple(date(2024, 1, 1) + timedelta(days=index) for index in range(days)),
        day=day,
        labels=labels,
        scores={**scores, "constant": np.full(rows, labels.mean())},
        slices={
            "group": np.array([f"g{one}" for one in range(8)], dtype=object)[group],
            "kind": np.array([f"k{one}" for one in range(4)], dtype=object)[kind],
        },
        alone={name: logit + rng.normal(0, 2.0, rows) for name in spec_of(0.5).features.names},
    )


def _logits(rng: np.random.Generator, rows: int) -> Array:
    return rng.normal(-1.0, 1.2, rows)


def _spread(deviation: Array | float) -> Array | float:
    """By which a blurred logit is too wide: dividing calibrates it, near enough."""
    return np.asarray((1.2**2 + np.square(deviation)) / 1.2**2)


def _odds(logit: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logit)))


@cache
def spec_of(floor: float) -> PipelineSpec:
    """The toy pipeline with two slice columns; every other gate has its default."""
    with tempfile.TemporaryDirectory() as home:
        toy = load_pipeline(Settings.at_home(Path(home), project=ROOT / "tests" / "toy_project"), "toy")
    gates = type(toy.gates)(slices=("group", "kind"), slice_min_auc=floor)
    return toy.model_copy(update={"gates": gates})


@dataclass(frozen=True)
class Outcome:
    """What the gate said of one pair."""

    verdict: Verdict
    slices: tuple[SliceMetrics, ...]
    correlation: float
    """Of the two models' Brier losses."""


def judged(pair: int, *, case: Case, shocks: bool, seed: int) -> Outcome:
    """Draw, measure and judge one pair."""
    rng = np.random.default_rng([seed, pair, int(shocks), list(CASES.values()).index(case)])
    spec = spec_of(true_auc(shocks) if case.at_floor else 0.6)
    world = drawn(rng, case, shocks)
    found = measure(spec, world, checks=sanity(world.scores["candidate"]))
    evaluation = replace(
        found, candidate_digest="a" * 64, champion_digest="b" * 64, model_checks=_sound_checks()
    )
    losses = [np.square(world.scores[name] - world.labels) for name in ("candidate", "champion")]
    return Outcome(judge(spec, evaluation), evaluation.slices, float(np.corrcoef(*losses)[0, 1]))


@cache
def _sound_checks() -> Any:
    """Model checks that find nothing, those of the tests: nothing is planted there."""
    sys.path.insert(0, str(ROOT / "tests" / "evaluation"))
    from checks_support import sound_checks

    return sound_checks()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000, help="equal pairs, with and without day shocks")
    parser.add_argument("--planted", type=int, default=200, help="pairs of every other case")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with get_context("fork").Pool(asked.processes) as pool:
        tables = {
            shocks: {
                name: pool.map(
                    partial(judged, case=case, shocks=shocks, seed=asked.seed),
                    range(asked.pairs if case == Case() else asked.planted),
                    chunksize=10,
                )
                for name, case in CASES.items()
            }
            for shocks in (False, True)
        }
    _write(tables, asked)


def _share(outcomes: list[Outcome], holds: Callable[[Outcome], bool]) -> str:
    return f"{100 * sum(map(holds, outcomes)) / len(outcomes):.1f} %"


def _write(tables: dict[bool, dict[str, list[Outcome]]], asked: Any) -> None:
    correlation = np.mean([item.correlation for item in tables[False]["equal"]])
    lines = [
        "# How often the gate errs",
        "",
        "Made by `benchmarks/gate_false_alarms.py`, which says what is simulated. *False* is a `fail` where nothing is wrong; a model that is",
        f"not shown to be good is *inconclusive* and not promoted either. {DAYS} days of {ROWS} rows, 12 slices, correlation of the two models'",
        f"losses {correlation:.3f}. Gates have their defaults: margin 0.01 on all rows, 0.02 on a slice.",
        "",
    ]
    for shocks, table in tables.items():
        floor = true_auc(shocks)
        lines += [
            f"## {'Day shocks' if shocks else 'Independent rows'}",
            "",
            "| candidate | pairs | fail | inconclusive | pass | findings that were no pass |",
            "|---|---|---|---|---|---|",
        ]
        for name, outcomes in table.items():
            counts = Counter(
                f"{_family(item.name)} ({item.status})"
                for one in outcomes
                for item in {
                    (_family(found.name), found.status): found
                    for found in one.verdict.findings
                    if found.status != "pass"
                }.values()
            )
            shares = [
                _share(outcomes, lambda one, wanted=outcome: one.verdict.outcome == wanted)  # type: ignore[misc]
                for outcome in ("fail", "inconclusive", "pass")
            ]
            why = "; ".join(f"{what} {100 * n / len(outcomes):.1f} %" for what, n in counts.most_common(4))
            lines.append(f"| {name} | {len(outcomes):,} | {' | '.join(shares)} | {why or '-'} |")
        at_floor = table["equal, every slice at its floor"]
        lines += [
            "",
            f"Rules for a slice that is not shown to be below its floor, when every slice is exactly at it (AUC {floor:.3f}): share of honest models "
            "kept from passing by",
            "",
            "| rule | share |",
            "|---|---|",
            f"| an estimate below the floor (before) | {_share(at_floor, partial(_estimate_below, floor))} |",
            f"| a slice's own interval below the floor | {_share(at_floor, partial(_interval_below, floor))} |",
            f"| Holm's correction at 10 % (now) | {_share(at_floor, _any_floor_finding)} |",
            "",
        ]
    lines += [
        f"`python benchmarks/gate_false_alarms.py --pairs {asked.pairs} --planted {asked.planted} --seed {asked.seed}`, "
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}.",
    ]
    asked.results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _estimate_below(floor: float, one: Outcome) -> bool:
    return any((item.auc.value or 0) < floor for item in one.slices)


def _interval_below(floor: float, one: Outcome) -> bool:
    return any((item.auc.high or 1) < floor for item in one.slices)


def _any_floor_finding(one: Outcome) -> bool:
    return any(
        item.status != "pass" and _family(item.name) == "slice below its floor"
        for item in one.verdict.findings
    )


def _family(name: str) -> str:
    if name.startswith("slice "):
        return "slice against the champion" if name.endswith("champion") else "slice below its floor"
    return name.split(":")[0]


if __name__ == "__main__":
    main()
