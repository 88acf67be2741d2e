"""What a round left: resume the run, sweep, verify, and compare both tables with the model's own scores."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta

from tasks.core.clock import utc_now
from tasks.core.errors import PenstockError, TransientError, error_kind
from tasks.core.object_store import open_store
from tasks.inference.maintenance import sweep_orphans
from tasks.inference.records import AUDIT, PREDICTIONS
from tasks.inference.torture.report import FaultLine
from tasks.inference.torture.strikes import Round
from tasks.inference.torture.watching import Seen, Wanted, see, unnamed_files
from tasks.inference.torture.workload import TORTURED, drive
from tasks.inference.verification import verify

log = logging.getLogger(__name__)


def judge(now: Round, wanted: Wanted) -> FaultLine:
    """Bring the run to its end and count; what is wrong is added to the round's problems."""
    problems = now.watch.problems
    _resume(now)
    swept, left = _sweep_and_verify(now, wanted)
    counts: Counter[str] = Counter()
    for table in (PREDICTIONS, AUDIT):
        try:
            seen = see(now.settings, now.spec, table, wanted.run_id)
        except TransientError as error:
            problems.append(str(error))
            seen = Seen((), 0)
        counts["lost"] += len(set(wanted.scores) - seen.ids)
        counts["doubled"] += len(seen.rows) - len(seen.ids)
        counts["changed"] += len({one for one, score in seen.rows if wanted.scores.get(one, -1.0) != score})
        if table == PREDICTIONS:
            counts["doubled"] += seen.others  # the rows of the run before, beside those that replace them
    problems += [f"{number} rows are {what}" for what, number in counts.items() if number]
    if left:
        problems.append(f"{left} files that nothing names were not swept")
    return FaultLine(
        fault=now.scenario.fault,
        rounds=1,
        times=now.times,
        looks=now.watch.looks,
        lost=counts["lost"],
        doubled=counts["doubled"],
        changed=counts["changed"],
        partial_seen=now.watch.partial,
        orphans_swept=swept,
        orphans_left=left,
        problems=len(problems),
    )


def _resume(now: Round) -> None:
    problems = now.watch.problems
    for _ in range(3):
        try:
            drive(now.settings, now.spec, TORTURED)
            return
        except PenstockError as error:
            if error_kind(error) == "terminal":
                problems.append(f"the resume failed: {error}")
                return
        except Exception as error:  # a bug of the protocol: found, and its store kept
            log.exception("The resume failed.")
            problems.append(f"the resume failed: {type(error).__name__}: {error}")
            return
    problems.append("three resumes did not finish the run")


def _sweep_and_verify(now: Round, wanted: Wanted) -> tuple[int, int]:
    """(files that no record names which were swept, those that were left)."""
    problems = now.watch.problems
    swept = left = 0
    try:
        store = open_store(now.settings, prefix=now.spec.prefix)
        orphans = unnamed_files(store, wanted.run_id)
        older_than = timedelta(seconds=2 * now.spec.inference.shard_timeout_s)
        sweep_orphans(now.settings, now.spec, older_than=older_than, clock=lambda: utc_now() + 2 * older_than)
        left = len(unnamed_files(store, wanted.run_id))
        swept = len(orphans) - left
        found = verify(now.settings, now.spec, wanted.run_id)
        problems += [f"verify: {problem}" for problem in found.problems]
        if not found.ok and not found.problems:
            problems.append("verify is not ok")
    except Exception as error:  # as above
        problems.append(f"the check failed: {type(error).__name__}: {error}")
    return swept, left
