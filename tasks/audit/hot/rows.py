"""Online predictions: what the server hands in, how rows lie in a segment, and how they become audit rows."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.rows import AUDIT_SCHEMA, audit_table
from tasks.core.clock import epoch_micros
from tasks.core.errors import DataError
from tasks.core.ids import event_millis, prediction_id
from tasks.core.object_store import ObjectStore
from tasks.core.prediction_ids import PredictionIds
from tasks.core.records import JsonRecord
from tasks.core.sampling import Mask
from tasks.core.scored import ScoredRows

MAX_REQUEST_ID = 200
"""Characters of a request id."""

ID_BYTES = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000
_NONE = -(2**63)
"""Stands for "no time" in packed rows."""
_UTC = pa.timestamp("us", tz="UTC")
_CHECK = struct.Struct("<I")
_HEX, _DASHES, _FIRST_HALF = "0123456789abcdef", (8, 13), 18
_encode = json.JSONEncoder(ensure_ascii=False, separators=("\n", ":")).encode
_NAN = float("nan")
_OTHER_COLUMNS = 2
"""Texts of a row before those of its features: request id and entity id."""


class RowsDamaged(DataError):
    """Packed rows do not hold what was written: their check sum differs."""


@dataclass(frozen=True)
class OnlineModel(JsonRecord):
    """What all online predictions of one loaded model share. A segment holds it once, not with every row."""

    pipeline: str
    model_version: int
    bundle_digest: str
    feature_computation_version: str
    """As the bundle says: declared version and digest of `features.py`."""
    names: tuple[str, ...]
    """All features, in the order of `OnlineRow.attributions`."""
    numeric: tuple[str, ...]
    """Those that are numbers; the others are text."""
    explainer: str
    explainer_version: str
    background_id: str
    base_value: float | None = None
    """Logit of the baseline; None when the server explains nothing."""

    def __post_init__(self) -> None:
        if self.base_value is not None and not math.isfinite(self.base_value):
            raise DataError(
                f"has the base value {self.base_value}",
                which=f"model version {self.model_version} of pipeline {self.pipeline}",
                fix="give the logit of the baseline, or None when nothing is explained",
            )

    @cached_property
    def textual(self) -> tuple[str, ...]:
        numbers = set(self.numeric)
        return tuple(name for name in self.names if name not in numbers)

    @cached_property
    def texts_of_row(self) -> int:
        """How many texts a packed row has: request id, entity id, and those of its features."""
        return _OTHER_COLUMNS + len(self.textual)

    @cached_property
    def numbers_in_order(self) -> tuple[str, ...]:
        """`numeric` in the order of `names`."""
        numbers = set(self.numeric)
        return tuple(name for name in self.names if name in numbers)

    @cached_property
    def layout(self) -> np.dtype[np.void]:
        """The numbers of a packed row."""
        return np.dtype(
            [
                ("event_us", "<i8"),
                ("scored_us", "<i8"),
                ("asof_us", "<i8"),
                ("prediction", "<f4"),
                ("residual", "<f4"),
                ("values", "<f4", (len(self.numeric),)),
            ]
        )

    @cached_property
    def _numbers(self) -> struct.Struct:
        """`layout` of one row."""
        return struct.Struct(f"<qqqff{len(self.numeric)}f")

    @cached_property
    def _attributions(self) -> struct.Struct:
        return struct.Struct(f"<{len(self.names)}f")


@dataclass(frozen=True)
class OnlineRow:
    """One prediction that was made online.

    Model version, `prediction_id` and `request_id` are its identity: handed in again, it is not added again.
    """

    model: OnlineModel
    request_id: str
    """The client's; a retry has the same."""
    entity_id: str
    """`tasks.core.ids.entity_id` of the entity key."""
    event_time: datetime
    prediction: float
    features: Mapping[str, float | str | None]
    """Value by name, as the model saw it; every name of the model."""
    scored_at: datetime
    attributions: Sequence[float] | None = None
    """Shifts on the logit scale, in the order of `model.names`; None when it was not explained."""
    residual: float | None = None
    """Logit - base value - sum of attributions."""
    feature_asof: datetime | None = None
    """The moment that the features are about; None: the event time."""

    @cached_property
    def prediction_id(self) -> str:
        """The same as in batch (I5)."""
        return prediction_id(self.model.pipeline, self.entity_id, event_millis(self.event_time))


