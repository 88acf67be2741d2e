"""The data gate: judge a snapshot by its suite, quarantine rows, keep the evidence.

    validation/<snapshot_id>/quarantine.parquet     rows that failed a row-level expectation
    validation/<snapshot_id>/report.html            the verdict for people
    validation/<snapshot_id>/evidence.json          everything, written last: with it the validation is done
    validation/<snapshot_id>/history/<digest>/      the same three of an earlier, different gate

A validation is identified by its snapshot and its gate (suite content and the settings that judge). The same
two give the stored answer; a changed suite validates again.
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import DataGateFailed, NotFound
from tasks.core.ids import digest_json
from tasks.core.near_names import or_near
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.partitions import derive_snapshot, load_snapshot
from tasks.core.records import Finding, JsonRecord, Snapshot, Verdict
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.validation.batches import Batch, read_batches
from tasks.validation.combine import CheckResult, Outcome, combine, unusable
from tasks.validation.days import DayTally, day_findings, quarantine_finding
from tasks.validation.plain import plain
from tasks.validation.quarantine import Quarantine, clean_partitions
from tasks.validation.quiet import quiet
from tasks.validation.report import render
from tasks.validation.suite import Check, Suite, for_scoring, not_applicable, read_suite
from tasks.validation.wording import sentence

log = logging.getLogger(__name__)

_FORMAT = 1
"""Counts up when the gate judges differently, so that stored answers of an older gate are not returned."""


@dataclass(frozen=True)
class ValidationResult(JsonRecord):
    """The answer of the data gate."""

    verdict: Verdict
    clean_snapshot_id: str
    """What may go on: the snapshot without quarantined rows. Empty when the gate failed."""
    rows: int
    """Rows that are not quarantined."""
    quarantined_rows: int
    quarantine_key: str | None
    """Key of the quarantined rows (Parquet) in the pipeline's store."""
    report_url: str = ""
    """Absolute path or URL of the report."""


@dataclass
class Examination:
    """All that was found about one snapshot."""

    suite: Suite
    checks: list[CheckResult] = field(default_factory=list)
    skipped: list[tuple[Check, str]] = field(default_factory=list)
    """Expectations that do not apply to this kind of snapshot; never counted as passed."""
    always: list[Finding] = field(default_factory=list)
    """Findings of the checks that every snapshot gets."""
    problems: list[str] = field(default_factory=list)
    """Why the suite could not be run as declared."""
    tallies: list[DayTally] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)

    def findings(self) -> tuple[Finding, ...]:
        broken = [Finding("suite", "fail", problem) for problem in self.problems]
        return (*broken, *(check.finding() for check in self.checks), *self.always)

    @property
    def rows(self) -> int:
        return sum(tally.rows for tally in self.tallies)

    @property
    def quarantined_rows(self) -> int:
        return sum(len(tally.quarantined) for tally in self.tallies)


