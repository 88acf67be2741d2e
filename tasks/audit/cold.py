"""The archive's files: a date's audit rows, re-encoded to cost little, and read back row by row.

What a column of the table costs is what it says that nothing else does:

- A prediction id is a function of pipeline, entity and event time: it is stored only where that does not give it
  (erased rows), which is checked at writing.
- Of the attributions stay the `top_k` largest, with `COLD_ATTRIBUTION_BITS` bits of fraction. What was taken away is
  in the residual, and the residual is the logit of the prediction less what stays: it is stored only where that
  differs by more than `_RESIDUAL_OFF`.
- Feature values stay as they are, a column for each feature, because a feature repeats itself more than a row does;
  or none stays, when the pipeline says so.

Rows are in order of id. The file's key-value metadata hold the first id of each row group: so a batch in which all
rows have one event time is found by its ids as any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.archive import ArchivedDate
from tasks.audit.rows import (
    AUDIT_SCHEMA,
    EARLIER_COLUMNS,
    TEXT_MAP,
    FeatureSet,
    feature_sets,
    rounded,
    with_texts,
)
from tasks.core.errors import DataError, DigestMismatch, NotFound
from tasks.core.ids import canonical_json, digest_bytes
from tasks.core.object_store import ObjectStore
from tasks.core.prediction_ids import PredictionIds
from tasks.core.records import JsonRecord
from tasks.core.sampling import Mask

COLD_FORMAT = 2
"""What `encode` writes; 1 was a copy of the table's rows, and is read too."""

COLD_ATTRIBUTION_BITS = 10
COLD_GROUP_ROWS = 32_768
"""Twice as many cost 2 % less and 1.6 times the time of a look-up (benchmarks/results/audit_cold.md)."""

EXPLANATION = pa.field("explanation", pa.string())

_LEVEL = 9
_RESIDUAL_OFF = 5e-5
_METADATA = b"penstock"
_DICTIONARY_BELOW = 0.35
_KEPT, _SHIFTS, _VALUED = "kept", "shifts", "valued"
_ENCODED = frozenset({"prediction_id", "attributions", "feature_values", "feature_texts"})
"""Columns of the table that the file has in another form."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Index(JsonRecord):
    """What the file says of itself."""

    cold_format: int
    first_ids: tuple[str, ...]
    """Of each row group."""
    widths: dict[str, Any]
    """Of each feature set: how many features, how many numeric, how many texts."""


def encode(table: pa.Table, *, top_k: int, values: bool) -> bytes:
    """The archive file of a date's rows; equal rows give equal bytes.

    Args:
        table: Rows in order of prediction id, `AUDIT_SCHEMA` and perhaps columns of a later release.
        top_k: How many attributions of a row stay.
        values: Whether feature values stay.

    Raises:
        DataError: Rows of one feature set have lists of different lengths.
    """
    table = table.combine_chunks()
    n = table.num_rows
    ids = _one(table, "prediction_id")
    columns: dict[str, pa.Array] = {
        name: _one(table, name) for name in table.column_names if name not in _ENCODED
    }
    columns["prediction_id"] = pc.if_else(_derivable(table, ids), pa.scalar(None, pa.string()), ids)
    micros = columns["event_time"].cast(pa.int64()).to_numpy()
    if not (micros % 1000).any():
        columns["event_time"] = columns["event_time"].cast(pa.timestamp("ms", tz="UTC"))
    columns |= _reduced(table, top_k)
    lists = [_one(table, name) for name in ("feature_values", "feature_texts")]
    kept = pc.and_(pc.is_valid(lists[0]), pc.is_valid(lists[1]))
    columns[_VALUED] = kept if values else pa.array(np.zeros(n, np.bool_))
    if values:
        for prefix, column in zip("vt", lists, strict=True):
            columns |= {f"{prefix}{place}": one for place, one in enumerate(_by_place(column))}
    index = _Index(
        cold_format=COLD_FORMAT,
        first_ids=tuple(ids[at].as_py() for at in range(0, n, COLD_GROUP_ROWS)),
        widths=_widths(table),
    )
    return _parquet(pa.table(columns), index)


def cold_rows(
    store: ObjectStore, archived: ArchivedDate, low: str, high: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of an archived date with low <= prediction_id <= high, in order of id.

    Args:
        store: The pipeline's store.
        archived: What the archive holds of the date; its state is `archived`.
        low: A prediction id or the beginning of one.
        high: The same; what sorts after every id, such as `~`, means all.
        columns: Which of `AUDIT_SCHEMA` and `explanation` are wanted; default: all, and those of a later release.

    Returns:
        Columns in the order asked for. `explanation` is `top` where attributions were taken away, those are null
        elements of `attributions`; else it is null.

    Raises:
        NotFound: The file is gone.
        DataError: It is damaged.
    """
    with _opened(store, archived) as file:
        if archived.format == 1:
            table = _copied_rows(file, low, high, columns, feature_sets(store))
        else:
            table = _encoded_rows(file, low, high, columns)
    return table if columns is None else table.select(list(columns))