@dataclass(frozen=True)
class OnlineRows:
    """Predictions of one model that were made online, as columns: n rows, k of them explained, F features.

    What `OnlineRow` says of one row holds here for each; many cost a small part of what they cost one by one.
    """

    model: OnlineModel
    prediction_ids: PredictionIds
    """Of the pipeline, the entity ids and the event times (I5)."""
    request_ids: Sequence[str]
    entity_ids: pa.Array | pa.ChunkedArray
    """string, shape (n,)."""
    event_us: npt.NDArray[np.int64]
    """Event times, microseconds since 1970 UTC, shape (n,)."""
    predictions: npt.NDArray[np.float32]
    """Shape (n,)."""
    features: pa.Table
    """The F columns of `model.names`, as the model saw them; numbers and texts."""
    scored_us: npt.NDArray[np.int64]
    """Moments of scoring, microseconds since 1970 UTC, shape (n,)."""
    explained: Mask
    """Shape (n,); which rows have attributions."""
    attributions: npt.NDArray[np.float32]
    """Shape (k, F), logit scale: of the k explained rows, in their order."""
    residual: npt.NDArray[np.float32]
    """Shape (k,): logit - base value - sum of attributions."""


@dataclass(frozen=True)
class PackedRows:
    """n rows of one model as bytes, part by part; rows of several are joined by joining each part."""

    model: OnlineModel
    ids: bytes
    """16 for each row: its prediction id."""
    numbers: bytes
    """`model.layout` for each row."""
    explained: bytes
    """One for each row: 1 where it has attributions."""
    attributions: bytes
    """float32, shape (k, F), of the k explained rows."""
    texts: bytes
    """JSON values, a line for each: request id, entity id, textual features, row after row."""

    def __len__(self) -> int:
        return len(self.explained)

    @classmethod
    def joined(cls, parts: Sequence[PackedRows]) -> PackedRows:
        """All rows, one part after the other; the parts, one or more, are of one model."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            parts[0].model,
            b"".join([part.ids for part in parts]),
            b"".join([part.numbers for part in parts]),
            b"".join([part.explained for part in parts]),
            b"".join([part.attributions for part in parts]),
            b"\n".join([part.texts for part in parts]),
        )

    @property
    def body(self) -> bytes:
        """All but the ids, with a check sum over everything before it."""
        payload = b"".join((self.numbers, self.explained, self.attributions, self.texts))
        return _CHECK.pack(zlib.crc32(payload, zlib.crc32(self.ids))) + payload

    @classmethod
    def of_body(cls, model: OnlineModel, ids: bytes, body: bytes, which: str) -> PackedRows:
        """What `ids` and `body` were made of.

        Args:
            which: Names the block in an error.

        Raises:
            RowsDamaged: It is not what was written.
        """
        n = len(ids) // ID_BYTES
        payload = memoryview(body)[_CHECK.size :]
        if (
            not n
            or len(body) <= _CHECK.size
            or _CHECK.unpack_from(body)[0] != zlib.crc32(payload, zlib.crc32(ids))
        ):
            raise RowsDamaged(
                "rows do not hold what was written", which=which, fix="restore the segment from a backup"
            )
        end = n * model.layout.itemsize
        explained = bytes(payload[end : end + n])
        more = end + n + explained.count(b"\1") * len(model.names) * 4
        return cls(
            model,
            ids,
            bytes(payload[:end]),
            explained,
            bytes(payload[end + n : more]),
            bytes(payload[more:]),
        )

    @property
    def prediction_ids(self) -> PredictionIds:
        return ids_of(self.ids)

    @property
    def millis(self) -> tuple[int, int]:
        """First and last millisecond of the ids."""
        upper = np.frombuffer(self.ids, ">u8")[::2]
        return int(upper.min()) >> 16, int(upper.max()) >> 16

    @property
    def columns(self) -> list[list[str | None]]:
        """The texts by column: request ids, entity ids, then each textual feature."""
        values = json.loads(b"[" + self.texts.replace(b"\n", b",") + b"]") if self.texts else []
        width = self.model.texts_of_row
        return [values[at::width] for at in range(width)]

    def where(self, wanted: Mask) -> PackedRows:
        """The rows at which `wanted`, shape (n,), is true."""
        if wanted.all():
            return self
        model, width = self.model, self.model.texts_of_row
        explained = np.frombuffer(self.explained, np.bool_)
        attributions = np.frombuffer(self.attributions, "<f4").reshape(-1, len(model.names))
        breaks = np.flatnonzero(np.frombuffer(self.texts, np.uint8) == ord("\n"))
        starts = np.concatenate([[0], breaks[width - 1 :: width] + 1])[wanted].tolist()
        ends = np.append(breaks[width - 1 :: width], len(self.texts))[wanted].tolist()
        return PackedRows(
            model,
            np.frombuffer(self.ids, f"V{ID_BYTES}")[wanted].tobytes(),
            np.frombuffer(self.numbers, model.layout)[wanted].tobytes(),
            explained[wanted].tobytes(),
            attributions[wanted[explained]].tobytes(),
            b"\n".join([self.texts[start:end] for start, end in zip(starts, ends, strict=True)]),
        )

    def identities(self) -> list[bytes]:
        """16 bytes for each row's identity."""
        requests = json.loads(b"[" + b",".join(self.texts.split(b"\n")[:: self.model.texts_of_row]) + b"]")
        return row_keys(self.model, self.prediction_ids, requests)


