"""What a look-up reads: one row group, in one request, from a log and footers that are kept; and never an old answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_endpoint
from audit_support import add_file, open_store, publish_days, write_batch
from fault_proxy import FaultProxy

from tasks.audit import AuditFilter, by_prediction, by_window, retain, window_table
from tasks.audit.archive import ArchivedDate
from tasks.audit.cold import cold_rows
from tasks.audit.files import AuditFile, AuditFiles
from tasks.audit.reader import reader_of
from tasks.audit.rows import AUDIT_TABLE, read_feature_set
from tasks.core import PipelineSpec, Settings
from tasks.core.delta import FileName, LatestView, TableFile, table_view
from tasks.core.errors import DataError
from tasks.core.table_files import statistics

START = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclasses.dataclass
class Read:
    """What was read of Parquet files."""

    groups: list[int]
    columns: list[str]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """Every read of row groups, as it happens; the real one is done."""
    found: list[Read] = []
    real = pq.ParquetFile.read_row_groups

    def spy(self: Any, groups: list[int], columns: list[str], **more: Any) -> pa.Table:
        found.append(Read(list(groups), list(columns)))
        return real(self, groups, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    return found


@pytest.fixture
def proxy(s3_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_url) as found:
        yield found


def audit_files(settings: Settings, spec: PipelineSpec) -> list[str]:
    """Keys of the files that the audit table holds."""
    view = table_view(open_store(settings, prefix=spec.prefix), AUDIT_TABLE)
    assert view is not None
    return [f"{AUDIT_TABLE}/{file.path}" for file in view.files]


@pytest.mark.s3
def test_a_look_up_on_s3_is_one_get_when_the_footer_is_known(
    settings: Settings, toy: PipelineSpec, proxy: FaultProxy
) -> None:
    remote = dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=proxy.url)
    ids = write_batch(remote, toy, 9_000)
    by_prediction(remote, toy, ids[0])
    proxy.forget()
    found = by_prediction(remote, toy, ids[8_000])
    assert (found.prediction_id, found.entity_id is not None) == (ids[8_000], True)
    assert [(item.operation, item.key.endswith(".parquet")) for item in proxy.seen] == [("GetObject", True)]


def test_a_batch_of_one_event_time_does_not_defeat_pruning(
    settings: Settings, toy: PipelineSpec, reads: list[Read]
) -> None:
    ids = write_batch(settings, toy, 12_000)
    assert len({identifier[:13] for identifier in ids}) == 1
    for place in (0, 5_000, 11_999):
        assert by_prediction(settings, toy, ids[place]).prediction_id == ids[place]
    assert [read.groups for read in reads] == [[0], [2], [5]]


def test_an_answer_is_never_older_than_the_last_commit_on_a_local_disk(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids = write_batch(settings, toy, 10)
    assert by_prediction(settings, toy, ids[3]).model_version == 1
    write_batch(settings, toy, 10, run_id="cd" * 8, version=2)
    again = by_prediction(settings, toy, ids[3])
    assert (again.model_version, again.superseded_runs) == (2, ("ab" * 8,))


def test_what_was_not_found_is_looked_for_in_what_is_there_now(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    first = write_batch(store_settings, toy, 10)
    by_prediction(store_settings, toy, first[0])
    later = write_batch(store_settings, toy, 10, moment=START + timedelta(hours=3), run_id="cd" * 8)
    assert by_prediction(store_settings, toy, later[0]).run_id == "cd" * 8
    page = by_window(store_settings, toy, START, START + DAY)
    assert [record.prediction_id for record in page.records] == later + first


def test_a_kept_log_is_as_old_as_stated_and_no_older(store_settings: Settings, toy: PipelineSpec) -> None:
    store = open_store(store_settings, prefix=toy.prefix)
    now = 1_000.0
    latest = LatestView(store, AUDIT_TABLE, max_age_s=5.0, monotonic=lambda: now)
    assert latest.get() is None
    write_batch(store_settings, toy, 5)

    def files() -> int:
        view = latest.get()
        return len(view.files) if view else 0

    now += 4.9
    assert files() == 0
    now += 0.1
    assert files() == 1
    write_batch(store_settings, toy, 5, run_id="cd" * 8)
    assert files() == 1
    newest = latest.get(fresh=True)
    assert newest is not None
    assert len(newest.files) == 2
    assert latest.get(fresh=True) is newest


def test_a_file_that_retention_moved_meanwhile_is_looked_for_again(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    ids, _ = publish_days(store_settings, toy, days=2)
    moved = next(key for key in audit_files(store_settings, toy) if "event_date=2024-03-01" in key)
    assert by_prediction(store_settings, toy, ids[0]).tier == "warm"
    retain(store_settings, toy, as_of=date(2024, 3, 3), warm_days=1)
    open_store(store_settings, prefix=toy.prefix).delete(moved)
    assert by_prediction(store_settings, toy, ids[0]).tier == "cold"
    page = by_window(store_settings, toy, START, START + 2 * DAY, limit=500)
    assert [record.prediction_id for record in page.records] == ids


def test_a_lost_file_is_named(store_settings: Settings, toy: PipelineSpec) -> None:
    ids = write_batch(store_settings, toy, 10)
    store = open_store(store_settings, prefix=toy.prefix)
    (key,) = audit_files(store_settings, toy)
    store.delete(key)
    for ask in asking(store_settings, toy, ids[0]):
        with pytest.raises(DataError, match="is gone") as caught:
            ask()
        assert caught.value.which == store.url(key)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: flip(data, len(data) // 8),
        lambda data: data[:-10],
        lambda data: data[:300],
        lambda data: b"",
        lambda data: data[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1",
    ],
    ids=["a flipped bit", "a cut footer", "a cut file", "nothing", "a wrong length"],
)
def test_a_damaged_file_is_named(
    settings: Settings, toy: PipelineSpec, harm: Callable[[bytes], bytes]
) -> None:
    ids = write_batch(settings, toy, 9_000)
    store = open_store(settings, prefix=toy.prefix)
    (key,) = audit_files(settings, toy)
    store.put(key, harm(store.get(key)))
    failed = 0
    for identifier in ids[::1_000]:
        try:
            assert by_prediction(settings, toy, identifier).prediction_id == identifier
        except DataError as error:
            failed += 1
            assert (error.which, "damaged" in error.what) == (store.url(key), True)
    assert failed
    with pytest.raises(DataError, match="damaged"):
        window_table(settings, toy, START, START + DAY)


def asking(settings: Settings, spec: PipelineSpec, identifier: str) -> list[Callable[[], object]]:
    """Every way to read a row."""
    return [
        lambda: by_prediction(settings, spec, identifier),
        lambda: by_window(settings, spec, START, START + DAY),
        lambda: window_table(settings, spec, START, START + DAY),
    ]


def test_a_file_of_an_earlier_release_is_read(settings: Settings, toy: PipelineSpec) -> None:
    ids = write_batch(settings, toy, 20)
    store = open_store(settings, prefix=toy.prefix)
    (key,) = audit_files(settings, toy)
    new = pq.read_table(store.open(key), partitioning=None)
    texts = read_feature_set(store, new.column("feature_set_version")[0].as_py()).textual
    as_map = pa.array(
        [dict(zip(texts, row, strict=True)) for row in new.column("feature_texts").to_pylist()],
        pa.map_(pa.string(), pa.string()),
    )
    old = new.drop_columns(["feature_texts", "attribution_bits", "erasure_id"])
    old = old.append_column("feature_values_text", as_map)
    later = [name if name != "run_id" else pa.array(["ef" * 8] * 20) for name in old.column_names]
    old = pa.table(
        {n: old.column(n) if isinstance(c, str) else c for n, c in zip(old.column_names, later, strict=True)}
    )
    name = FileName(date(2024, 3, 1), "ef" * 8, date(2024, 3, 1), 0, "old")
    sink = pa.BufferOutputStream()
    pq.write_table(old, sink, store_schema=False)
    data = sink.getvalue().to_pybytes()
    before = by_prediction(settings, toy, ids[4])
    store.put(f"{AUDIT_TABLE}/{name}", data)
    add_file(store, TableFile(str(name), name.event_date, 20, len(data), "", statistics(old)))
    found = by_prediction(settings, toy, ids[4], run_id="ef" * 8)
    assert found.features == before.features
    assert (found.attribution_bits, found.erasure_id) == (None, None)
    assert found.attributions == before.attributions
    table = window_table(settings, toy, START, START + DAY, columns=["run_id", "feature_texts"])
    assert table.column("run_id").to_pylist() == ["ef" * 8] * 20
    assert table.column("feature_texts").to_pylist() == new.column("feature_texts").to_pylist()
    # As the earlier release archived it: the table's columns as they were.
    archived = ArchivedDate(
        date(2024, 3, 1),
        1,
        "archived",
        "archive/audit/2024-03-01/old.parquet",
        20,
        len(data),
        "",
        (),
        "",
        format=1,
    )
    store.put(archived.key, data)
    assert cold_rows(store, archived, ids[4], ids[4]).to_pylist()[0]["feature_texts"] == [
        found.features[name] for name in texts
    ]
    # And as this one archives it.
    retain(settings, toy, as_of=date(2024, 6, 1), warm_days=10)
    cold = by_prediction(settings, toy, ids[4], run_id="ef" * 8)
    assert (cold.tier, cold.features) == ("cold", before.features)


def test_many_threads_ask_one_reader(settings: Settings, toy: PipelineSpec) -> None:
    ids = write_batch(settings, toy, 5_000)
    wanted = ids[::100]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: by_prediction(settings, toy, item).prediction_id, wanted))
    assert found == wanted
    assert reader_of(settings, toy) is reader_of(settings, toy)


def test_footers_are_kept_within_their_bound(settings: Settings, toy: PipelineSpec) -> None:
    for hour in range(3):
        write_batch(settings, toy, 10, moment=START + timedelta(hours=hour), run_id=f"{hour:016x}")
    store = open_store(settings, prefix=toy.prefix)
    view = table_view(store, AUDIT_TABLE)
    assert view is not None
    files = [AuditFile(f"{AUDIT_TABLE}/{file.path}", file.rows, file.size_bytes) for file in view.files]
    roomy, narrow = AuditFiles(store), AuditFiles(store, cache_bytes=1)
    for file in files:
        assert roomy.footer(file) is roomy.footer(file)
        assert narrow.footer(file).bounds == roomy.footer(file).bounds
    assert narrow.footer(files[0]) is not narrow.footer(files[1])
    first = narrow.footer(files[0])
    narrow.footer(files[2])
    assert narrow.footer(files[0]) is not first


def test_a_page_of_a_large_window_reads_no_further_than_it_has_to(
    settings: Settings, toy: PipelineSpec, reads: list[Read]
) -> None:
    ids = write_batch(settings, toy, 40_000, moment=START, step=timedelta(seconds=1))
    page = by_window(settings, toy, START, START + DAY, limit=10)
    assert [record.prediction_id for record in page.records] == ids[:10]
    assert max(group for read in reads for group in read.groups) < 4
    reads.clear()
    one = by_window(settings, toy, START, START + DAY, filter=AuditFilter(entity_id="customer 30000"))
    assert [record.prediction_id for record in one.records] == [ids[30_000]]
    whole = [read for read in reads if "attributions" in read.columns]
    assert [read.groups for read in whole] == [[30_000 // 2_048]]
