"""Waivers: findings of the evaluation gate that a person lets pass for a while, each with a reason and an end.

waivers/<waiver id>/placed.json      which finding, until when, why and who, by exclusive create
waivers/<waiver id>/released.json    the same with who took it back and why, by exclusive create; the waiver is over

The finding stays on the verdict with its true status; only the outcome no longer counts it. A waiver is of no use to evidence
that does not exist or cannot be trusted: `is_waivable` names what no person may let pass.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import ConfigError, NotFound
from tasks.core.object_store import ObjectStore
from tasks.core.placed import place, read_placed, refuse_blank, release
from tasks.core.records import Finding, JsonRecord, Verdict, outcome_of

_FOLDER = "waivers"
_SAY_WHO = "say who and why: the record is all that remains of it"

NEVER = (
    "data", "data gate", "behaviour", "known in time", "leakage", "distribution", "model checks", "footprint", "tests",
)  # fmt: skip
"""Findings of these names say that there is no evidence, or that the model misbehaves."""
NEVER_FAMILIES = ("behaviour", "known in time")
"""So do all findings `<family>: <what>`, and `test <name>` of the model's folder. One feature's leakage or one property of the distribution can be judged by a person."""
_NEVER_WORDS = ("digest", "signature", "golden")


@dataclass(frozen=True)
class Waiver(JsonRecord):
    """One finding that is let pass up to `until`, that day included."""

    waiver_id: str
    finding: str
    until: date
    reason: str
    actor: str
    placed_at_utc: str
    candidate_digest: str | None = None
    """Only for this bundle; None: for every candidate of the pipeline."""
    released_at_utc: str | None = None
    released_by: str | None = None
    release_reason: str | None = None

    def covers(self, finding: str, candidate_digest: str, today: date) -> bool:
        """Whether the waiver stands on `today` and is about this finding of this candidate."""
        return (
            self.released_at_utc is None
            and today <= self.until
            and self.finding == finding
            and self.candidate_digest in (None, candidate_digest)
        )


def is_waivable(finding: str) -> bool:
    """Whether a person may let a finding of this name pass."""
    family = finding.split(":")[0]
    return (
        bool(finding.strip())
        and finding not in NEVER
        and family not in NEVER_FAMILIES
        and not finding.startswith("test ")
        and not any(word in finding.lower() for word in _NEVER_WORDS)
    )


def place_waiver(
    store: ObjectStore,
    *,
    finding: str,
    until: date,
    reason: str,
    actor: str,
    max_days: int,
    candidate_digest: str | None = None,
    clock: Clock = utc_now,
) -> Waiver:
    """Let a finding pass from now on.

    Raises:
        ConfigError: Nobody may waive it, it ends in the past or after more than `max_days`, or nobody says who or why.
    """
    today = clock().date()
    if not is_waivable(finding):
        raise ConfigError(
            "cannot be waived: without it there is no evidence, or the model cannot be trusted",
            which=f"finding {finding!r}",
            fix="mend what it says and evaluate again",
        )
    if not today <= until <= today + timedelta(days=max_days):
        raise ConfigError(
            f"{until} is not between today, {today}, and {max_days} days later",
            which="until",
            fix="choose a day in that time; place a new waiver when it is over. gates.max_waiver_days is the limit",
        )
    if candidate_digest is not None and not _is_digest(candidate_digest):
        raise ConfigError(
            f"is no bundle digest: {candidate_digest!r}",
            which="candidate",
            fix="pass the 64 hexadecimal digits",
        )
    refuse_blank(reason, "reason", _SAY_WHO)
    refuse_blank(actor, "actor", _SAY_WHO)
    waiver = Waiver(secrets.token_hex(4), finding, until, reason, actor, iso_utc(clock()), candidate_digest)
    place(store, _FOLDER, waiver.waiver_id, waiver)
    return waiver


def release_waiver(
    store: ObjectStore, waiver_id: str, *, reason: str, actor: str, clock: Clock = utc_now
) -> Waiver:
    """Take a waiver back. Doing so again changes nothing: the first release stays.

    Raises:
        NotFound: There is no such waiver.
        ConfigError: Nobody says who or why.
    """
    refuse_blank(reason, "reason", _SAY_WHO)
    refuse_blank(actor, "actor", _SAY_WHO)
    return release(
        store,
        _FOLDER,
        waiver_id,
        lambda: {waiver.waiver_id: waiver for waiver in waivers(store)},
        reason=reason,
        actor=actor,
        clock=clock,
        missing=NotFound(
            "is no waiver of this pipeline",
            which=waiver_id,
            fix="list them: penstock evaluation waivers NAME",
        ),
    )


def waivers(store: ObjectStore) -> list[Waiver]:
    """Every waiver that was placed, also those that are over, in order of their placing.

    Raises:
        DataError: One cannot be read; nothing is judged then.
    """
    found = read_placed(
        store,
        _FOLDER,
        Waiver,
        what="a readable waiver",
        fix="restore the object from a backup; no model is judged until then",
    )
    return sorted(found, key=lambda waiver: (waiver.placed_at_utc, waiver.waiver_id))


def with_waivers(verdict: Verdict, standing: Sequence[Waiver], today: date) -> Verdict:
    """The verdict with its waived findings marked; they no longer count for the outcome, and keep their status.

    It is decided when the last waiver about one of its findings was placed, released or over, if that is after the evidence: so
    each of these makes a new verdict, and judging again without one makes none.
    """
    findings = tuple(
        item if item.status == "pass" else _marked(item, verdict.subject, standing, today)
        for item in verdict.findings
    )
    outcome = outcome_of(item for item in findings if item.waived is None)
    names = {item.name for item in findings if item.status != "pass" and is_waivable(item.name)}
    changes = [
        moment
        for waiver in standing
        if waiver.finding in names and waiver.candidate_digest in (None, verdict.subject)
        for moment in _changes(waiver, today)
    ]
    return replace(
        verdict,
        findings=findings,
        outcome=outcome,
        decided_at_utc=max([verdict.decided_at_utc, *changes], key=datetime.fromisoformat),
    )


def _changes(waiver: Waiver, today: date) -> list[str]:
    """When the waiver began, and ended if it has."""
    moments = [waiver.placed_at_utc]
    if waiver.released_at_utc is not None:
        moments.append(waiver.released_at_utc)
    elif today > waiver.until:
        moments.append(iso_utc(datetime.combine(waiver.until + timedelta(days=1), time(), UTC)))
    return moments


def _marked(finding: Finding, candidate_digest: str, standing: Sequence[Waiver], today: date) -> Finding:
    for waiver in standing:
        if waiver.covers(finding.name, candidate_digest, today) and is_waivable(finding.name):
            mark = f"waived by {waiver.actor} until {waiver.until}: {waiver.reason}"
            return replace(finding, waived=mark)
    return finding


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
