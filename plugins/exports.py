"""Audit records as files: CSV, Parquet and JSON lines.

A table has the fields of `AuditRecord`, with `features` and `attributions` as a column each: `feature.<name>` and
`attribution.<name>`. Records of several models have the columns of all of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import IO, TYPE_CHECKING, Any, Literal

from plugins.json_values import jsonable
from plugins.problems import TooManyRows
from tasks.audit import AuditRecord

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["csv", "parquet", "jsonl"]
MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
}
MAX_EXPORT_ROWS = 50_000
"""Of one answer: about 50 MB of memory in the API server."""
_IN_MEMORY = 8 << 20
_BLOCK = 1 << 16
_SPREAD = ("features", "attributions")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def exported(
    blocks: Iterable[tuple[AuditRecord, ...]], kind: Format, *, most: int = MAX_EXPORT_ROWS
) -> IO[bytes]:
    """The records as a file, positioned at its start; the caller closes it.

    Everything is read before this returns, so an error is still an error's answer and never half a file.

    Raises:
        TooManyRows: There are more than `most` records.
    """
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (the caller closes it)
    try:
        if kind == "jsonl":
            for block in _bounded(blocks, most):
                file.writelines(json.dumps(jsonable(one.to_json())).encode() + b"\n" for one in block)
        else:
            _write_table([_table(block) for block in _bounded(blocks, most)], kind, file)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file  # type: ignore[return-value]  # a spooled file is an IO[bytes] in all but its class


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The file's content in blocks; closes it."""
    with file:
        while block := file.read(_BLOCK):
            yield block


def _bounded(blocks: Iterable[tuple[AuditRecord, ...]], most: int) -> Iterator[tuple[AuditRecord, ...]]:
    seen = 0
    for block in blocks:
        seen += len(block)
        if seen > most:
            raise TooManyRows(
                f"holds more than {most:,} predictions",
                which="export",
                fix="narrow the window or the filter, or read it page by page",
            )
        yield block


def _write_table(tables: list[pa.Table], kind: Format, file: Any) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    whole = pa.concat_tables(tables, promote_options="permissive") if tables else _table(())
    whole = whole.select(_column_order(whole.column_names))
    if kind == "parquet":
        pq.write_table(whole, file, compression="zstd")
    else:
        pyarrow.csv.write_csv(_without_formulas(whole), file)


def _table(records: tuple[AuditRecord, ...]) -> pa.Table:
    """Records as columns. What is null in all of them has Arrow's null type until tables meet."""
    import pyarrow as pa

    plain = [field.name for field in fields(AuditRecord) if field.name not in _SPREAD]
    columns: dict[str, list[Any]] = {
        name: [_cell(getattr(record, name)) for record in records] for name in plain
    }
    for group, prefix in zip(_SPREAD, ("feature.", "attribution."), strict=True):
        values = [getattr(record, group) or {} for record in records]
        for name in dict.fromkeys(name for one in values for name in one):
            columns[prefix + name] = [one.get(name) for one in values]
    return pa.table(columns)


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, tuple) else value


def _column_order(names: list[str]) -> list[str]:
    """Fields first, then features, then attributions, each as they came."""
    return sorted(names, key=lambda name: (name.startswith("attribution."), name.startswith("feature.")))


def _without_formulas(table: pa.Table) -> pa.Table:
    """Texts that a spreadsheet would run as a formula get a leading apostrophe."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for at, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        column = table.column(at)
        risky = pc.fill_null(pc.is_in(pc.utf8_slice_codeunits(column, 0, 1), pa.array(_FORMULA)), False)
        marked = pc.if_else(risky, pc.binary_join_element_wise("'", column, ""), column)
        table = table.set_column(at, field, marked)
    return table