def cold_marks(store: ObjectStore, archived: ArchivedDate) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(entity ids, erasure ids) of an archived date's rows, row group by row group; cheaper than whole rows.

    Raises:
        NotFound, DataError: As `cold_rows`.
    """
    with _opened(store, archived) as file:
        wanted = [name for name in ("entity_id", "erasure_id") if name in file.schema_arrow.names]
        for number in range(file.metadata.num_row_groups):
            rows = file.read_row_group(number, columns=wanted, use_threads=False)
            entities = _one(rows, "entity_id")
            marks = (
                _one(rows, "erasure_id") if "erasure_id" in wanted else pa.nulls(len(entities), pa.string())
            )
            yield entities, marks


def check_copy(store: ObjectStore, key: str, sha256: str, rows: int) -> None:
    """Read an archive file back, before anything that it stands for goes.

    Raises:
        DigestMismatch: It does not hold what was written.
    """
    data = store.get(key)
    if digest_bytes(data) != sha256 or pq.read_metadata(pa.BufferReader(data)).num_rows != rows:
        raise DigestMismatch(
            "the archive file does not hold what was written",
            which=store.url(key),
            fix="check the store; the rows are where they were, repeat the call",
        )


@contextmanager
def _opened(store: ObjectStore, archived: ArchivedDate) -> Iterator[pq.ParquetFile]:
    if archived.format > COLD_FORMAT:
        raise DataError(
            f"has format {archived.format}; this release knows {COLD_FORMAT} and below",
            which=store.url(archived.key),
            fix="read it with the release that wrote it, or a later one",
        )
    try:
        raw = store.open(archived.key)
    except NotFound as error:
        raise NotFound(
            f"the archive's file of {archived.event_date} is gone",
            which=store.url(archived.key),
            fix=f"restore it from a backup; its SHA-256 is {archived.sha256}",
        ) from error
    with raw:
        try:
            yield pq.ParquetFile(raw, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(
                f"the archive's file of {archived.event_date} is damaged: {error}",
                which=store.url(archived.key),
                fix=f"restore it from a backup; its SHA-256 is {archived.sha256}",
            ) from error


# -- writing


def _one(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    found = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return found.cast(found.type.value_type) if pa.types.is_dictionary(found.type) else found


def _derivable(table: pa.Table, ids: pa.Array) -> pa.Array:
    """Where the id is the function of the row that `_ids` computes; boolean, shape (rows,)."""
    entities, pipelines = _one(table, "entity_id"), _one(table, "pipeline")
    known = pc.and_(pc.is_valid(entities), pc.is_valid(pipelines))
    millis = _millis(_one(table, "event_time"))
    rows = pc.indices_nonzero(pc.and_(known, pa.array((millis >= 0) & (millis < 1 << 48))))
    derived = PredictionIds.of_parts(pipelines.take(rows), entities.take(rows), millis[rows.to_numpy()])
    found = np.zeros(table.num_rows, np.bool_)
    found[rows.to_numpy()] = pc.equal(derived.texts(), ids.take(rows)).to_numpy(zero_copy_only=False)
    return pa.array(found)


def _millis(times: pa.Array) -> Ints:
    """Event times in whole milliseconds since 1970."""
    found: Ints = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy() // 1000
    return found


def _reduced(table: pa.Table, top_k: int) -> dict[str, pa.Array]:
    """The columns that stand for attributions, residual and their bits."""
    lists = _one(table, "attributions")
    n = len(lists)
    explained = pc.is_valid(lists).to_numpy(zero_copy_only=False)
    widths = np.where(explained, pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), 0)
    places = max(1, -(-int(widths.max(initial=0)) // 8))
    bitmaps = np.zeros((n, places), np.uint8)
    residual = pc.fill_null(_one(table, "residual"), 0.0).to_numpy().astype(np.float64)
    kept_values: list[tuple[Ints, npt.NDArray[np.float32], Mask]] = []
    sums = np.zeros(n)
    flat = pc.fill_null(lists.values, float("nan")).to_numpy(zero_copy_only=False)
    offsets = lists.offsets.to_numpy()
    for width in np.unique(widths[explained]).tolist():
        rows = np.flatnonzero(explained & (widths == width))
        whole = flat[offsets[rows][:, None] + np.arange(width)].astype(np.float32)
        size = np.where(np.isnan(whole), -1.0, np.abs(whole))
        stays = size >= 0
        if width > top_k:
            stays &= np.zeros_like(stays)
            largest = np.argpartition(-size, top_k - 1, axis=1)[:, :top_k]
            np.put_along_axis(stays, largest, np.take_along_axis(size, largest, axis=1) >= 0, axis=1)
        short, _ = rounded(np.where(stays, whole, 0), np.zeros(len(rows), np.float32), COLD_ATTRIBUTION_BITS)
        sums[rows] = short.sum(axis=1, dtype=np.float64)
        residual[rows] += np.nansum(whole, axis=1, dtype=np.float64) - sums[rows]
        packed = np.packbits(stays, axis=1, bitorder="little")
        bitmaps[rows, : packed.shape[1]] = packed
        kept_values.append((rows, short, stays))
    counts = np.zeros(n, np.int64)
    for rows, _, stays in kept_values:
        counts[rows] = stays.sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = np.zeros(int(starts[-1]), np.float32)
    for rows, short, stays in kept_values:
        at = starts[rows][:, None] + np.cumsum(stays, axis=1) - 1
        values[at[stays]] = short[stays]
    derived = _logits(_one(table, "prediction")) - _floats(_one(table, "base_value")) - sums
    told = ~(np.abs(derived - residual) <= _RESIDUAL_OFF)  # also where there is no number to derive
    missing = pa.array(~explained)
    kind = pa.list_(pa.field("element", pa.float32()))
    return {
        _KEPT: pa.array([row.tobytes() for row in bitmaps], pa.binary(), mask=~explained),
        _SHIFTS: pa.ListArray.from_arrays(
            pa.array(starts.astype(np.int32)), pa.array(values), type=kind, mask=missing
        ),
        "residual": pa.array(residual.astype(np.float32), mask=~(explained & told)),
        "attribution_bits": pa.array(np.full(n, COLD_ATTRIBUTION_BITS, np.int8), mask=~explained),
    }


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = pc.fill_null(column, float("nan")).to_numpy().astype(np.float64)
    return found


def _logits(predictions: pa.Array) -> npt.NDArray[np.float64]:
    """Of float32 probabilities; not finite for null, 0 and 1."""
    p = _floats(predictions)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(p) - np.log1p(-p)


def _by_place(lists: pa.Array) -> Iterator[pa.Array]:
    """The first, second, ... element of every list, null where a list has no such."""
    widths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = lists.offsets.to_numpy()[:-1].astype(np.int64)
    for place in range(int(widths.max(initial=0))):
        yield lists.values.take(pa.array(offsets + place, mask=widths <= place))


def _widths(table: pa.Table) -> dict[str, list[int]]:
    """Of each feature set: lengths of its attributions, values and texts."""
    names = ("attributions", "feature_values", "feature_texts")
    lengths = pa.table(
        {
            "version": _one(table, "feature_set_version"),
            **{name: pc.list_value_length(_one(table, name)) for name in names},
        }
    )
    found: dict[str, list[int]] = {}
    for row in (
        lengths.group_by("version")
        .aggregate([(name, how) for name in names for how in ("min", "max")])
        .to_pylist()
    ):
        if any(row[f"{name}_min"] != row[f"{name}_max"] for name in names):
            raise DataError(
                "rows of one feature set have lists of different lengths",
                which=f"feature set {row['version']}",
                fix="verify the run that wrote them, and restore its files from a backup",
            )
        found[row["version"]] = [row[f"{name}_max"] or 0 for name in names]
    return dict(sorted(found.items()))


def _parquet(encoded: pa.Table, index: _Index) -> bytes:
    split, plain = [], []
    for field in encoded.schema:
        path = f"{field.name}.list.element" if field.name == _SHIFTS else field.name
        floats = pa.types.is_float32(field.type) or field.name == _SHIFTS
        if floats and (field.name in (_SHIFTS, "residual") or not _repeats(encoded.column(field.name))):
            split.append(path)
        elif field.name not in ("event_time", "source_row"):
            plain.append(path)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        encoded.schema,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=plain,
        column_encoding={
            **dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
            "event_time": "DELTA_BINARY_PACKED",
            "source_row": "DELTA_BINARY_PACKED",
        },
        dictionary_pagesize_limit=8 << 20,
        data_page_size=8 << 20,
        write_statistics=False,  # what a look-up needs is in the metadata
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(encoded, row_group_size=COLD_GROUP_ROWS)
        writer.add_key_value_metadata({_METADATA: canonical_json(index.to_json())})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _repeats(column: pa.ChunkedArray) -> bool:
    """Whether the first row group holds few distinct values: then a dictionary of them is smaller than streams."""
    sample = column.slice(0, COLD_GROUP_ROWS)
    return len(sample) > 0 and pc.count_distinct(sample).as_py() < _DICTIONARY_BELOW * len(sample)


# -- reading


def _copied_rows(
    file: pq.ParquetFile,
    low: str,
    high: str,
    columns: Sequence[str] | None,
    feature_set: Callable[[str], FeatureSet],
) -> pa.Table:
    """Of a file of format 1: the table's rows as they were."""
    wanted = None if columns is None else list(dict.fromkeys(("prediction_id", *columns)))
    if wanted is not None and "feature_texts" in wanted:
        wanted += [TEXT_MAP, "feature_set_version"]
    place = file.schema_arrow.get_field_index("prediction_id")
    groups = []
    for number in range(file.metadata.num_row_groups):
        bounds = file.metadata.row_group(number).column(place).statistics
        if bounds is None or not bounds.has_min_max or (bounds.min <= high and bounds.max >= low):
            groups.append(number)
    table = file.read_row_groups(groups, columns=wanted)
    ids = table.column("prediction_id")
    table = table.filter(pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high)))
    return _completed(with_texts(table, feature_set), columns)


