"""The tenancy page in Airflow's UI: who is promised, has and borrows what, who waits and why, and what the month has cost.

A user sees the tenants of the pipelines whose scoring runs he may read, with all of their runs and costs; of others nothing, not even
that they are there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response

from plugins.access import PredictionsReader, SettingsDep, WiringDep
from plugins.links import PAGES
from plugins.rendering import PAGE_POLICY, html_page, page_headers
from tasks.core.clock import utc_now
from tasks.core.errors import PenstockError
from tasks.core.spec import load_pipeline, pipeline_names

Month = Annotated[str | None, Query(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]


def readable_tenants(settings: SettingsDep, may_read: PredictionsReader) -> Callable[[str], bool]:
    """Whether the user may see a tenant: whether he may read one of its pipelines."""
    found = set()
    for name in pipeline_names(settings):
        try:
            if may_read(name):
                found.add(load_pipeline(settings, name).tenant)
        except PenstockError:  # a pipeline that does not load belongs to nobody yet
            continue
    return found.__contains__


TenantsReader = Annotated[Callable[[str], bool], Depends(readable_tenants)]


def add_tenancy_pages(app: FastAPI) -> None:
    """Add the routes below `/tenancy`."""
    login = [Depends(requires_authenticated())]
    app.add_api_route("/tenancy/", overview, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/tenancy/costs.csv", costs, dependencies=login)


def overview(
    request: Request, settings: SettingsDep, wiring: WiringDep, may_see: TenantsReader, month: Month = None
) -> Response:
    """Shares, the queue, and the costs of a month."""
    status = wiring.tenancy_status(settings, may_see=may_see)
    ledger = wiring.cost_ledger(settings, month=month, may_see=may_see)
    before, after = _beside(ledger["month"])
    return html_page(
        request,
        "Tenancy",
        "tenancy.html",
        subtitle="Who has what of the cluster, who waits, and what it costs",
        it=status,
        waiting=[run for run in status["runs"] if run["waits"]],
        working=[run for run in status["runs"] if not run["waits"]],
        ledger=ledger,
        attempts=[line for line in ledger["by_pipeline"] if line["kind"] != "storage"],
        held={
            (line["tenant"], line["pipeline"]): line
            for line in ledger["by_pipeline"]
            if line["kind"] == "storage"
        },
        before=before,
        after=after if after <= f"{utc_now():%Y-%m}" else "",
        here=f"{PAGES}/tenancy/",
        size=_size,
        duration=_duration,
    )


def costs(settings: SettingsDep, wiring: WiringDep, may_see: TenantsReader, month: Month = None) -> Response:
    """Every attempt of a month as CSV."""
    ledger = wiring.cost_ledger(settings, month=month, stored=True, may_see=may_see)
    name = f'attachment; filename="costs-{ledger["month"]}.csv"'
    return Response(
        wiring.ledger_csv(ledger),
        media_type="text/csv; charset=utf-8",
        headers={**page_headers(PAGE_POLICY), "Content-Disposition": name},
    )


def _beside(month: str) -> tuple[str, str]:
    """The months before and after."""
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    months = first.year * 12 + first.month - 1
    before, after = (f"{number // 12:04d}-{number % 12 + 1:02d}" for number in (months - 1, months + 1))
    return before, after


def _size(count: int | None) -> str:
    """Bytes in words."""
    amount = float(count or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < (1024 if unit == "B" else 999.5):  # three digits would show more as 1e+03
            return f"{amount:.3g} {unit}" if unit != "B" else f"{amount:.0f} B"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def _duration(seconds: float) -> str:
    """Worker-seconds in words."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