def lines(texts: Sequence[str | None]) -> bytes:
    """JSON values, a line for each: JSON writes a line break within a text as an escape."""
    return _encode(texts)[1:-1].encode()


def ids_of(ids: bytes) -> PredictionIds:
    """Prediction ids of `PackedRows.ids`."""
    return PredictionIds(np.frombuffer(ids, ">u8").reshape(-1, 2).astype(np.uint64))


def row_key(model: OnlineModel, identifier: str, request_id: str) -> bytes:
    """16 bytes for the identity of a row."""
    return hashlib.blake2b(f"{_key_prefix(model)}{identifier}{request_id}".encode(), digest_size=16).digest()


def row_keys(
    model: OnlineModel, identifiers: PredictionIds, request_ids: Iterable[str | None]
) -> list[bytes]:
    """`row_key` of each row."""
    requests = pa.array(request_ids, pa.string())
    joined = pc.binary_join_element_wise(_key_prefix(model), identifiers.texts(), requests, "")
    blake2b = hashlib.blake2b
    return [blake2b(text, digest_size=16).digest() for text in joined.cast(pa.binary()).to_pylist()]


def _key_prefix(model: OnlineModel) -> str:
    """A retry that another version answers is another answer; it has to be kept as well."""
    return f"{model.model_version}:"


def pack(rows: OnlineRow | OnlineRows) -> tuple[PackedRows, list[bytes]]:
    """The rows as bytes, and each one's key; numbers become float32.

    Raises:
        DataError: One is incomplete or of wrong types: nothing of them may be stored.
    """
    return _pack_row(rows) if isinstance(rows, OnlineRow) else _pack_columns(rows)


def _pack_row(row: OnlineRow) -> tuple[PackedRows, list[bytes]]:
    model, attributions = row.model, row.attributions
    if not row.request_id or len(row.request_id) > MAX_REQUEST_ID:
        raise _unfit(model, row.request_id, f"the request id has {len(row.request_id)} characters")
    try:
        if not math.isfinite(row.prediction):
            raise _unfit(model, row.request_id, f"the prediction is {row.prediction}")
        if attributions is not None:
            _check_explained(model, row.request_id, len(attributions))
        features = row.features
        numbers = [_NAN if (value := features[name]) is None else value for name in model.numbers_in_order]
        head = (
            epoch_micros(row.event_time),
            epoch_micros(row.scored_at),
            _NONE if row.feature_asof is None else epoch_micros(row.feature_asof),
            row.prediction,
            _NAN if row.residual is None else row.residual,
        )
        try:
            fixed = model._numbers.pack(*head, *numbers)
        except OverflowError:  # beyond float32: infinite, as in batch
            with np.errstate(over="ignore"):
                numbers = np.asarray(numbers, np.float64).astype(np.float32).tolist()
            fixed = model._numbers.pack(*head, *numbers)
        shifts = b"" if attributions is None else model._attributions.pack(*attributions)
        texts: list[str | None] = [row.request_id, row.entity_id]
        for name in model.textual:
            value = features[name]
            if value is not None and not isinstance(value, str):
                raise _unfit(model, row.request_id, f"{value!r} is not text")
            texts.append(value)
        identifier = row.prediction_id
        packed = PackedRows(
            model,
            bytes.fromhex(identifier.replace("-", "")),
            fixed,
            b"\0" if attributions is None else b"\1",
            shifts,
            lines(texts),
        )
        return packed, [row_key(model, identifier, row.request_id)]
    except KeyError as error:
        raise _unfit(model, row.request_id, f"feature {error} is missing") from error
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise _unfit(model, row.request_id, str(error)) from error


