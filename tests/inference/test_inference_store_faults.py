"""A store that fails under a whole run: typed, nothing half published, and finished by the same call afterwards."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import s3_endpoint
from fault_proxy import Fault, FaultProxy
from inference_support import (
    AUDIT,
    STUB,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    set_store_clock,
    table_rows,
)
from small_disk import SmallDisk, small_disk  # noqa: F401
from toy_installation import TOY_PROJECT

from tasks.core import PipelineSpec, Settings, Snapshot, load_pipeline, open_store
from tasks.core.crash_points import observe
from tasks.core.delta import FileName, TableView, table_view
from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    DiskFull,
    NotFound,
    PenstockError,
    StaleAttempt,
    StoreUnavailable,
)
from tasks.core.s3_faults import Patience
from tasks.inference import publish, status, sweep_orphans, vacuum, verify
from tasks.inference.commit import check_fence, take_token
from tasks.inference.records import committed_shards, plan_key, read_shard_record
from tasks.inference.shard import ShardWorker

QUICK = Patience(connect_s=2, answer_s=1, sends=3, first_pause_s=0.02, give_up_s=5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tasks.core.s3_faults.PATIENCE", QUICK)
    monkeypatch.setattr("tasks.core.delta._FIRST_PAUSE_S", QUICK.first_pause_s)
    yield
    observe(None)


@pytest.fixture
def remote(settings: Settings, proxy: FaultProxy) -> Settings:
    """`settings` with a store behind the proxy."""
    return dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=proxy.url)


@pytest.fixture
def on_disk(settings: Settings, small_disk: SmallDisk) -> Settings:  # noqa: F811
    """`settings` with a store on a disk of 4 MiB."""
    return dataclasses.replace(settings, store_url=str(small_disk.path / "store"))


@pytest.fixture
def spec(toy: PipelineSpec) -> PipelineSpec:
    """One attempt at a shard: what fails fails at once."""
    return toy.model_copy(update={"inference": toy.inference.model_copy(update={"shard_attempts": 1})})


@functools.cache
def first_run(shard_rows: int) -> tuple[Snapshot, str, dict[str, bytes], dict[str, list[dict[str, Any]]]]:
    """A snapshot, a run of it that is published, every object of the store then, and the rows of both tables."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.at_home(Path(home), project=TOY_PROJECT)
        toy = load_pipeline(settings, "toy")
        spec = toy.model_copy(
            update={"inference": toy.inference.model_copy(update={"shard_rows": shard_rows})}
        )
        snapshot = scoring_snapshot(settings, spec, days=1)
        run_id = score_and_publish(settings, spec, snapshot, version=1)
        store = open_store(settings, prefix=spec.prefix)
        objects = {info.key: store.get(info.key) for info in store.list()}
        rows = {name: table_rows(settings, spec, name) for name in ("predictions", "audit")}
    return snapshot, run_id, objects, rows


class Work:
    """A run that replaces one of an earlier model version, step by step."""

    def __init__(self, settings: Settings, spec: PipelineSpec) -> None:
        self.settings, self.spec = settings, spec
        self.snapshot, self.first, objects, self.before = first_run(spec.inference.shard_rows)
        store = open_store(settings, prefix=spec.prefix)
        for key, content in objects.items():
            store.put(key, content)

    def all(self) -> str:
        run_id = plan_stub(self.settings, self.spec, self.snapshot, 2).run_id
        run_stub(self.settings, self.spec, run_id)
        publish(self.settings, self.spec, run_id)
        return run_id

    def assert_as_before(self) -> None:
        """A reader sees the earlier run, whole; audit rows of a run that is not visible yet may be there."""
        assert table_rows(self.settings, self.spec) == self.before["predictions"]
        audit = [row for row in table_rows(self.settings, self.spec, "audit") if row["run_id"] == self.first]
        assert audit == self.before["audit"]

    def assert_finishes(self) -> None:
        """The same calls finish the run: every row once, all of it of the new model, nothing else visible."""
        run_id = self.all()
        rows = table_rows(self.settings, self.spec)
        assert [row["prediction_id"] for row in rows] == [
            row["prediction_id"] for row in self.before["predictions"]
        ]
        assert {row["run_id"] for row in rows} == {run_id}
        audit = [row["prediction_id"] for row in table_rows(self.settings, self.spec, "audit")]
        assert len(audit) == 2 * len(set(audit)) == 2 * len(rows), "of both runs, each once"
        for run in (self.first, run_id):
            found = verify(self.settings, self.spec, run)
            assert found.ok, found.problems
        assert verify(self.settings, self.spec, self.first).superseded_by == (run_id,)


