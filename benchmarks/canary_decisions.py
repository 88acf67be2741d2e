"""How often each rule promotes or rolls back a challenger that it should not, and how many rows it needs.

    python benchmarks/canary_decisions.py

Simulated losses of two models on the same rows: normal, standard deviation 0.25, correlation 0.95, 60 days of 50 rows. The challenger is
worse by `d`: at the margin (0.02), equal (0), clearly worse (0.05) or better (-0.03). With *day shocks* all rows of a day share a shift of
their difference (standard deviation 0.02). Error level 2.5 % a side; every rule that may look does so once a day. Our own rule is the code that
the pipeline runs (`tasks.evaluation.canary.half_width`), here also on rows in place of day means, to show why it is not used so.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tasks.evaluation.canary import MIN_DAYS, half_width

DAYS, ROWS = 60, 50
MARGIN, ALPHA = 0.02, 0.025
SPREAD, CORRELATION, SHOCK = 0.25, 0.95, 0.02
RESULTS = Path(__file__).with_name("results") / "canary_decisions.md"
CASES = {"at the margin": MARGIN, "equal": 0.0, "worse by 0.05": 0.05, "better by 0.03": -0.03}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """Losses of the same rows: [days, rows]."""

    champion: Array
    challenger: Array

    @property
    def differences(self) -> Array:
        return self.challenger - self.champion


Rule = Callable[[Losses], tuple[str, int]]
"""(`promote`, `roll back` or `hold`, days used)."""


def drawn(rng: np.random.Generator, worse_by: float, shock: float) -> Losses:
    """One canary."""
    common = rng.normal(0.0, SPREAD * np.sqrt(CORRELATION), (DAYS, ROWS))
    own = SPREAD * np.sqrt(1 - CORRELATION)
    shift = rng.normal(0.0, shock, (DAYS, 1)) if shock else 0.0
    champion = 0.5 + common + rng.normal(0.0, own, (DAYS, ROWS))
    return Losses(champion, 0.5 + common + worse_by + shift + rng.normal(0.0, own, (DAYS, ROWS)))


def _decided(mean: float, width: float) -> str:
    if mean - width > 0:
        return "roll back"
    return "promote" if mean + width < MARGIN else "hold"


def _daily(losses: Losses, width_after: Callable[[int, Array], tuple[float, float]]) -> tuple[str, int]:
    """Look after each day until something is decided; `width_after` gives (mean, half width) after n days."""
    for n in range(MIN_DAYS, DAYS + 1):
        outcome = _decided(*width_after(n, losses.differences[:n]))
        if outcome != "hold":
            return outcome, n
    return "hold", DAYS


def day_means(losses: Losses) -> tuple[str, int]:
    """What the pipeline does: a confidence sequence on the means of days."""

    def after(n: int, seen: Array) -> tuple[float, float]:
        means = seen.mean(axis=1)
        return float(means.mean()), half_width(n, float(means.std(ddof=1)), ALPHA)

    return _daily(losses, after)


def single_rows(losses: Losses) -> tuple[str, int]:
    """The same sequence on rows, as if rows of a day were independent."""

    def after(_n: int, seen: Array) -> tuple[float, float]:
        return float(seen.mean()), half_width(seen.size, float(seen.std(ddof=1)), ALPHA)

    return _daily(losses, after)


def paired_z(losses: Losses, *, peek: bool) -> tuple[str, int]:
    """An interval of 1.96 standard errors of the rows' differences, at the end or every day."""
    z = stats.norm.ppf(1 - ALPHA)

    def after(_n: int, seen: Array) -> tuple[float, float]:
        return float(seen.mean()), float(z * seen.std(ddof=1) / np.sqrt(seen.size))

    if peek:
        return _daily(losses, after)
    return _decided(*after(DAYS, losses.differences)), DAYS


def obrien_fleming(constant: float) -> Rule:
    """The group sequential boundary z_k = constant * sqrt(K / k), on rows, a look a day."""

    def rule(losses: Losses) -> tuple[str, int]:
        def after(n: int, seen: Array) -> tuple[float, float]:
            error = seen.std(ddof=1) / np.sqrt(seen.size)
            return float(seen.mean()), float(constant * np.sqrt(DAYS / n) * error)

        return _daily(losses, after)

    return rule


def boundary_constant(rng: np.random.Generator, paths: int = 200_000) -> float:
    """The constant for which Brownian motion crosses the boundary at any of the looks with probability `ALPHA`."""
    looks = np.arange(MIN_DAYS, DAYS + 1)
    highest = np.full(paths, -np.inf)
    position = rng.normal(0.0, np.sqrt(MIN_DAYS - 1), paths)
    for _ in looks:
        position = position + rng.normal(0.0, 1.0, paths)
        # z_k * sqrt(k / K) = position / sqrt(K)
        highest = np.maximum(highest, position / np.sqrt(DAYS))
    return float(np.quantile(highest, 1 - ALPHA))


def _split(losses: Losses) -> tuple[Array, Array]:
    """A traffic split: each row is scored by one of the two models only."""
    return losses.champion[:, ::2], losses.challenger[:, 1::2]