def _pack_columns(rows: OnlineRows) -> tuple[PackedRows, list[bytes]]:
    model, n = rows.model, len(rows.request_ids)
    lengths = np.fromiter(map(len, rows.request_ids), np.int64, n)
    bad = np.flatnonzero((lengths == 0) | (lengths > MAX_REQUEST_ID))
    if bad.size:
        raise _unfit(model, rows.request_ids[bad[0]], f"the request id has {lengths[bad[0]]} characters")
    bad = np.flatnonzero(~np.isfinite(rows.predictions))
    if bad.size:
        raise _unfit(model, rows.request_ids[bad[0]], f"the prediction is {rows.predictions[bad[0]]}")
    first = rows.request_ids[0] if n else ""
    if len(rows.attributions):
        _check_explained(model, first, rows.attributions.shape[1])
    if len(rows.prediction_ids) != n or len(rows.attributions) != np.count_nonzero(rows.explained):
        raise _unfit(
            model,
            first,
            f"{n} rows have {len(rows.prediction_ids)} ids, and of {np.count_nonzero(rows.explained)} explained ones "
            f"{len(rows.attributions)} have attributions",
        )
    numbers = np.empty(n, model.layout)
    try:
        numbers["event_us"], numbers["scored_us"] = rows.event_us, rows.scored_us
        numbers["asof_us"] = _NONE
        numbers["prediction"] = rows.predictions
        numbers["residual"] = _NAN
        numbers["residual"][rows.explained] = rows.residual
        with np.errstate(over="ignore"):  # beyond float32: infinite, as in batch
            for at, name in enumerate(model.numbers_in_order):
                numbers["values"][:, at] = rows.features.column(name).to_numpy()
        columns = [rows.request_ids, rows.entity_ids.to_pylist()]
        columns += [rows.features.column(name).cast(pa.string()).to_pylist() for name in model.textual]
        texts: list[str | None] = [None] * (n * len(columns))
        for at, column in enumerate(columns):
            texts[at :: len(columns)] = column
        packed = PackedRows(
            model,
            rows.prediction_ids.halves.astype(">u8").tobytes(),
            numbers.tobytes(),
            rows.explained.astype(np.bool_).tobytes(),
            np.ascontiguousarray(rows.attributions, "<f4").tobytes(),
            lines(texts),
        )
        return packed, row_keys(model, rows.prediction_ids, rows.request_ids)
    except KeyError as error:
        raise _unfit(model, first, f"feature {error} is missing") from error
    except (TypeError, ValueError, OverflowError) as error:  # ArrowInvalid and UnicodeError among them
        raise _unfit(model, first, str(error)) from error


def _check_explained(model: OnlineModel, request_id: str, attributions: int) -> None:
    if attributions != len(model.names):
        raise _unfit(model, request_id, f"{attributions} attributions for {len(model.names)} features")
    if model.base_value is None:
        raise _unfit(model, request_id, "it has attributions, its model has no base value")


def _unfit(model: OnlineModel, request_id: str, what: str) -> DataError:
    return DataError(
        f"cannot be kept: {what}",
        which=f"request {request_id!r} of pipeline {model.pipeline}",
        fix="hand in every feature of the model with its type, times with a zone, and a finite prediction",
    )


def millis_between(low: str, high: str) -> tuple[int, int]:
    """The first and last millisecond of ids between two texts, which need not be whole ids."""
    return _digits(low, "0") >> 16, _digits(high, "f") >> 16


def within(ids: bytes, low: str, high: str) -> Mask:
    """Which of n packed ids, 16 bytes each, lie between two texts, which need not be whole ids; shape (n,)."""
    halves = ids_of(ids).halves
    found: Mask = (halves[:, 0] >= np.uint64(_digits(low, "0"))) & (
        halves[:, 0] <= np.uint64(_digits(high, "f"))
    )
    near = np.flatnonzero(found)
    if near.size:
        texts = PredictionIds(halves[near]).texts()
        found[near] = pc.and_(pc.greater_equal(texts, low), pc.less_equal(texts, high)).to_numpy(
            zero_copy_only=False
        )
    return found