DENIED = {"kind": "answer", "status": 403, "code": "AccessDenied"}
SLOW_DOWN = {"kind": "answer", "status": 503, "code": "SlowDown"}
FAILED = {"kind": "answer", "status": 500, "code": "InternalError"}
LOST = {"kind": "lose-answer"}
SILENT = {"kind": "hang"}

PLACES = {
    "plan": ("PutObject", r"/plan\.json$"),
    "token": ("PutObject", r"/attempts/"),
    "listing": ("ListObjects", r"/runs/"),
    "fence": ("HeadObject", r"/attempts/"),
    "partition": ("GetObject", r"/data/"),
    "data file": ("PutObject", r"/tables/predictions/event_date.*\.parquet$"),
    "audit file": ("PutObject", r"/tables/audit/event_date.*\.parquet$"),
    "record": ("PutObject", r"/shard-\d+\.json$"),
    "marker": ("PutObject", r"/published\.json$"),
}
CREATES = ("plan", "token", "record", "marker")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("place", "fault", "wanted"),
    [
        ("plan", DENIED, AccessDenied),
        ("plan", FAILED, CommitOutcomeUnknown),
        ("token", SLOW_DOWN, StoreUnavailable),
        ("listing", DENIED, AccessDenied),
        ("fence", FAILED, StoreUnavailable),
        ("partition", SLOW_DOWN, StoreUnavailable),
        ("partition", DENIED, AccessDenied),
        ("data file", DENIED, AccessDenied),
        ("data file", LOST, StoreUnavailable),
        ("audit file", FAILED, StoreUnavailable),
        ("record", DENIED, AccessDenied),
        ("record", FAILED, CommitOutcomeUnknown),
        ("marker", SLOW_DOWN, StoreUnavailable),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else value.get("code", "lost") if isinstance(value, dict) else ""
    ),
)
def test_a_store_that_fails_at_one_place_ends_typed_and_the_run_is_finished_later(
    remote: Settings,
    spec: PipelineSpec,
    proxy: FaultProxy,
    place: str,
    fault: dict[str, Any],
    wanted: type[PenstockError],
) -> None:
    work = Work(remote, spec)
    operation, key = PLACES[place]
    for copy in (remote.cache_dir / "partitions").glob("*"):
        copy.unlink()  # read it from the store again
    proxy.forget()
    proxy.add(Fault(operation, key, **fault))
    with pytest.raises(PenstockError) as caught:
        work.all()
    assert type(caught.value) is wanted
    assert open_store(remote, prefix=spec.prefix).url() in caught.value.which
    assert re.search(key.rstrip("$/"), caught.value.which)
    assert caught.value.fix
    # Of each of two shards or one create, sent twice as often at most (a second create, or aiohttp by itself).
    assert 0 < sum(item.fault is not None for item in proxy.seen) <= 2 * 2 * QUICK.sends
    if place != "marker":  # it comes after the transaction
        work.assert_as_before()
    proxy.clear()
    work.assert_finishes()


@pytest.mark.s3
@pytest.mark.parametrize("place", ["plan", "token", "record", "marker"])
def test_records_whose_answers_are_lost_are_found_and_count(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, place: str
) -> None:
    work = Work(remote, spec)
    proxy.add(Fault(*PLACES[place], **LOST))
    work.assert_finishes()
    assert proxy.met("lose-answer")


@pytest.mark.s3
@pytest.mark.parametrize("place", ["partition", "data file", "record"])
def test_a_store_that_never_answers_ends_typed_after_a_known_number_of_requests(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, place: str
) -> None:
    one_shard = spec.model_copy(update={"inference": spec.inference.model_copy(update={"shard_rows": 1000})})
    work = Work(remote, one_shard)
    for copy in (remote.cache_dir / "partitions").glob("*"):
        copy.unlink()
    proxy.add(Fault(*PLACES[place], "hang"))
    with pytest.raises(CommitOutcomeUnknown if place == "record" else StoreUnavailable):
        work.all()
    # A record is created twice before its outcome is given up.
    assert proxy.met("hang") == QUICK.sends * (2 if place == "record" else 1)
    work.assert_as_before()
    proxy.clear()
    work.assert_finishes()


