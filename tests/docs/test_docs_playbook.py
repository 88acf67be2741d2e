"""Whoever is woken by an alert finds the section that it names."""

from __future__ import annotations

import re

import pytest
from docs_support import ROOT, headings

from tasks.monitoring.alert_sources import PLAYBOOK, of_event, of_verdict
from tasks.monitoring.decision import ALERT, ASK, HOLD

_RULES = (ROOT / "monitoring" / "prometheus" / "penstock.rules.yml").read_text()
_URLS = [
    found.replace("{{ $labels.gate }}", gate)
    for found in set(re.findall(r'runbook_url: "?([^"\n]+)', _RULES))
    for gate in ("data", "evaluation", "canary")
]


def anchors_of_alerts() -> set[str]:
    from datetime import UTC, datetime

    at = datetime(2024, 3, 1, tzinfo=UTC)
    found = [
        of_verdict(gate=gate, subject="s", outcome="fail", reasons=(), at_utc=at, dag_run=None, links={})
        for gate in ("data", "evaluation", "canary")
    ]
    found += [
        of_event(
            event_id=1, kind=kind, version=2, previous_version=3, actor="a", reason="r", at_utc=at, links={}
        )
        for kind in ("rollback", "withdraw")
    ]
    return {one.links["playbook"] for one in found if one is not None} | {
        f"{PLAYBOOK}#{anchor}" for anchor in _anchors().values()
    }


def _anchors() -> dict[str, str]:
    from tasks.monitoring import alert_sources

    kinds = {alert_sources._KIND_OF_ACTION[action] for action in (HOLD, ASK, ALERT)}
    assert kinds == set(alert_sources._ANCHORS)
    return {**alert_sources._ANCHORS, **alert_sources._OPERATIONS, "freshness": "freshness"}


@pytest.mark.parametrize("url", sorted({*_URLS, *anchors_of_alerts()}))
def test_an_alert_leads_to_a_section_of_a_page(url: str) -> None:
    page, _, anchor = url.partition("#")
    assert anchor in headings(ROOT / page)