def unpaired(losses: Losses) -> tuple[str, int]:
    """A z interval on split traffic, looked at every day."""
    z = stats.norm.ppf(1 - ALPHA)
    champion, challenger = _split(losses)
    for n in range(MIN_DAYS, DAYS + 1):
        one, other = challenger[:n], champion[:n]
        error = np.sqrt(one.var(ddof=1) / one.size + other.var(ddof=1) / other.size)
        outcome = _decided(float(one.mean() - other.mean()), float(z * error))
        if outcome != "hold":
            return outcome, n
    return "hold", DAYS


def mann_whitney(losses: Losses) -> tuple[str, int]:
    """Kayenta's classifier with its defaults, once at the end, on split traffic.

    The Hodges-Lehmann shift with its 98 % interval from the rank test; *High* when the interval lies above a
    quarter of the shift, and everything that is not High passes.
    """
    champion, challenger = (np.sort(part.ravel()) for part in _split(losses))
    n, m = len(challenger), len(champion)
    spread = np.sqrt(n * m * (n + m + 1) / 12)

    def shift_at(wanted: float) -> float:
        """The shift after which the rank statistic of challenger over champion is `wanted`."""
        low, high = -2.0, 2.0
        for _ in range(40):
            middle = (low + high) / 2
            above = np.searchsorted(champion, challenger - middle).sum()
            low, high = (middle, high) if above > wanted else (low, middle)
        return (low + high) / 2

    z = stats.norm.ppf(0.99)
    estimate, lower = shift_at(n * m / 2), shift_at(n * m / 2 + z * spread)
    return ("roll back" if lower > 0.25 * abs(estimate) else "promote"), DAYS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    constant = boundary_constant(np.random.default_rng(asked.seed))
    rules: dict[str, Rule] = {
        "Penstock: confidence sequence on day means": day_means,
        "the same on rows": single_rows,
        "paired z, once at the end": lambda losses: paired_z(losses, peek=False),
        "paired z, looked at daily": lambda losses: paired_z(losses, peek=True),
        f"O'Brien-Fleming on rows, daily (constant {constant:.3f})": obrien_fleming(constant),
        "split traffic, z, looked at daily": unpaired,
        "split traffic, Kayenta's Mann-Whitney": mann_whitney,
    }
    tables = {
        shocks: {name: _run(rule, shocks, asked) for name, rule in rules.items()} for shocks in (0.0, SHOCK)
    }
    _write(tables, asked)


def _run(rule: Rule, shocks: float, asked: Any) -> dict[str, tuple[float, float, float]]:
    """Case -> (share promoted, share rolled back, median rows until a decision)."""
    found = {}
    for number, (case, worse_by) in enumerate(CASES.items()):
        rng = np.random.default_rng([asked.seed, number, int(shocks > 0)])  # each rule sees the same canaries
        outcomes = [rule(drawn(rng, worse_by, shocks)) for _ in range(asked.trials)]
        days = [used if outcome != "hold" else np.inf for outcome, used in outcomes]
        share = {
            word: sum(one == word for one, _ in outcomes) / asked.trials for word in ("promote", "roll back")
        }
        found[case] = (share["promote"], share["roll back"], float(np.median(days)) * ROWS)
    return found


def _write(tables: dict[float, dict[str, dict[str, tuple[float, float, float]]]], asked: Any) -> None:
    lines = [
        "# How canary rules decide",
        "",
        "Made by `benchmarks/canary_decisions.py`, which says what is simulated. A challenger at the margin is worse: to roll it back is",
        "right, to promote it is the error; which comes first is the rule's. Rules on rows keep their promise only where rows of a day",
        "share nothing, and that cannot be known beforehand: so the pipeline's rule stands on day means, and pays for it with 50 to 100",
        "rows until a decision. A day is its unit, and it decides after three at the earliest: with 1,000 rows a day after 3,000 rows.",
        "",
    ]
    for shocks, table in tables.items():
        lines += [
            f"## {'Day shocks with a standard deviation of ' + format(shocks, 'g') if shocks else 'Independent rows'}",
            "",
            f"{asked.trials:,} canaries of {DAYS} days with {ROWS} rows for each column, seed {asked.seed}; {os.cpu_count()} cores, "
            f"{platform.system()}, Python {platform.python_version()}.",
            "",
            "| rule | promoted at the margin | equal rolled back | worse by 0.05 rolled back | rows until then | better by 0.03 promoted | rows until then |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in table.items():
            worse, better = found["worse by 0.05"], found["better by 0.03"]
            cells = [
                f"{100 * found['at the margin'][0]:.1f} %",
                f"{100 * found['equal'][1]:.1f} %",
                f"{100 * worse[1]:.1f} %",
                "-" if not np.isfinite(worse[2]) else f"{worse[2]:,.0f}",
                f"{100 * better[0]:.1f} %",
                "-" if not np.isfinite(better[2]) else f"{better[2]:,.0f}",
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"`python benchmarks/canary_decisions.py --trials {asked.trials} --seed {asked.seed}`")
    asked.results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