@pytest.mark.s3
@pytest.mark.parametrize("kinds", [("answer", "lose-answer"), ("reset", "hang")], ids=" ".join)
def test_a_run_over_a_store_that_fails_once_at_every_place_is_undisturbed(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, kinds: tuple[Any, ...]
) -> None:
    work = Work(remote, spec)
    proxy.add(*(Fault(*place, kind, times=1) for place in PLACES.values() for kind in kinds))
    work.assert_finishes()
    for kind in kinds:
        assert proxy.met(kind) >= len(PLACES)


@pytest.mark.s3
@pytest.mark.parametrize("table", ["audit", "predictions"])
@pytest.mark.parametrize("fault", [SLOW_DOWN, FAILED, LOST], ids=["503", "500", "lost answers"])
def test_a_store_that_fails_at_a_delta_commit_publishes_all_or_nothing(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, table: str, fault: dict[str, Any]
) -> None:
    work = Work(remote, spec)
    proxy.add(Fault("PutObject", rf"/tables/{table}/_delta_log/", **fault))
    if fault is LOST:
        work.all()  # the transaction is found in the log
        assert proxy.met("lose-answer")
    else:
        with pytest.raises(CommitOutcomeUnknown, match=f"tables/{table}"):
            work.all()
        work.assert_as_before()
    proxy.clear()
    work.assert_finishes()


@pytest.mark.s3
@pytest.mark.parametrize("table", ["audit", "predictions"])
def test_a_delta_commit_that_is_forbidden_is_an_access_denied(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, table: str
) -> None:
    work = Work(remote, spec)
    proxy.add(Fault("PutObject", rf"/tables/{table}/_delta_log/", **DENIED))
    proxy.forget()
    with pytest.raises(AccessDenied, match=f"tables/{table}") as caught:
        work.all()
    assert_readable(caught.value)
    assert proxy.met("answer") == 1, "a refusal is believed at once"
    work.assert_as_before()
    proxy.clear()
    work.assert_finishes()


def assert_readable(error: PenstockError) -> None:
    """One line about what happened, without colours, and one about what to do."""
    assert re.fullmatch(r"[^\n\x1b]{1,600}", error.what)
    assert re.fullmatch(r"[^\n\x1b]+", error.fix)


@pytest.mark.s3
def test_a_commit_that_is_forbidden_after_an_answer_was_lost_stays_in_doubt(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy
) -> None:
    """The lost one may be on its way still: that another one was refused says nothing about it."""
    work = Work(remote, spec)
    log = r"/tables/predictions/_delta_log/"
    proxy.add(Fault("PutObject", log, "reset", times=1), Fault("PutObject", log, **DENIED))
    with pytest.raises(CommitOutcomeUnknown, match="tables/predictions") as caught:
        work.all()
    assert_readable(caught.value)
    work.assert_as_before()
    proxy.clear()
    work.assert_finishes()


@pytest.mark.s3
@pytest.mark.parametrize("fault", [DENIED, FAILED], ids=["403", "500"])
def test_a_log_that_cannot_be_read_after_an_answer_was_lost_leaves_the_commit_in_doubt(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy, fault: dict[str, Any]
) -> None:
    work = Work(remote, spec)
    lose = Fault("PutObject", r"/tables/predictions/_delta_log/", **LOST)

    def forbid(point: str) -> None:
        if point == "before-delta-commit":
            # The library looks for newer versions before it commits: with a listing.
            proxy.add(lose, Fault("GetObject", r"/tables/predictions/_delta_log/", **fault))

    observe(forbid)
    with pytest.raises(CommitOutcomeUnknown, match="tables/predictions") as caught:
        work.all()
    assert_readable(caught.value)
    observe(None)
    proxy.clear()
    assert {row["run_id"] for row in table_rows(remote, spec)} != {work.first}, "it was committed, in fact"
    work.assert_finishes()


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "wanted"), [(DENIED, AccessDenied), (SLOW_DOWN, StoreUnavailable)])
def test_a_log_that_cannot_be_read_any_more_once_the_table_is_open_ends_typed(
    remote: Settings,
    spec: PipelineSpec,
    proxy: FaultProxy,
    fault: dict[str, Any],
    wanted: type[PenstockError],
) -> None:
    work = Work(remote, spec)
    store = open_store(remote, prefix=spec.prefix)
    asks: list[Callable[[TableView], object]] = [
        lambda view: view.let_go,
        lambda view: view.transaction_version("penstock:nobody"),
        lambda view: view.commit_note("penstock_run", work.first),
    ]
    for ask in asks:
        proxy.clear()
        view = table_view(store, "tables/predictions")
        assert view is not None
        proxy.add(Fault("*", r"/tables/predictions/_delta_log/", **fault))
        with pytest.raises(wanted, match="tables/predictions") as caught:
            ask(view)
        assert type(caught.value) is wanted
        assert_readable(caught.value)


