"""Read the tables as anybody may, while drivers work and after: none of the code that publishes has a part in it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tasks.core.delta import FileName
from tasks.core.errors import TransientError
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import AUDIT, PREDICTIONS, read_plan, read_shard_records
from tasks.inference.torture.processes import PATIENCE_S, Driver

_WATCH_S = 0.02


@dataclass(frozen=True)
class Wanted:
    """What the tables must hold in the end."""

    run_id: str
    scores: dict[str, float]
    """By prediction id; from the model itself, so a driver that is wrong even undisturbed is found too."""


@dataclass(frozen=True)
class Seen:
    """What a reader of a table sees: ids with scores of the tortured run, and rows of other runs."""

    rows: tuple[tuple[str, float], ...]
    others: int

    @property
    def ids(self) -> set[str]:
        """Of the tortured run."""
        return {prediction_id for prediction_id, _ in self.rows}


def see(settings: Settings, spec: PipelineSpec, table: str, run_id: str) -> Seen:
    """What the table holds now; nothing when there is none.

    Raises:
        TransientError: It cannot be read.
    """
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    score = "score" if table == PREDICTIONS else "prediction"
    store = open_store(settings, prefix=spec.prefix)
    try:
        delta = DeltaTable(store.url(table), storage_options=store.storage_options() or None)
        rows = delta.to_pyarrow_table(columns=["prediction_id", score, "run_id"]).to_pylist()
    except TableNotFoundError:
        return Seen((), 0)
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise TransientError(
            f"cannot be read: {error}", which=store.url(table), fix="see what the round did to it"
        ) from error
    own = tuple((row["prediction_id"], row[score]) for row in rows if row["run_id"] == run_id)
    return Seen(own, len(rows) - len(own))


def unnamed_files(store: ObjectStore, run_id: str) -> set[str]:
    """Data files of the tortured run that no shard record names, found without the code that sweeps."""
    shards = [task.shard for task in read_plan(store, run_id).shards]
    records = read_shard_records(store, run_id, shards)
    named = {f"{PREDICTIONS}/{file.path}" for record in records for file in record.files}
    named |= {f"{AUDIT}/{file.path}" for record in records for file in record.audit_files}
    found = set()
    for table in (PREDICTIONS, AUDIT):
        for info in store.list(table):
            name = FileName.parse(info.key.removeprefix(f"{table}/"))
            if name is not None and name.run_id == run_id and info.key not in named:
                found.add(info.key)
    return found


class Watch:
    """Looks at the tables of one round, and keeps what was wrong."""

    def __init__(self, settings: Settings, spec: PipelineSpec, wanted: Wanted, *, replaces: bool) -> None:
        self._settings = settings
        self._spec = spec
        self._wanted = wanted
        self._before = len(wanted.scores) if replaces else 0
        self.looks = 0
        self.partial = 0
        self.problems: list[str] = []

    def look(self) -> None:
        """Read the table as anybody may at this moment: all of the run and nothing else, or none of it."""
        self.looks += 1
        run_id, scores = self._wanted.run_id, self._wanted.scores
        try:
            seen = see(self._settings, self._spec, PREDICTIONS, run_id)
            # Read after the predictions: audit rows are published first, so whatever was seen has its rows there.
            audit = see(self._settings, self._spec, AUDIT, run_id).ids if seen.rows else set()
        except TransientError as error:
            self.problems.append(str(error))
            return
        whole = seen.ids == set(scores) and not seen.others
        none = not seen.rows and seen.others == self._before
        explained = seen.ids <= audit
        if not (whole or none) or not explained:
            self.partial += 1
            self.problems.append(
                f"a reader saw {len(seen.ids)} of {len(scores)} rows of the run beside {seen.others} "
                f"of the run before{'' if explained else ', and not all of them had audit rows'}"
            )

    def until_idle(self, driver: Driver, until: float | None = None) -> None:
        """Look again and again while a driver works, until it stops, ends or the moment has come."""
        limit = time.monotonic() + PATIENCE_S if until is None else until
        pause_s = _WATCH_S
        while driver.state() == "running":
            left = limit - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause_s, left))
            if left > 2 * pause_s:
                began = time.monotonic()
                self.look()
                # A look costs work that the drivers then lack: at most a third of the time.
                pause_s = max(_WATCH_S, 2 * (time.monotonic() - began))