def validate(
    settings: Settings, spec: PipelineSpec, snapshot: Snapshot, *, clock: Clock = utc_now
) -> ValidationResult:
    """Judge `snapshot`; what is wrong with data or suite is in the verdict, not raised.

    Raises:
        DataError: A partition is truncated, damaged or gone.
    """
    store = open_store(settings, prefix=spec.prefix)
    folder = f"validation/{snapshot.snapshot_id}"
    suite = read_suite(settings.expectations_dir, spec.validation.suite)
    gate = _gate_digest(suite, spec)
    stored = _stored(store, folder, gate)
    if stored is not None:
        log.info(
            "snapshot %s was validated by this gate already: %s", snapshot.snapshot_id, stored.verdict.outcome
        )
        return stored

    log.info(
        "validating snapshot %s: %s rows in %s days against %s expectations of suite %s",
        snapshot.snapshot_id, f"{snapshot.rows:,}", len(snapshot.partitions), suite.declared, suite.name,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="penstock-validation-") as scratch:
        quarantine = Quarantine(Path(scratch))
        found = _examine(store, spec, snapshot, suite, quarantine)
        _keep_earlier(store, folder)
        quarantine_key = quarantine.upload(store, f"{folder}/quarantine.parquet")
    findings = found.findings()
    passed = bool(found.checks) and all(finding.status != "fail" for finding in findings)
    clean_id = ""
    if passed:
        removed = {index: tally.quarantined for index, tally in enumerate(found.tallies)}
        clean = derive_snapshot(store, snapshot, clean_partitions(store, snapshot, removed), clock=clock)
        clean_id = clean.snapshot_id
    result = ValidationResult(
        verdict=Verdict(
            gate="data",
            pipeline=spec.name,
            subject=snapshot.snapshot_id,
            outcome="pass" if passed else "fail",
            findings=findings,
            decided_at_utc=iso_utc(clock()),
            evidence_key=f"{folder}/evidence.json",
            report_key=f"{folder}/report.html",
        ),
        clean_snapshot_id=clean_id,
        rows=found.rows - found.quarantined_rows,
        quarantined_rows=found.quarantined_rows,
        quarantine_key=quarantine_key,
    )
    cost = {"cpu_s": round(time.process_time() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}
    evidence = _evidence(spec, snapshot, found, quarantine, result, gate, cost)
    store.put(f"{folder}/report.html", render(evidence).encode())
    store.put(
        f"{folder}/evidence.json", json.dumps(evidence, indent=1, allow_nan=False, default=str).encode()
    )
    result = replace(result, report_url=store.url(f"{folder}/report.html"))
    _log_verdict(result, cost["cpu_s"])
    return result


def require(result: ValidationResult, *, look: str | None = None) -> None:
    """Stop here unless the gate passed.

    Args:
        result: What the gate said.
        look: How to see the report, where it is not at `result.report_url`.

    Raises:
        DataGateFailed: It names every critical finding, and the report.
    """
    if result.verdict.passed and result.clean_snapshot_id:
        return
    critical = [finding for finding in result.verdict.findings if finding.status == "fail"]
    reasons = (
        "; ".join(f"{finding.name} ({finding.detail})" for finding in critical)
        or "no expectation was evaluated"
    )
    look = look or f"open {result.report_url or result.verdict.report_key}"
    raise DataGateFailed(
        f"did not pass the data gate: {reasons}",
        which=f"snapshot {result.verdict.subject} of {result.verdict.pipeline}",
        fix=f"{look}, then repair the source, or the suite "
        "if it is wrong, and run again: nothing downstream has started",
    )


def _examine(
    store: ObjectStore, spec: PipelineSpec, snapshot: Snapshot, suite: Suite, quarantine: Quarantine
) -> Examination:
    found = Examination(suite, problems=list(suite.problems))
    checks = _applicable(suite, spec, snapshot, found)
    if found.problems:
        return found

    with quiet():  # seconds to import: not before it is needed
        from tasks.validation import engine as gx

    found.problems += gx.problems(suite.checks)
    columns = {name for name, _ in snapshot.schema}
    runnable = [check for check in checks if not _missing(check, columns)]
    if found.problems:
        return found
    try:
        engine = gx.Engine(suite.name, runnable)
    except gx.LoadMismatch as error:
        found.problems.append(str(error))
        return found

    outcomes: dict[int, list[tuple[str, Outcome]]] = defaultdict(list)
    names = {check.index: check for check in runnable}
    found.tallies = [DayTally(partition) for partition in snapshot.partitions]
    for batch in read_batches(store, snapshot):
        log.info("  %s: %s rows", batch.name, f"{sum(part.table.num_rows for part in batch.parts):,}")
        found.batches.append(batch.name)
        for outcome in _run_batch(batch, engine, names, found.tallies, quarantine, spec):
            outcomes[outcome.index].append((batch.name, outcome))
    for outcome in engine.snapshot(found.rows - found.quarantined_rows):
        outcomes[outcome.index].append(("the whole snapshot", outcome))

    found.checks = [
        unusable(check, f"the snapshot has no column {', '.join(or_near(name, columns) for name in missing)}")
        if (missing := _missing(check, columns))
        else combine(check, outcomes[check.index])
        for check in checks
    ]
    read = sorted({column for check in checks for column in check.columns if column in columns})
    found.always = day_findings(found.tallies, snapshot, spec, read)
    found.always.append(
        quarantine_finding(
            found.rows,
            found.quarantined_rows,
            spec.validation.max_quarantined_share,
            quarantine.by_expectation,
        )
    )
    return found


def _applicable(suite: Suite, spec: PipelineSpec, snapshot: Snapshot, found: Examination) -> list[Check]:
    """The checks to run; for a scoring snapshot without those that need a label or an outcome."""
    if snapshot.kind != "scoring":
        return list(suite.checks)
    outcomes = spec.label.known_afterwards
    checks: list[Check] = []
    for check in suite.checks:
        if not_applicable(check, outcomes=outcomes):
            found.skipped.append((check, "not applicable to a scoring snapshot"))
        else:
            checks.append(for_scoring(check, outcomes=outcomes))
    if suite.checks and not checks:
        found.problems.append(
            "no expectation of the suite applies to a scoring snapshot: nothing would be evaluated"
        )
    return checks


def _run_batch(
    batch: Batch,
    engine: Any,
    checks: dict[int, Check],
    tallies: Sequence[DayTally],
    quarantine: Quarantine,
    spec: PipelineSpec,
) -> list[Outcome]:
    """Row-level checks on all rows, then the others on those that stay."""
    table = batch.table()
    frame = table.to_pandas()
    per_row: list[Outcome] = engine.rows(frame)
    reasons: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for outcome in per_row:
        check = checks[outcome.index]
        for position, value in outcome.rows:
            reasons[position].append((check.name, f"{value} (expected: {sentence(check)})"))
    bad = sorted(reasons)
    if bad:
        quarantine.add(table.take(bad), [reasons[position] for position in bad])
        frame = frame.drop(index=bad).reset_index(drop=True)
    offset = 0
    for part in batch.parts:
        end = offset + part.table.num_rows
        tally = tallies[part.partition_index]
        tally.add(part.table, [position - offset for position in bad if offset <= position < end], spec)
        if part.last:
            tally.close(spec)
        offset = end
    per_batch: list[Outcome] = engine.batch(frame)
    return [replace(outcome, rows=()) for outcome in per_row] + per_batch


def _missing(check: Check, columns: set[str]) -> list[str]:
    if check.type == "expect_column_to_exist":  # it says so itself, at its own severity
        return []
    return [column for column in check.columns if column not in columns]


def _gate_digest(suite: Suite, spec: PipelineSpec) -> str:
    """What decides the answer besides the snapshot."""
    return digest_json(
        {
            "format": _FORMAT,
            "suite": suite.digest,
            "great_expectations": version("great-expectations"),
            "validation": spec.validation.model_dump(),
            "keys": [*spec.entity_key, spec.event_time],
            "outcomes": [spec.label.column, *spec.label.outcome_columns],
            "time_zone": spec.source.time_zone,
        }
    )


def _stored(store: ObjectStore, folder: str, gate: str) -> ValidationResult | None:
    """The answer that this gate gave earlier, unless its clean snapshot is gone or it was no answer."""
    raw = _read_evidence(store, folder)
    if raw is None or raw.get("gate_digest") != gate or not raw.get("trusted"):
        return None
    result = ValidationResult.from_json(raw["result"])
    if result.clean_snapshot_id:
        try:
            load_snapshot(store, result.clean_snapshot_id)
        except NotFound:
            return None
    return replace(result, report_url=store.url(f"{folder}/report.html"))


def _keep_earlier(store: ObjectStore, folder: str) -> None:
    """Move what another gate left into `history/`: evidence is never lost."""
    raw = _read_evidence(store, folder)
    names = ("quarantine.parquet", "report.html", "evidence.json")
    if raw is not None:
        place = f"{folder}/history/{str(raw.get('gate_digest'))[:12]}"
        for name in names:
            if store.exists(f"{folder}/{name}"):
                store.put(f"{place}/{name}", store.get(f"{folder}/{name}"))
    for name in reversed(names):  # evidence first: half a removal must not look like a finished validation
        store.delete(f"{folder}/{name}")


def _read_evidence(store: ObjectStore, folder: str) -> dict[str, Any] | None:
    try:
        raw = json.loads(store.get(f"{folder}/evidence.json"))
    except (NotFound, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def _evidence(
    spec: PipelineSpec,
    snapshot: Snapshot,
    found: Examination,
    quarantine: Quarantine,
    result: ValidationResult,
    gate: str,
    cost: dict[str, float],
) -> dict[str, Any]:
    evidence = {
        "format": _FORMAT,
        "gate_digest": gate,
        "trusted": not found.problems and all(check.trusted for check in found.checks),
        "pipeline": spec.name,
        "description": spec.description,
        "snapshot": {
            "snapshot_id": snapshot.snapshot_id,
            "kind": snapshot.kind,
            "rows": snapshot.rows,
            "first_day": str(min(snapshot.days, default="")),
            "last_day": str(max(snapshot.days, default="")),
            "created_at_utc": snapshot.created_at_utc,
            "columns": [list(column) for column in snapshot.schema],
        },
        "suite": {
            "name": found.suite.name,
            "notes": found.suite.notes,
            "digest": found.suite.digest,
            "declared": found.suite.declared,
            "evaluated": sum(check.trusted and check.evaluated > 0 for check in found.checks),
            "problems": found.problems,
        },
        "limits": {
            "min_rows": spec.validation.min_rows,
            "max_quarantined_share": spec.validation.max_quarantined_share,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("penstock", "great-expectations", "pandas", "pyarrow", "numpy")},
        },
        "result": result.to_json(),
        "checks": [check.to_json() for check in found.checks],
        "always": [asdict(finding) for finding in found.always],
        "not_applicable": [
            {"name": check.name, "type": check.type, "severity": check.severity,
             "sentence": sentence(check), "status": "skipped", "reason": why}
            for check, why in found.skipped
        ],
        "days": [
            {"day": str(tally.day), "rows": tally.rows, "quarantined": len(tally.quarantined)}
            for tally in found.tallies
        ],
        "batches": found.batches,
        "quarantine": {
            "rows": quarantine.rows,
            "by_expectation": dict(quarantine.by_expectation.most_common()),
            "examples": quarantine.examples,
        },
        "cost": cost,
        "validated_at_utc": result.verdict.decided_at_utc,
    }  # fmt: skip
    safe: dict[str, Any] = plain(evidence)
    return safe


def _log_verdict(result: ValidationResult, cpu_s: float) -> None:
    verdict = result.verdict
    counts = {
        status: sum(item.status == status for item in verdict.findings) for status in ("pass", "warn", "fail")
    }
    log.info(
        "data gate %s: %d passed, %d warnings, %d failures; %s rows quarantined; %.1f CPU-s",
        verdict.outcome.upper(), counts["pass"], counts["warn"], counts["fail"], f"{result.quarantined_rows:,}", cpu_s,
    )  # fmt: skip
    for finding in verdict.findings:
        if finding.status != "pass":
            log.info("  [%s] %s: %s", finding.status, finding.name, finding.detail)
    log.info("report: %s", result.report_url)
