"""Rows in blocks: what is packed is what was handed in, by row or by column, and segments of single rows are read still."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hot_support import MODEL, columns_of, everywhere, online_row, warm_rows
from hypothesis import given, strategies

from tasks.audit.hot import Appended, HotLimits, HotLog, fold, hot_rows, hot_status
from tasks.audit.hot.recent_keys import RecentKeys
from tasks.audit.hot.rows import PackedRows, pack, row_key, within
from tasks.audit.hot.segment import hot_folder
from tasks.core import PipelineSpec, Settings
from tasks.core.errors import DataError
from tasks.core.prediction_ids import PredictionIds

HERE = Path(__file__).parent
NAME = "018d00000000-{node}-00000001.db"


def awkward_rows() -> list:
    """Rows with what a text or a number can hold."""
    rows = [online_row(number) for number in range(12)]
    for number, city in enumerate(["a\nb", 'say "no"', "", "null", "Ōsaka \U0001f5fc", "\x1f\u2028\\"]):
        rows[number] = replace(rows[number], features={**rows[number].features, "city": city})
    rows[6] = replace(rows[6], features={**rows[6].features, "price": 1e300, "visits": None})
    rows[7] = replace(rows[7], features={**rows[7].features, "price": -float("inf")}, entity_id="c|7\n,")
    rows[8] = replace(rows[8], request_id="x" * 200)
    return rows


def earlier_segment(settings: Settings, toy: PipelineSpec) -> Path:
    """The segment that a release wrote whose rows lay one by one: rows 0 to 7 of version 3, row 8 of version 4."""
    from tasks.audit.hot.segment import node_digits

    folder = hot_folder(settings, toy)
    folder.mkdir(parents=True)
    path = folder / NAME.format(node=node_digits("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript((HERE / "segment_of_single_rows.sql").read_text())
    return path


# -- packing


def test_rows_and_columns_are_packed_to_the_same_bytes() -> None:
    rows = awkward_rows()
    singly = [pack(row) for row in rows]
    columns, keys = pack(columns_of(rows))
    assert columns == PackedRows.joined([packed for packed, _ in singly])
    assert keys == [key for _, (key,) in singly] == columns.identities()
    assert keys == [row_key(row.model, row.prediction_id, row.request_id) for row in rows]
    assert PackedRows.of_body(MODEL, columns.ids, columns.body, "it") == columns


@given(strategies.lists(strategies.booleans(), min_size=12, max_size=12))
def test_some_of_the_packed_rows_are_those_rows_packed(wanted: list[bool]) -> None:
    rows = awkward_rows()
    some = [row for row, one in zip(rows, wanted, strict=True) if one]
    found = pack(columns_of(rows))[0].where(np.array(wanted))
    assert len(found) == len(some)
    assert found == (pack(columns_of(some))[0] if some else PackedRows(MODEL, b"", b"", b"", b"", b""))


HEX = "0123456789abcdef"


@given(
    strategies.lists(strategies.integers(0, 2**128 - 1), min_size=1, max_size=20),
    strategies.data(),
)
def test_ids_between_two_texts_are_found_whatever_the_texts_are(
    numbers: list[int], data: strategies.DataObject
) -> None:
    ids = b"".join(number.to_bytes(16, "big") for number in numbers)
    texts = PredictionIds(np.frombuffer(ids, ">u8").reshape(-1, 2).astype(np.uint64)).texts().to_pylist()
    parts = strategies.sampled_from(texts).flatmap(
        lambda text: strategies.integers(0, 36).map(lambda length: text[:length])
    )
    bound = strategies.one_of(
        strategies.sampled_from(texts),
        parts,
        parts.map(lambda text: f"{text}~"),
        strategies.text(f"{HEX}-~", max_size=6),
    )
    low, high = data.draw(bound), data.draw(bound)
    assert within(ids, low, high).tolist() == [low <= text <= high for text in texts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.array([0.5, np.inf], np.float32)}, "request-2.*prediction is inf"),
        ({"request_ids": ["", "request-2"]}, "0 characters"),
        ({"request_ids": ["request-1", "x" * 201]}, "201 characters"),
        ({"request_ids": ["request-1", "\ud800"]}, "surrogates"),
        ({"attributions": np.zeros((2, 3), np.float32)}, "3 attributions for 4 features"),
        ({"attributions": np.zeros((1, 4), np.float32)}, "2 explained ones 1 have attributions"),
        ({"prediction_ids": PredictionIds.concat([])}, "2 rows have 0 ids"),
        ({"residual": np.zeros(3, np.float32)}, "cannot be kept"),
        ({"model": replace(MODEL, base_value=None)}, "no base value"),
        ({"model": replace(MODEL, names=(*MODEL.names, "colour"))}, "'colour'.*missing|attributions"),
        ({"features": pa.table({"price": ["dear", "x"], "visits": [1.0, 2.0]})}, "cannot be kept"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused_with_their_whole_append(
    settings: Settings, toy: PipelineSpec, change: dict, message: str
) -> None:
    with HotLog(settings, toy) as log:
        with pytest.raises(DataError, match=message):
            log.append([online_row(7), replace(columns_of([online_row(1), online_row(2)]), **change)])
        assert hot_rows(settings, toy, "", "~").num_rows == 0


# -- appends


def test_columns_and_single_rows_of_several_models_become_the_same_audit_rows(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = [online_row(number) for number in range(40)]
    other = [replace(row, model=replace(MODEL, model_version=4)) for row in rows[30:]]
    found = []
    for node, offered in (("a", [*rows[:30], *other]), ("b", [columns_of(rows[:30]), columns_of(other)])):
        with HotLog(settings, toy, node=node) as log:
            assert log.append(offered) == Appended(40, 0)
            found.append(hot_rows(settings, toy, "", "~"))
            log.fold(seal=True)
    assert found[0].drop_columns(["run_id"]).equals(found[1].drop_columns(["run_id"]))
    assert sorted(found[0].column("model_version").to_pylist()) == [3] * 30 + [4] * 10


def test_of_columns_that_come_again_only_the_new_rows_are_added(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = [online_row(number) for number in range(30)]
    with HotLog(settings, toy, limits=HotLimits(seal_rows=20)) as log:
        assert log.append([columns_of(rows[:20])]) == Appended(20, 0)
        assert log.append([columns_of(rows[10:25])]) == Appended(5, 10)
        log.fold(seal=True)
        twice = [columns_of([*rows[20:], rows[29]]), columns_of(rows[28:])]
        assert log.append(twice) == Appended(5, 8)
        kept = hot_rows(settings, toy, "", "~")
        assert kept.column("source_key").to_pylist() == [f"request-{number}" for number in range(25, 30)]
        log.fold(seal=True)
    assert set(everywhere(settings, toy).values()) == {1}
    assert len(warm_rows(settings, toy)) == 30


def test_threads_that_append_overlapping_columns_at_once_add_each_row_once(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = [online_row(number) for number in range(600)]
    added: list[int] = []
    with HotLog(settings, toy, limits=HotLimits(seal_rows=150)) as log:
        start = threading.Barrier(8)

        def serve(thread: int) -> None:
            start.wait()
            for first in range(0, 600, 50):
                at = (first + 25 * thread) % 600
                added.append(log.append([columns_of(rows[at : at + 50]), rows[at]]).added)

        threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(added) == 8 * 12
        assert sum(added) == 600
        log.fold(seal=True)
    assert set(everywhere(settings, toy).values()) == {1}
    assert len(warm_rows(settings, toy)) == 600


def test_one_row_of_a_large_block_is_read_without_the_others(settings: Settings, toy: PipelineSpec) -> None:
    rows = [online_row(number) for number in range(500)]
    with HotLog(settings, toy) as log:
        log.append([columns_of(rows[:250])])
        log.append([columns_of(rows[250:])])
        for number in (0, 249, 250, 499):
            identifier = rows[number].prediction_id
            found = hot_rows(settings, toy, identifier, identifier)
            assert found.column("source_key").to_pylist() == [f"request-{number}"]
        span = hot_rows(settings, toy, rows[240].prediction_id, rows[259].prediction_id)
        assert span.column("source_key").to_pylist() == [f"request-{number}" for number in range(240, 260)]
        nobody = online_row(900).prediction_id
        assert hot_rows(settings, toy, nobody, nobody).num_rows == 0


def test_a_damaged_block_is_named(
    settings: Settings, toy: PipelineSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(1)])
        log.append([columns_of([online_row(2), online_row(3)])])
    path = next(hot_folder(settings, toy).glob("*.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (body,) = connection.execute("SELECT body FROM blocks WHERE number = 2").fetchone()
        connection.execute("UPDATE blocks SET body = ? WHERE number = 2", (body[:-1] + b"x",))
    assert fold(settings, toy).damaged == (str(path.with_suffix(".damaged")),)
    assert f"block 2 of {path}" in caplog.text
    # As docs/audit.md says: recover what is whole under its old name.
    path.with_suffix(".damaged").rename(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM blocks WHERE number = 2")
    assert fold(settings, toy).rows == 1


# -- segments of earlier releases


def test_a_segment_of_single_rows_is_read_and_folded_and_its_rows_are_known(
    settings: Settings, toy: PipelineSpec
) -> None:
    earlier_segment(settings, toy)
    rows = [online_row(number) for number in range(8)]
    last = replace(online_row(8), model=replace(MODEL, model_version=4))
    before = hot_rows(settings, toy, "", "~")
    one = hot_rows(settings, toy, rows[4].prediction_id, rows[4].prediction_id)
    assert one.column("source_key").to_pylist() == ["request-4"]
    assert hot_status(settings, toy).rows == 9
    with HotLog(settings, toy, node="a") as log:
        assert log.append([columns_of(rows), online_row(20)]) == Appended(1, 8)
        log.fold(seal=True)
        assert log.append([last, *rows]) == Appended(0, 9)
    assert len(warm_rows(settings, toy)) == 10
    with HotLog(replace(settings, home=settings.home / "other"), toy, node="a") as log:
        log.append([columns_of(rows), last])
        assert hot_rows(replace(settings, home=settings.home / "other"), toy, "", "~").equals(before)


def test_a_damaged_row_of_a_segment_of_single_rows_sets_it_aside(
    settings: Settings, toy: PipelineSpec
) -> None:
    path = earlier_segment(settings, toy)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (body,) = connection.execute("SELECT body FROM rows WHERE request_id = 'request-4'").fetchone()
        connection.execute("UPDATE rows SET body = ? WHERE request_id = 'request-4'", (body[:-1] + b"x",))
    assert hot_rows(settings, toy, "", "~").num_rows == 0
    assert fold(settings, toy).damaged == (str(path.with_suffix(".damaged")),)


# -- keys of closed segments

KEY = strategies.tuples(strategies.integers(0, 2), strategies.integers(0, 3)).map(
    lambda halves: halves[0].to_bytes(8, "big") + halves[1].to_bytes(8, "big")
)


@given(
    strategies.lists(strategies.tuples(strategies.integers(0, 400), strategies.sets(KEY)), max_size=8),
    strategies.lists(KEY),
)
def test_a_key_is_known_for_the_window_and_at_most_a_quarter_longer(
    closings: list[tuple[int, set[bytes]]], asked: list[bytes]
) -> None:
    start, window = datetime(2024, 3, 1, tzinfo=UTC), timedelta(seconds=1000)
    recent, now, at = RecentKeys(window), start, {}
    for wait_s, keys in closings:
        now += timedelta(seconds=wait_s)
        recent.forget(now)
        recent.add(now, keys)
        at.update(dict.fromkeys(keys, now))
    found = recent.among(asked)
    assert {key for key in asked if key in at and now - at[key] < window} <= found
    assert found <= {key for key in asked if key in at and now - at[key] < 1.25 * window}