@pytest.mark.s3
def test_a_delta_log_that_may_not_be_read_is_an_access_denied(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy
) -> None:
    work = Work(remote, spec)
    proxy.add(Fault("*", r"/tables/predictions/_delta_log/", **DENIED))
    with pytest.raises(AccessDenied, match="tables/predictions") as caught:
        work.all()
    assert_readable(caught.value)
    proxy.clear()
    work.assert_as_before()
    work.assert_finishes()


@pytest.mark.s3
def test_an_object_that_is_gone_at_publication_is_named(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy
) -> None:
    work = Work(remote, spec)
    store = open_store(remote, prefix=spec.prefix)
    planned = plan_stub(remote, spec, work.snapshot, 2)
    run_stub(remote, spec, planned.run_id)
    proxy.add(Fault("GetObject", r"/tables/audit/event.*parquet$", "answer", status=404, code="NoSuchKey"))
    with pytest.raises(NotFound, match=re.escape(store.url("tables/audit"))):
        publish(remote, spec, planned.run_id)
    proxy.clear()
    work.assert_as_before()
    work.assert_finishes()


@pytest.mark.s3
def test_a_slow_store_holds_the_worker_back_and_no_rows_pile_up(
    remote: Settings, spec: PipelineSpec, proxy: FaultProxy
) -> None:
    many = spec.model_copy(update={"inference": spec.inference.model_copy(update={"shard_rows": 20})})
    planned = plan_stub(remote, many, scoring_snapshot(remote, many))
    held: list[int] = []
    gc.collect()
    gc.freeze()  # what is there already is not gone through again at each shard

    def measure(point: str) -> None:
        if point == "before-data-file":
            gc.collect()
            held.append(pa.total_allocated_bytes())

    observe(measure)
    proxy.forget()
    proxy.add(Fault("PutObject", r"\.parquet$", "delay", delay_s=0.05))
    try:
        run_stub(remote, many, planned.run_id)
    finally:
        gc.unfreeze()
    store = open_store(remote, prefix=many.prefix)
    sizes = [info.size_bytes for info in store.list("tables") if info.key.endswith(".parquet")]
    assert proxy.met("delay") == len(sizes) == 2 * len(planned.shards) == 36
    # An upload counts until after its answer, when the next one may be there; files that piled up would be 36.
    assert proxy.in_flight.most_bytes <= 2 * max(sizes)
    # The next shard's rows are there or not yet; rows that piled up would be 18 shards' at the end and six shards' here.
    assert max(held[6:]) <= 2 * max(held[:6]), "the last shards hold no more than the first"


def full_at(disk: SmallDisk, point: str) -> Callable[[str], None]:
    """An observer that fills the disk the first time that `point` is reached."""
    done: list[str] = []

    def fill(name: str) -> None:
        if name == point and not done:
            done.append(name)
            disk.fill()

    return fill


@pytest.mark.parametrize(
    "point", ["before-data-file", "after-data-file", "after-audit-file", "before-record"]
)
def test_a_disk_that_fills_up_in_a_shard_leaves_no_file_of_it_and_the_run_is_finished_with_more_space(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
    point: str,
) -> None:
    work = Work(on_disk, spec)
    store = open_store(on_disk, prefix=spec.prefix)
    files = {info.key for info in store.list("tables")}
    run_id = plan_stub(on_disk, spec, work.snapshot, 2).run_id
    observe(full_at(small_disk, point))
    with pytest.raises(DiskFull, match="the disk is full") as caught:
        run_stub(on_disk, spec, run_id)
    assert f"shard 00000 of run {run_id} ({store.url()}" in caught.value.which
    assert "free space" in caught.value.fix
    assert committed_shards(store, run_id) == set()
    assert {info.key for info in store.list("tables")} == files, "what has no record takes no space"
    with pytest.raises(PenstockError, match="2 of 2 shards are not committed"):
        publish(on_disk, spec, run_id)
    work.assert_as_before()
    small_disk.make_space()
    work.assert_finishes()