def _completed(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """With all columns of this release that are wanted, in its order and types: null where the file has none."""
    fields = [field for field in (*AUDIT_SCHEMA, EXPLANATION) if columns is None or field.name in columns]
    found: dict[str, pa.Array | pa.ChunkedArray] = {
        field.name: table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in fields
    }
    if columns is None:  # of a later release: not this one's to drop
        later = (name for name in table.column_names if name not in (*found, *EARLIER_COLUMNS))
        found |= {name: table.column(name) for name in later}
    return pa.table(found)


def _encoded_rows(file: pq.ParquetFile, low: str, high: str, columns: Sequence[str] | None) -> pa.Table:
    index = _Index.from_json(json.loads((file.metadata.metadata or {})[_METADATA]))
    if index.cold_format != COLD_FORMAT:
        raise ValueError(f"it says format {index.cold_format}, its record another")
    firsts = index.first_ids
    parts = []
    for number, first in enumerate(firsts):
        # The last id of a group is below or equal to the first of the next: an id may have several scorings.
        if first <= high and (number + 1 == len(firsts) or firsts[number + 1] >= low):
            parts.append(_group_rows(file, number, index, low, high, columns))
    if not parts:
        return _completed(pa.table({}), columns)
    return pa.concat_tables(parts)


def _group_rows(
    file: pq.ParquetFile, number: int, index: _Index, low: str, high: str, columns: Sequence[str] | None
) -> pa.Table:
    keys = file.read_row_group(
        number, columns=["prediction_id", "event_time", "entity_id", "pipeline"], use_threads=False
    )
    rows, ids = _found(keys, low, high)
    names = [name for name in _needed(file, columns) if name not in keys.column_names]
    rest = file.read_row_group(number, columns=names, use_threads=False)
    whole = {name: _one(keys, name).take(rows) for name in keys.column_names}
    whole |= {name: _one(rest, name).take(rows) for name in names}
    found = {name: column for name, column in whole.items() if not _is_encoding(name)}
    found["prediction_id"] = ids
    wanted = {*AUDIT_SCHEMA.names, EXPLANATION.name} if columns is None else set(columns)
    if wanted & {"attributions", "residual", "explanation"}:
        found |= _expanded(whole, index)
    if "feature_values" in wanted:
        found["feature_values"] = _values(whole, index)
    if "feature_texts" in wanted:
        found["feature_texts"] = _texts(whole, index)
    return _completed(pa.table(found), columns)


def _is_encoding(name: str) -> bool:
    return name in (_KEPT, _SHIFTS, _VALUED) or (name[0] in "vt" and name[1:].isdigit())


def _needed(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str]:
    """Columns of the file from which these of the table are made."""
    there: list[str] = file.schema_arrow.names
    if columns is None:
        return there
    wanted = {*columns, "feature_set_version"}
    if wanted & {"attributions", "residual", "explanation"}:
        wanted |= {_KEPT, _SHIFTS, "residual", "prediction", "base_value"}
    prefixes = ("v" if "feature_values" in columns else "") + ("t" if "feature_texts" in columns else "")
    if prefixes:
        wanted |= {_VALUED, *(name for name in there if name[0] in prefixes and name[1:].isdigit())}
    return [name for name in there if name in wanted]


def _found(keys: pa.Table, low: str, high: str) -> tuple[pa.Array, pa.Array]:
    """(rows whose ids are within the bounds, their ids). Only ids of their milliseconds are computed."""
    stored = _one(keys, "prediction_id")
    millis = _millis(_one(keys, "event_time"))
    near = np.ones(len(millis), np.bool_)
    first, last = _bound(low), _bound(high)
    near &= (millis >= first) if first is not None else True
    near &= (millis <= last) if last is not None else True
    told = pc.is_valid(stored).to_numpy(zero_copy_only=False)
    derived = np.flatnonzero(near & ~told)
    ids = PredictionIds.of_parts(
        _one(keys, "pipeline").take(pa.array(derived)),
        _one(keys, "entity_id").take(pa.array(derived)),
        millis[derived],
    ).texts()
    rows = np.concatenate([derived, np.flatnonzero(told)])
    order = np.argsort(rows, kind="stable")
    ids = pa.concat_arrays([ids, stored.filter(pa.array(told))]).take(pa.array(order))
    within = pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high))
    return pa.array(rows[order]).filter(within), ids.filter(within)


