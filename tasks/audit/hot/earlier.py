"""Segments that earlier releases wrote: a row of SQLite for each prediction, with a check sum of its own. Read, never written."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

from tasks.audit.hot.rows import OnlineModel, PackedRows, RowsDamaged, lines

Stored = tuple[str, str, bool, bytes]
"""Prediction id, request id, whether it was explained, body."""

_CHECK = struct.Struct("<I")


def packed(model: OnlineModel, rows: Sequence[Stored]) -> PackedRows:
    """The rows as they are packed now.

    Raises:
        RowsDamaged: One does not hold what was written.
    """
    numbers, shifts, texts = [], [], []
    for identifier, request_id, explained, body in rows:
        first, width = _CHECK.size, model.layout.itemsize
        end = first + width + (4 * len(model.names) if explained else 0)
        check = zlib.crc32(body[first:], zlib.crc32(f"{identifier}{request_id}".encode()))
        if len(body) <= end or _CHECK.unpack_from(body)[0] != check:
            raise RowsDamaged(
                "a row does not hold what was written",
                which=f"prediction {identifier}, request {request_id}",
                fix="restore the segment from a backup",
            )
        numbers.append(body[first : first + width])
        shifts.append(body[first + width : end])
        texts += [request_id, *json.loads(body[end:])]
    return PackedRows(
        model,
        bytes.fromhex("".join(row[0] for row in rows).replace("-", "")),
        b"".join(numbers),
        bytes(explained for _, _, explained, _ in rows),
        b"".join(shifts),
        lines(texts),
    )
