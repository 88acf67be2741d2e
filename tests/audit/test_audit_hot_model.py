"""Any order of appends, retries, seals, folds, deaths and reopenings leaves what a plain dict would hold."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from hot_support import columns_of, online_row, warm_rows
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from toy_installation import TOY_PROJECT

from tasks.audit.hot import HotLimits, HotLog, fold, hot_rows
from tasks.core import Settings, load_pipeline
from tasks.core.crash_points import observe

FOLD_POINTS = [
    "before-fold-file",
    "after-fold-file",
    "after-fold-record",
    "before-fold-commit",
    "after-fold-commit",
    "before-segment-delete",
    "during-segment-delete",
]


class Died(BaseException):
    """The end of the process."""


class HotLogIsADict(RuleBasedStateMachine):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.settings = Settings.at_home(self.home, project=TOY_PROJECT)
        self.toy = load_pipeline(self.settings, "toy")
        self.model: dict[tuple[str, str], float] = {}
        self.acknowledged: list[int] = []
        self.turns = itertools.count()
        self.log = self.opened()

    def opened(self) -> HotLog:
        return HotLog(self.settings, self.toy, node="a", limits=HotLimits(seal_rows=5))

    def teardown(self) -> None:
        observe(None)
        self.log.close()
        fold(self.settings, self.toy, seal=True)
        found = [(row["prediction_id"], row["source_key"]) for row in warm_rows(self.settings, self.toy)]
        assert sorted(found) == sorted(self.model)
        shutil.rmtree(self.home)

    def put(self, numbers: list[int]) -> None:
        rows = [online_row(number) for number in numbers]
        offered = [columns_of(rows)] if rows and next(self.turns) % 2 else rows
        new = {(row.prediction_id, row.request_id) for row in rows} - set(self.model)
        assert self.log.append(offered).added == len(new)
        self.model.update({(row.prediction_id, row.request_id): row.prediction for row in rows})
        self.acknowledged += numbers

    @rule(count=strategies.integers(1, 4))
    def append(self, count: int) -> None:
        self.put(list(itertools.islice(self.numbers, count)))

    @rule(back=strategies.integers(1, 12))
    def retry(self, back: int) -> None:
        self.put(self.acknowledged[-back:][:3])

    @rule()
    def seal(self) -> None:
        self.log.seal()

    @rule(sealing=strategies.booleans())
    def fold_by_another_process(self, sealing: bool) -> None:
        fold(self.settings, self.toy, seal=sealing)

    @rule(point=strategies.sampled_from(FOLD_POINTS))
    def die_while_folding(self, point: str) -> None:
        self.die(point, lambda: self.log.fold(seal=True))

    @rule(point=strategies.sampled_from(["before-append-commit", "after-append-commit"]))
    def die_while_appending(self, point: str) -> None:
        number = next(self.numbers)
        row = online_row(number)
        self.die(point, lambda: self.log.append([row]))
        if point == "after-append-commit":  # durable, and nobody was told
            self.model[row.prediction_id, row.request_id] = row.prediction
        self.put([number])

    def die(self, point: str, what) -> None:
        def at(name: str) -> None:
            if name == point:
                raise Died

        observe(at)
        try:
            what()
        except Died:
            pass
        finally:
            observe(None)
        self.log.close()
        self.log = self.opened()

    @invariant()
    def a_reader_sees_every_row_once(self) -> None:
        """While a folded segment is not deleted yet its rows are in both places, and the reader knows the copies."""
        rows = hot_rows(self.settings, self.toy, "", "~").to_pylist() + warm_rows(self.settings, self.toy)
        seen = {(row["prediction_id"], row["run_id"], row["source_key"]) for row in rows}
        assert {(identifier, request_id) for identifier, _, request_id in seen} == set(self.model)
        assert len(seen) == len(self.model)


TestHotLogIsADict = HotLogIsADict.TestCase
TestHotLogIsADict.settings = settings(
    max_examples=8, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)