def _bound(prefix: str) -> int | None:
    """The milliseconds in an id or in its beginning; None when it has none."""
    try:
        return int(prefix[:8] + prefix[9:13], 16) if len(prefix) >= 13 and prefix[8] == "-" else None
    except ValueError:
        return None


def _per_row(versions: pa.Array, index: _Index, which: int) -> Ints:
    """Length of that list, of (attributions, values, texts), by feature set; shape (rows,)."""
    encoded = versions.dictionary_encode()
    known = np.array([index.widths[one][which] for one in encoded.dictionary.to_pylist()] or [0], np.int64)
    found: Ints = known[pc.fill_null(encoded.indices, 0).to_numpy()]
    return found


def _expanded(whole: dict[str, pa.Array], index: _Index) -> dict[str, pa.Array]:
    kept, shifts = whole[_KEPT], whole[_SHIFTS]
    n = len(kept)
    explained = pc.is_valid(kept).to_numpy(zero_copy_only=False)
    widths = np.where(explained, _per_row(whole["feature_set_version"], index, 0), 0)
    offsets = np.concatenate([[0], np.cumsum(widths)])
    stays = np.zeros(int(offsets[-1]), np.bool_)
    rows = np.flatnonzero(explained)
    packed = np.frombuffer(b"".join(kept.drop_null().to_pylist()), np.uint8)
    bits = np.unpackbits(
        packed.reshape(len(rows), len(packed) // max(1, len(rows))), axis=1, bitorder="little"
    )
    for width in np.unique(widths[rows]).tolist():
        mine = widths[rows] == width
        stays[offsets[rows[mine]][:, None] + np.arange(width)] = bits[mine, :width] == 1
    flat = np.zeros(len(stays), np.float32)
    values = shifts.flatten().to_numpy()
    flat[stays] = values
    missing = pa.array(~explained)
    attributions = pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)),
        pa.array(flat, mask=~stays),
        type=AUDIT_SCHEMA.field("attributions").type,
        mask=missing,
    )
    counts = np.where(explained, pc.fill_null(pc.list_value_length(shifts), 0).to_numpy(), 0)
    ends = np.cumsum(counts)
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    sums = running[ends] - running[ends - counts]
    derived = _logits(whole["prediction"]) - _floats(whole["base_value"]) - sums
    told = pc.is_valid(whole["residual"]).to_numpy(zero_copy_only=False)
    residual = np.where(told, pc.fill_null(whole["residual"], 0).to_numpy(), derived).astype(np.float32)
    return {
        "attributions": attributions,
        "residual": pa.array(residual, mask=~explained),
        "explanation": pa.array(
            np.full(n, "top", object), pa.string(), mask=~(explained & (counts < widths))
        ),
    }