def test_a_disk_that_is_full_at_planning_leaves_no_plan(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
) -> None:
    work = Work(on_disk, spec)
    small_disk.fill()
    with pytest.raises(DiskFull, match=r"plan\.json"):
        work.all()
    assert len(list(open_store(on_disk, prefix=spec.prefix).list("runs"))) == 1 + 1 + 2 + 1
    work.assert_as_before()
    small_disk.make_space()
    work.assert_finishes()


@pytest.mark.parametrize("point", ["before-audit-commit", "before-delta-commit", "after-delta-commit"])
def test_a_disk_that_fills_up_at_publication_publishes_all_or_nothing(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
    point: str,
) -> None:
    work = Work(on_disk, spec)
    observe(full_at(small_disk, point))
    with pytest.raises(DiskFull, match="the disk is full") as caught:
        work.all()
    assert str(small_disk.path) in caught.value.which
    assert caught.value.fix
    if point != "after-delta-commit":
        work.assert_as_before()
    small_disk.make_space()
    work.assert_finishes()


def test_a_disk_that_is_full_at_the_first_publication_is_a_full_disk(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
) -> None:
    planned = plan_stub(on_disk, spec, scoring_snapshot(on_disk, spec))
    run_stub(on_disk, spec, planned.run_id)
    small_disk.fill()
    with pytest.raises(DiskFull, match="tables/audit"):
        publish(on_disk, spec, planned.run_id)
    small_disk.make_space()
    assert publish(on_disk, spec, planned.run_id).rows == 360
    assert verify(on_disk, spec, planned.run_id).ok


def test_a_store_that_is_read_only_at_the_first_publication_is_an_access_denied(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
) -> None:
    planned = plan_stub(on_disk, spec, scoring_snapshot(on_disk, spec))
    run_stub(on_disk, spec, planned.run_id)
    small_disk.read_only(True)
    with pytest.raises(AccessDenied, match="tables/audit") as caught:
        publish(on_disk, spec, planned.run_id)
    assert "write access" in caught.value.fix
    small_disk.read_only(False)
    assert publish(on_disk, spec, planned.run_id).rows == 360


@pytest.mark.parametrize("point", ["plan", "before-data-file", "before-record"])
def test_a_store_that_became_read_only_is_an_access_denied_and_the_run_is_finished_later(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
    point: str,
) -> None:
    work = Work(on_disk, spec)
    if point == "plan":
        small_disk.read_only(True)
    else:
        observe(lambda name: small_disk.read_only(True) if name == point else None)
    with pytest.raises(AccessDenied, match="cannot be read or written") as caught:
        work.all()
    assert str(small_disk.path) in caught.value.which
    assert "write access" in caught.value.fix
    work.assert_as_before()
    observe(None)
    small_disk.read_only(False)
    work.assert_finishes()


@pytest.mark.parametrize("point", ["before-audit-commit", "before-delta-commit"])
def test_a_store_that_is_read_only_at_publication_is_an_access_denied(
    on_disk: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
    point: str,
) -> None:
    work = Work(on_disk, spec)
    observe(lambda name: small_disk.read_only(True) if name == point else None)
    with pytest.raises(AccessDenied) as caught:
        work.all()
    assert str(small_disk.path) in caught.value.which
    work.assert_as_before()
    observe(None)
    small_disk.read_only(False)
    work.assert_finishes()
    store = open_store(on_disk, prefix=spec.prefix)
    assert not [info.key for info in store.list("tables") if "_probe" in info.key]


@pytest.mark.parametrize("hours", [-30, 30])
def test_attempts_whose_clocks_differ_by_hours_commit_every_row_once(
    store_settings: Settings, spec: PipelineSpec, hours: int
) -> None:
    work = Work(store_settings, spec)
    planned = plan_stub(store_settings, spec, work.snapshot, 2)
    store = open_store(store_settings, prefix=spec.prefix)

    def skewed() -> datetime:
        return datetime.now(UTC) + timedelta(hours=hours)

    token = take_token(store, planned.run_id, clock=skewed)
    worker = ShardWorker(
        store_settings, spec, planned, token, load_model=STUB, audit_table=AUDIT, clock=skewed
    )
    worker.run(1)
    record = read_shard_record(store, planned.run_id, 1)
    assert record is not None
    off = datetime.fromisoformat(record.committed_at_utc) - datetime.now(UTC)
    assert abs(off - timedelta(hours=hours)) < timedelta(hours=1)
    run_stub(store_settings, spec, planned.run_id, clock=lambda: datetime.now(UTC) - timedelta(hours=hours))
    done = status(store_settings, spec, planned.run_id)
    assert (done.shards_done, done.rows_done, done.attempts) == (2, 120, 2)
    assert "100 %" in done.line()
    with pytest.raises(StaleAttempt, match="token 1, and token 2"):  # by token, whatever its clock says
        check_fence(store, planned.run_id, token)
    work.assert_finishes()


