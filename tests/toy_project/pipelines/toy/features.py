"""Features of the toy pipeline: the source's own columns."""

import pyarrow as pa

FEATURE_VERSION = "1"


def features(rows: pa.Table) -> pa.Table:
    return rows.select(["price", "visits", "city", "device"])
