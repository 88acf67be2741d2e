"""Whether a tenant's budget lets something new begin. What has begun is reserved until its cost is in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tasks.core import Clock, utc_now
from tasks.core.budgets import Prices, load_prices, prices_file
from tasks.core.errors import ConfigError, PenstockError, TerminalError, TransientError
from tasks.core.tenants import TenantBudget, load_tenant, tenant_file
from tasks.wiring.context import Context
from tasks.wiring.costs import cost_of, month_bounds, month_lines

log = logging.getLogger(__name__)

_HOLDS = timedelta(hours=24)
"""What has been begun and not finished by then is taken for given up."""
_LOOK_AT = 5
"""Attempts by which a cost is foreseen."""


def reserve_budget(
    context: Context, kind: str, subject: str, *, rows: int | None = None, clock: Clock = utc_now
) -> str:
    """Let a scoring run or a training begin; returns what to say of the budget: empty, or a warning above the soft limit.

    What it is expected to cost is reserved, in one transaction with the check, so that runs which begin at the same moment see each
    other. The expectation is what the pipeline's last attempts cost, for a row or for a training; of one tenant no two begin
    side by side that have no such past.

    Args:
        kind: `scoring` or `training`.
        subject: The snapshot that it is about: beginning it again is the same reservation.
        rows: To score.

    Raises:
        TerminalError: With what the month has cost and what this is expected to cost, the hard limit would be passed.
        TransientError: It would be with what others have reserved.
        ConfigError: There is a budget and no price table.
    """
    settings, spec = context.settings, context.spec
    budget = load_tenant(settings, spec.tenant).budget
    if budget.month_soft is None and budget.month_hard is None:
        return ""
    prices = load_prices(settings)
    if prices is None:
        raise ConfigError(
            "has a budget, and nothing has a price",
            which=str(tenant_file(settings, spec.tenant)),
            fix=f"write {prices_file(settings)} with currency, cpu_hour and gpu_hour",
        )
    expected = _expected(context, kind, rows, prices)
    key = {"tenant": spec.tenant, "pipeline": spec.name, "kind": kind, "subject": subject}
    first, after = month_bounds(None, clock)
    with context.metadata.open_budget(spec.tenant) as reserved:
        others = [row for row in reserved.rows if any(row[name] != value for name, value in key.items())]
        lines = month_lines(context.metadata, spec.tenant, first, after, prices, clock=clock)
        spent = sum(line.cost or 0.0 for line in lines)
        shown = f"tenant {spec.tenant} has used {spent:,.2f} {prices.currency} in {first:%Y-%m}"
        if budget.month_hard is not None:
            _refuse(context, kind, shown, spent, expected, others, budget, prices)
            reserved.put({**key, "cost": expected, "until_utc": reserved.now + _HOLDS})
    if budget.month_soft is not None and spent >= budget.month_soft:
        warning = f"{shown}, above its soft limit of {budget.month_soft:,.2f}"
        log.warning("%s", warning)
        return warning
    return ""


def release_budget(context: Context, kind: str, subject: str | None) -> None:
    """What was reserved is spent: its cost is in the ledger. Where this fails, the reservation ends by itself."""
    if subject is None or load_tenant(context.settings, context.spec.tenant).budget.month_hard is None:
        return
    try:
        context.metadata.release_budget(context.spec.tenant, context.spec.name, kind, subject)
    except PenstockError as error:
        log.warning("The budget stays reserved for a day: %s", error.what)


def _refuse(
    context: Context,
    kind: str,
    shown: str,
    spent: float,
    expected: float | None,
    others: list[dict[str, Any]],
    budget: TenantBudget,
    prices: Prices,
) -> None:
    limit, which = budget.month_hard or 0.0, context.spec.name
    raise_it = f"have budget.month_hard raised in {tenant_file(context.settings, context.spec.tenant)}"
    if spent >= limit:
        raise TerminalError(
            f"{kind} is refused: {shown}, its hard limit is {limit:,.2f}",
            which=which,
            fix=f"wait for the next month, or {raise_it}",
        )
    mine = expected or 0.0
    if spent + mine > limit:
        raise TerminalError(
            f"{kind} is refused: {shown}, this is expected to cost {mine:,.2f}, and its hard limit is {limit:,.2f}",
            which=which,
            fix=f"take fewer days, wait for the next month, or {raise_it}",
        )
    taken = sum(row["cost"] or 0.0 for row in others)
    if spent + mine + taken > limit:
        raise TransientError(
            f"{kind} has to wait: {shown}, {taken:,.2f} are reserved for what is under way ({_named(others)}), this is "
            f"expected to cost {mine:,.2f}, and its hard limit is {limit:,.2f}",
            which=which,
            fix=f"run it again when that has ended, or {raise_it}",
        )
    unknown = [row for row in others if row["cost"] is None]
    if expected is None and unknown:
        raise TransientError(
            f"{kind} has to wait: its cost cannot be foreseen, nor that of what is under way ({_named(unknown)}), and "
            f"tenant {context.spec.tenant} has a hard limit of {limit:,.2f} {prices.currency}",
            which=which,
            fix="run it again when that has ended: one of each pipeline tells what the next will cost",
        )


def _named(rows: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({f"{row['kind']} of {row['pipeline']}" for row in rows}))


def _expected(context: Context, kind: str, rows: int | None, prices: Prices) -> float | None:
    """By the pipeline's last attempts that ended well; None when there is none."""
    spec = context.spec
    last = context.metadata.latest_allocations(spec.tenant, spec.name, kind, limit=_LOOK_AT)
    past: list[Mapping[str, Any]] = [row for row in last if row["outcome"] == "finished"]
    costs = [cost_of(row, prices) for row in past]
    if rows is None:
        return max(costs, default=None)
    scored = sum(row["rows"] for row in past)
    return sum(costs) / scored * rows if scored else None
