"""The gate's rules about the model itself: pure functions of the evidence."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from tasks.core import Finding, PipelineSpec
from tasks.evaluation.check_records import FolderTests, Footprint, ModelChecks
from tasks.evaluation.records import Evaluation
from tasks.evaluation.signature import signature_findings


def model_findings(spec: PipelineSpec, evaluation: Evaluation) -> Iterable[Finding]:
    """The findings on the model itself; evidence that lacks them fails."""
    checks = evaluation.model_checks
    if checks is None:
        yield Finding("model checks", "fail", "were not made: evaluate the model again")
        return
    yield from _footprint(spec, checks.footprint, has_champion=_compared(evaluation))
    yield from signature_findings(spec, checks)
    yield _dependencies(spec, checks)
    yield from _tests(spec, checks.tests)


def _compared(evaluation: Evaluation) -> bool:
    return evaluation.champion_digest not in (None, evaluation.candidate_digest)


def _footprint(spec: PipelineSpec, found: Footprint, *, has_champion: bool) -> Iterable[Finding]:
    gates, load = spec.gates, found.candidate
    if load is None:
        yield Finding(
            "footprint",
            "fail",
            f"the model could not be measured: {found.candidate_error or 'no reason given'}",
        )
        return
    yield _within(
        "latency",
        f"one row takes {load.p50_ms:.1f} ms, 99th percentile {load.p99_ms:.1f} ms",
        "look at features.py and at the size of the network, or raise gates.max_latency_ms_p99",
        load.p99_ms,
        gates.max_latency_ms_p99,
    )
    yield _within(
        "memory",
        f"peak {load.peak_memory_mb:,.0f} MiB, of which {load.growth_mb:,.0f} MiB came after the first batch of "
        f"{load.batch_rows:,} rows",
        "shrink the network, lower inference.batch_rows, or raise gates.max_memory_mb",
        load.peak_memory_mb,
        gates.max_memory_mb,
    )
    name, limit = "cost beside the champion", gates.max_latency_ratio
    if limit is None:
        yield Finding(name, "pass", "skipped: gates.max_latency_ratio is null")
    elif not has_champion:
        yield Finding(name, "pass", "skipped: there is no other champion to compare with")
    elif found.one_row_ratio is None or found.batch_ratio is None:
        reason = found.champion_error or "it could not be loaded"
        yield Finding(name, "warn", f"the champion could not be measured: {reason}", limit=limit)
    else:
        yield _within(
            name,
            f"CPU time is {found.one_row_ratio:.2f} times the champion's for one row, {found.batch_ratio:.2f} times "
            f"for {load.batch_rows:,}",
            "if the model is worth it, raise gates.max_latency_ratio",
            max(found.one_row_ratio, found.batch_ratio),
            limit,
        )


def _within(name: str, what: str, advice: str, value: float, limit: float) -> Finding:
    if value <= limit:
        return Finding(name, "pass", f"{what}; at most {limit:g}", value=value, limit=limit)
    return Finding(name, "fail", f"{what}, above {limit:g}: {advice}", value=value, limit=limit)


def _dependencies(spec: PipelineSpec, checks: ModelChecks) -> Finding:
    name, patterns = "dependencies", spec.gates.forbidden_licences
    if not checks.dependencies:
        return Finding(name, "fail", "not known: the model's process did not tell what it imports")
    unknown = [item.name for item in checks.dependencies if not item.licence]
    shown = f"Python {checks.python_version} and {len(checks.dependencies)} distributions"
    if not patterns:
        silent = f"; no licence is stated by {', '.join(unknown)}" if unknown else ""
        return Finding(name, "pass", f"{shown}; no licence is forbidden{silent}")
    bad = [
        f"{item.name} ({item.licence})"
        for item in checks.dependencies
        if any(fnmatch.fnmatchcase(item.licence.lower(), pattern.lower()) for pattern in patterns)
    ]
    if bad:
        detail = f"has a licence of gates.forbidden_licences: {', '.join(bad)}"
        return Finding(name, "fail", detail, value=float(len(bad)), limit=0.0)
    if unknown:
        detail = f"states no licence, so none can be ruled out: {', '.join(unknown)}"
        return Finding(name, "warn", detail, value=float(len(unknown)), limit=0.0)
    return Finding(name, "pass", f"{shown}; none has a forbidden licence", value=0.0, limit=0.0)


def _tests(spec: PipelineSpec, tests: FolderTests) -> Iterable[Finding]:
    name = "tests"
    if not tests.found:
        if spec.gates.require_tests:
            detail = f"no tests: write pipelines/{spec.name}/tests, or set gates.require_tests: false"
            yield Finding(name, "fail", detail)
        else:
            yield Finding(name, "pass", "skipped: no tests")
        return
    if tests.error:
        yield Finding(name, "fail", tests.error)
    for failure in tests.failures:
        yield Finding(f"test {failure.name}", "fail", failure.reason)
    if tests.error or tests.failures:
        return
    skipped = f", {tests.skipped} skipped" if tests.skipped else ""
    if not tests.passed:
        status = "fail" if spec.gates.require_tests else "pass"
        yield Finding(name, status, f"skipped: all {tests.skipped} tests of the folder skip themselves")
    else:
        yield Finding(name, "pass", f"{tests.passed} tests of the folder passed{skipped}")