def _values(whole: dict[str, pa.Array], index: _Index) -> pa.Array:
    widths, missing, offsets = _lists_of(whole, index, 1)
    flat = np.full(int(offsets[-1]), np.nan, np.float32)
    for place in range(int(widths.max(initial=0))):
        rows = np.flatnonzero(widths > place)
        column = pc.fill_null(whole[f"v{place}"], float("nan")).to_numpy()
        flat[offsets[rows] + place] = column[rows]
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)),
        pa.array(flat, from_pandas=True),  # NaN stands for null, as in the table
        type=AUDIT_SCHEMA.field("feature_values").type,
        mask=missing,
    )


def _texts(whole: dict[str, pa.Array], index: _Index) -> pa.Array:
    widths, missing, offsets = _lists_of(whole, index, 2)
    n, places = len(widths), int(widths.max(initial=0))
    order = np.zeros(int(offsets[-1]), np.int64)
    for place in range(places):
        rows = np.flatnonzero(widths > place)
        order[offsets[rows] + place] = place * n + rows
    items = pa.concat_arrays([whole[f"t{place}"] for place in range(places)] or [pa.array([], pa.string())])
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)),
        items.take(pa.array(order)),
        type=AUDIT_SCHEMA.field("feature_texts").type,
        mask=missing,
    )


def _lists_of(whole: dict[str, pa.Array], index: _Index, which: int) -> tuple[Ints, pa.Array, Ints]:
    """(length of each row's list, which rows have none, where each begins)."""
    valued = whole[_VALUED].to_numpy(zero_copy_only=False)
    widths = np.where(valued, _per_row(whole["feature_set_version"], index, which), 0)
    return widths, pa.array(~valued), np.concatenate([[0], np.cumsum(widths)])
