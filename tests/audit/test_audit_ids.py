"""An id by itself: what it holds, and whose it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import wiring
from tasks.audit import InvalidQuery
from tasks.core import PipelineSpec
from tasks.core.errors import ConfigError
from tasks.core.ids import id_parts, prediction_id
from tasks.core.prediction_ids import PredictionIds

MILLIS = st.integers(0, 253_402_300_799_999)
"""Up to the end of year 9999, the last that Python's datetime holds."""
ENTITY = st.text(max_size=20)


@given(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), ENTITY, MILLIS)
def test_an_id_gives_back_the_time_it_was_made_of(pipeline: str, entity: str, millis: int) -> None:
    parts = id_parts(prediction_id(pipeline, entity, millis))
    assert (parts.millis, parts.version, parts.variant) == (millis, 8, 2)
    assert parts.event_time == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)


def test_the_bits_lie_as_the_documentation_says() -> None:
    import hashlib

    identifier = prediction_id("churn", "c1|web", 1_700_000_000_123)
    bits = f"{int(identifier.replace('-', ''), 16):0128b}"
    digest = hashlib.blake2b(b"churn\x1fc1|web\x1f1700000000123", digest_size=10).digest()
    tail = f"{int.from_bytes(digest, 'big'):080b}"[6:]
    assert (int(bits[:48], 2), bits[48:52], bits[64:66]) == (1_700_000_000_123, "1000", "10")
    assert bits[52:64] + bits[66:] == tail
    assert id_parts(identifier).hash_bits == f"{int(tail, 2):019x}"


@given(ENTITY, MILLIS, st.floats(0, 1))
def test_the_draw_in_an_id_is_what_the_share_is_compared_with(entity: str, millis: int, share: float) -> None:
    spec = PipelineSpec.model_construct(name="churn", event_time="at")
    ids = PredictionIds.of(pa.array([entity]), np.array([millis * 1000]), spec)
    parts = id_parts(ids.texts()[0].as_py())
    assert bool(ids.below_share(share)[0]) == (parts.draw < share)


def test_decoding_needs_no_pipeline_and_says_whose_an_id_is() -> None:
    identifier = prediction_id("gone", "c1|web", 1_709_280_000_500)
    alone = wiring.decode_prediction_id(prediction_id=identifier)
    assert alone["event_time"] == "2024-03-01T08:00:00.500+00:00"
    assert "tables/audit/event_date=2024-03-01" in alone["lies_in"] and "is_of_this_row" not in alone

    def asked(**row: str) -> bool:
        found = wiring.decode_prediction_id(prediction_id=identifier, **row)
        return bool(found["is_of_this_row"])

    assert asked(pipeline="gone", entity="c1|web")
    assert asked(pipeline="gone", entity="c1|web", event_time="2024-03-01T09:00:00.500+01:00")
    assert not asked(pipeline="gone", entity="c1|web", event_time="2024-03-01T08:00:00.501")
    assert not asked(pipeline="gone", entity="c2|web")
    assert not asked(pipeline="here", entity="c1|web")


def test_a_wrong_question_about_an_id_is_named() -> None:
    with pytest.raises(InvalidQuery, match="not a prediction id"):
        wiring.decode_prediction_id(prediction_id="018D5E6F-0000-8000-8000-000000000000")
    with pytest.raises(InvalidQuery, match="not a prediction id"):  # the year 10889 has no date
        wiring.decode_prediction_id(prediction_id="ffffffff-ffff-8000-8000-000000000000")
    with pytest.raises(InvalidQuery, match="not a prediction id"):
        wiring.decode_prediction_id(prediction_id="018d5e6f-0000-8000-8000-000000000000\n")
    identifier = prediction_id("toy", "c1", 0)
    with pytest.raises(ConfigError, match="--pipeline"):
        wiring.decode_prediction_id(prediction_id=identifier, entity="c1")
    with pytest.raises(ConfigError, match="1970"):
        wiring.decode_prediction_id(
            prediction_id=identifier, pipeline="toy", entity="c1", event_time="1969-12-31"
        )
