"""Is the expectation suite a gate? It must load, run on real rows, and notice rows that are bad on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from tasks.core import Finding
from tasks.core.partitions import read_partition, save_snapshot, table_schema, write_partition
from tasks.core.records import Snapshot
from tasks.wiring.ci.records import INFORM, PASS, CheckFailed, Checks, Skip
from tasks.wiring.ci.sample import KINDS, REQUIRED, plant
from tasks.wiring.context import Context


def suite_file(context: Context) -> str:
    """The suite can be read exactly as written, and the library knows every expectation in it."""
    from tasks.validation import engine, require_suite
    from tasks.validation.suite import read_suite

    require_suite(context.settings, context.spec)
    folder, name = context.settings.expectations_dir, context.spec.validation.suite
    suite = read_suite(folder, name)
    problems = [*suite.problems] or engine.problems(suite.checks)
    if problems:
        raise CheckFailed(
            "; ".join(problems),
            which=str(folder / f"{name}.json"),
            fix="correct what is named; docs/validation.md",
        )
    return (
        f"{len(suite.checks)} expectations, {sum(check.row_level for check in suite.checks)} of single rows"
    )


def planted_rows(checks: Checks, context: Context, snapshot: Snapshot) -> str:
    """Spoil half of the rows of one day in each way, and see that an expectation notices."""
    from tasks.validation.suite import read_suite

    spec = context.spec
    suite = read_suite(context.settings.expectations_dir, spec.validation.suite)
    columns_of = {check.name: check.columns for check in suite.checks}
    row_level = {check.name for check in suite.checks if check.row_level}
    partition = max(snapshot.partitions, key=lambda part: part.rows)
    clean = read_partition(context.store, partition)
    before = _findings(context, snapshot, partition.day, clean)
    noticed_kinds, missed = [], []
    for kind in KINDS:
        planted = plant(clean, spec, kind)
        if not planted.columns:
            continue
        after = _findings(context, snapshot, partition.day, planted.rows)
        caught = [
            name
            for name, finding in after.items()
            if name in columns_of and finding.status != PASS and _new(finding, before.get(name))
        ]
        seen = {column for name in caught for column in columns_of[name]}
        unseen = [column for column in planted.columns if column not in seen]
        if unseen:
            checks.note(INFORM, f"{kind}: no expectation notices them in {', '.join(unseen)}")
        if caught:
            noticed_kinds.append(kind)
            acts = any(after[name].status == "fail" or name in row_level for name in caught)
            only = "" if acts else "; they only warn: rows like these are trained on and scored"
            checks.note(PASS, f"{kind}: noticed by {_few(caught)}{only}")
        elif kind in REQUIRED:
            missed.append(f"{kind} in {', '.join(planted.columns)}")
    if missed:
        raise CheckFailed(
            f"no expectation notices half of the rows with {'; nor '.join(missed)}",
            which=f"suite {spec.validation.suite}",
            fix="add expect_column_values_to_not_be_null and expect_column_values_to_be_between for the columns that "
            "features are made from",
        )
    if not noticed_kinds:
        raise Skip("the source has no column besides key, time and label to plant faults in")
    return f"planted in {clean.num_rows:,} rows and noticed: {', '.join(noticed_kinds)}"


def _findings(context: Context, like: Snapshot, day: date, rows: Any) -> dict[str, Finding]:
    """What the data gate says of a day's rows, by name of the expectation."""
    from tasks.validation import validate

    partition = write_partition(context.store, day, rows)
    schema = table_schema(rows)
    snapshot = replace(
        like,
        snapshot_id=Snapshot.identity(context.spec.name, like.kind, schema, (partition,)),
        schema=schema,
        partitions=(partition,),
        parent_snapshot_id=None,
    )
    verdict = validate(context.settings, context.spec, save_snapshot(context.store, snapshot)).verdict
    return {finding.name: finding for finding in verdict.findings}


def _new(finding: Finding, before: Finding | None) -> bool:
    """Whether the planted rows, and not the day itself, made this finding."""
    return before is None or (finding.status, finding.detail) != (before.status, before.detail)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