def test_a_run_planned_on_a_machine_whose_clock_is_behind_is_refused_and_named_and_may_be_forced(
    settings: Settings, spec: PipelineSpec
) -> None:
    work = Work(settings, spec)
    late = plan_stub(settings, spec, work.snapshot, 2, clock=lambda: datetime.now(UTC) - timedelta(hours=5))
    run_stub(settings, spec, late.run_id)
    with pytest.raises(StaleAttempt, match=f"{late.created_at_utc}.*run {work.first}") as caught:
        publish(settings, spec, late.run_id)
    assert "replace_newer" in caught.value.fix
    work.assert_as_before()
    publish(settings, spec, late.run_id, replace_newer=True)
    assert {row["run_id"] for row in table_rows(settings, spec)} == {late.run_id}
    assert verify(settings, spec, late.run_id).ok


def live_attempt(settings: Settings, spec: PipelineSpec, run_id: str) -> str:
    """A data file that an attempt has just written and will commit in a moment."""
    store = open_store(settings, prefix=spec.prefix)
    take_token(store, run_id)
    day = datetime(2024, 3, 1, tzinfo=UTC).date()
    key = f"tables/predictions/{FileName(day, run_id, day, 0, 'a0001-0123456789')}"
    store.put(key, b"rows")
    assert store.exists(plan_key(run_id))
    return key


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_sweep_on_a_machine_whose_clock_is_off_leaves_a_live_attempts_files(
    store_settings: Settings, spec: PipelineSpec, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_stub(store_settings, spec, scoring_snapshot(store_settings, spec))
    key = live_attempt(store_settings, spec, planned.run_id)
    set_store_clock(monkeypatch, timedelta(hours=-hours))
    swept = sweep_orphans(store_settings, spec, older_than=timedelta(hours=2))
    assert (swept.data_files, swept.kept_young) == (0, 1)
    store = open_store(store_settings, prefix=spec.prefix)
    assert store.exists(key)
    assert not list(store.list("_probe")), "the sweep asks the store for the time and leaves nothing"


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_sweep_on_a_machine_whose_clock_is_off_removes_what_is_old(
    settings: Settings, spec: PipelineSpec, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec))
    key = live_attempt(settings, spec, planned.run_id)
    store = open_store(settings, prefix=spec.prefix)
    three_hours_ago = (datetime.now(UTC) - timedelta(hours=3)).timestamp()
    os.utime(store.url(key), (three_hours_ago, three_hours_ago))
    set_store_clock(monkeypatch, timedelta(hours=-hours))
    assert sweep_orphans(settings, spec, older_than=timedelta(hours=2)).data_files == 1
    assert not store.exists(key)


def test_a_vacuum_on_a_machine_whose_clock_is_days_ahead_leaves_what_was_just_let_go(
    settings: Settings, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(settings, spec)
    ten_days = timedelta(days=10)
    with monkeypatch.context() as right:  # the publisher's clock, and the store's
        right.setattr("tasks.core.delta.time.time", lambda: (datetime.now(UTC) - ten_days).timestamp())
        work.all()
    set_store_clock(monkeypatch, -ten_days)
    assert vacuum(settings, spec).files == 0
    publish(settings, spec, work.first, replace_newer=True)
    work.assert_as_before()


def test_a_vacuum_removes_what_was_let_go_long_ago_by_right_clocks(
    settings: Settings, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(settings, spec)
    with monkeypatch.context() as ago:
        ago.setattr(
            "tasks.core.delta.time.time", lambda: (datetime.now(UTC) - timedelta(days=10)).timestamp()
        )
        work.all()
    assert vacuum(settings, spec, dry_run=True).files == 2
    assert vacuum(settings, spec).files == 2