def _digits(bound: str, filler: str) -> int:
    """The first 16 digits of an id's beginning, filled up; what lies beyond it is looked at as text."""
    digits = ""
    for at, character in enumerate(bound[:_FIRST_HALF]):
        if at in _DASHES:
            if character != "-":
                break
        elif character in _HEX:
            digits += character
        else:
            break
    return int(digits.ljust(16, filler), 16)


def table_of(store: ObjectStore, rows: Sequence[PackedRows], run_id: Callable[[date], str]) -> pa.Table:
    """Audit rows of packed rows, in order of prediction id; stores feature sets that are new.

    Args:
        store: The pipeline's store.
        rows: One or more, of any models.
        run_id: The run of a UTC day of scoring.

    Returns:
        `AUDIT_SCHEMA`, with the attributions rounded as a shard rounds them.
    """
    by_model: dict[OnlineModel, list[PackedRows]] = {}
    for part in rows:
        by_model.setdefault(part.model, []).append(part)
    tables = [_audit_rows(store, PackedRows.joined(parts), run_id) for parts in by_model.values()]
    if len(tables) == 1 and tables[0].num_rows == 1:  # a look-up
        return tables[0]
    return pa.concat_tables(tables).sort_by([("prediction_id", "ascending"), ("source_key", "ascending")])


def store_feature_set(store: ObjectStore, model: OnlineModel) -> None:
    """Store what the model's positions mean, when it is not stored yet."""
    none = PackedRows(model, b"", b"", b"", b"", b"")
    audit_table(store, _scored(none, none.columns))


def _audit_rows(store: ObjectStore, rows: PackedRows, run_id: Callable[[date], str]) -> pa.Table:
    numbers = np.frombuffer(rows.numbers, rows.model.layout)
    columns = rows.columns
    table = audit_table(store, _scored(rows, columns))
    days, of_day = np.unique(numbers["scored_us"] // _DAY_US, return_inverse=True)
    names = pa.array([run_id(date(1970, 1, 1) + timedelta(days=int(day))) for day in days], pa.string())
    asof = numbers["asof_us"]
    own = {
        "run_id": names.take(pa.array(of_day)),
        "source_key": pa.array(columns[0], pa.string()),
        "source_row": pa.nulls(len(rows), pa.int64()),
        "scored_at": pa.array(numbers["scored_us"]).cast(_UTC),
        "feature_asof": pa.array(asof, mask=asof == _NONE).cast(_UTC),
    }
    return pa.table({name: own.get(name, table[name]) for name in AUDIT_SCHEMA.names}).cast(AUDIT_SCHEMA)


def _scored(rows: PackedRows, columns: Sequence[Sequence[str | None]]) -> ScoredRows:
    """The rows as a shard hands them in; what differs from row to row online is put right by the caller."""
    model, n, width = rows.model, len(rows), len(rows.model.names)
    numbers = np.frombuffer(rows.numbers, model.layout)
    values = numbers["values"].astype(np.float64)
    features: dict[str, pa.Array] = {
        name: pa.array(values[:, at], pa.float64(), from_pandas=True)
        for at, name in enumerate(model.numbers_in_order)
    }
    for name, texts in zip(model.textual, columns[_OTHER_COLUMNS:], strict=True):
        features[name] = pa.array(texts, pa.string())
    return ScoredRows(
        pipeline=model.pipeline,
        run_id="",
        shard=0,
        day=_EPOCH.date(),
        model_version=model.model_version,
        bundle_digest=model.bundle_digest,
        feature_version=model.feature_computation_version,
        source_snapshot=None,  # the row was in a request
        source_key="",
        scored_at=_EPOCH,
        prediction_ids=rows.prediction_ids,
        event_times=pa.array(np.ascontiguousarray(numbers["event_us"])).cast(_UTC),
        entity_ids=pa.array(columns[1], pa.string()),
        source_rows=np.zeros(n, np.int64),
        scores=np.ascontiguousarray(numbers["prediction"]),
        output_names=(),
        outputs=np.zeros((n, 0), np.float32),
        features=pa.table({name: features[name] for name in model.names}),
        explained=np.frombuffer(rows.explained, np.bool_),
        attributions=np.frombuffer(rows.attributions, "<f4").reshape(-1, width),
        base_value=_NAN if model.base_value is None else model.base_value,
        residual=np.ascontiguousarray(numbers["residual"]),
        explainer=model.explainer,
        explainer_version=model.explainer_version,
        background_id=model.background_id,
    )
