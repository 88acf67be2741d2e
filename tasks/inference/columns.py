"""Whether new rows' columns fit a table, and which ones the table has to be given first.

A table only grows: a column that it does not have yet is added, and earlier rows read as null there. A column
never changes its type, and those that every reader counts on are never left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.delta import FileName, TableFile
from tasks.core.errors import DataError
from tasks.core.object_store import ObjectStore
from tasks.inference.records import AUDIT, PREDICTIONS
from tasks.inference.tables import PREDICTION_COLUMNS

_REQUIRED = {
    PREDICTIONS: tuple(name for name in PREDICTION_COLUMNS if name != "event_date"),
    AUDIT: ("prediction_id", "event_time", "pipeline", "model_version", "run_id", "shard_id", "prediction"),
}


@dataclass(frozen=True)
class NewColumns:
    """The columns of files that are to be added to a table."""

    which: str
    """URL of the table, for messages."""
    required: tuple[str, ...]
    schema: pa.Schema

    @classmethod
    def of(cls, store: ObjectStore, folder: str, files: Sequence[TableFile]) -> NewColumns:
        """Read from one file of each attempt: only another attempt can have been of another release.

        Raises:
            DataError: Attempts wrote a column in different types.
        """
        which = store.url(folder)
        found: dict[str, pa.Field] = {}
        for path in _one_of_each_attempt(files):
            with store.open(f"{folder}/{path}") as file:
                schema = pq.read_schema(file).remove_metadata()
            for field in schema:
                known = found.setdefault(field.name, field)
                if not known.type.equals(field.type):
                    raise _other_type(which, field, known.type, "other files of the run")
        return cls(which, _REQUIRED[folder], pa.schema(list(found.values())))

    def table_schema(self) -> pa.Schema:
        """The schema of a table that holds nothing but these rows."""
        at = self.schema.get_field_index("event_time") + 1
        return self.schema.insert(at, pa.field("event_date", pa.date32()))

    def missing_in(self, table: pa.Schema) -> tuple[pa.Field, ...]:
        """Columns that the table has to be given, in their order; usually none.

        Raises:
            DataError: A column has another type in the table, or one that readers count on is not there.
        """
        absent = [name for name in self.required if name not in self.schema.names]
        if absent:
            raise DataError(
                f"the new rows have no column {', '.join(absent)}, which every reader counts on",
                which=self.which,
                fix="score the run with a release that writes it; nothing was published",
            )
        missing = []
        for field in self.schema:
            at = table.get_field_index(field.name)
            if at < 0:
                missing.append(field.with_nullable(True))
            elif not table.field(at).type.equals(field.type):
                raise _other_type(self.which, field, table.field(at).type, "the table")
        return tuple(missing)


def _one_of_each_attempt(files: Sequence[TableFile]) -> Iterator[str]:
    seen = set()
    for file in files:
        name = FileName.parse(file.path)
        token = name.attempt.split("-")[0] if name and not name.merged else file.path
        if token not in seen:
            seen.add(token)
            yield file.path


def _other_type(which: str, field: pa.Field, known: pa.DataType, where: str) -> DataError:
    return DataError(
        f"column {field.name} is {field.type} in the new rows and {known} in {where}",
        which=which,
        fix=f"give {field.name} the type {known} again, or write it under another name; nothing was published",
    )
