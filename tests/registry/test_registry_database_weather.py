"""The metadata database fails in the middle of each step of delivery: what is said, what is kept, and the next attempt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import services
from database_fixtures import on_postgres
from postgres_proxy import Moment, PostgresProxy
from registry_support import Trained, passing, record_versions
from small_disk import SmallDisk, small_disk  # noqa: F401 (a fixture)
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tasks import registry, wiring
from tasks.core import PipelineSpec, Settings, load_pipeline, utc_now
from tasks.core.errors import CommitOutcomeUnknown, PenstockError, ServiceUnavailable
from tasks.metadata import MetadataStore, ModelVersion
from tasks.registry.mlflow_api import MlflowRegistry

EVENTS, VERDICTS = "INSERT INTO penstock_deployment_events", "INSERT INTO penstock_verdicts"
Step = Callable[[Settings, PipelineSpec], Any]


def loads(model: ModelVersion) -> None:
    """A check that passes."""


def promote(settings: Settings, spec: PipelineSpec) -> int:
    return registry.promote(settings, spec, 3, expected=2, actor="t", reason="better", check=loads).event_id


def rollback(settings: Settings, spec: PipelineSpec) -> int:
    return registry.rollback(settings, spec, expected=2, actor="t", reason="worse", check=loads).event_id


def gate(settings: Settings, spec: PipelineSpec) -> None:
    verdict = passing(spec, "a")
    MetadataStore.open(settings).record_verdict(spec, verdict, dag_run="run 1")


def canary(settings: Settings, spec: PipelineSpec) -> None:
    """Each attempt decides at another moment."""
    decided = utc_now().isoformat()
    verdict = dataclasses.replace(passing(spec, "b"), gate="canary", decided_at_utc=decided)
    MetadataStore.open(settings).record_verdict(spec, verdict, dag_run="run 1")


STEPS: dict[str, tuple[Step, str, list[str]]] = {
    "promote": (promote, EVENTS, ["promote"]),
    "rollback": (rollback, EVENTS, ["bar", "rollback"]),
    "gate": (gate, VERDICTS, ["evaluation"]),
    "canary": (canary, VERDICTS, ["canary"]),
}


def kept(settings: Settings, spec: PipelineSpec) -> list[str]:
    """What the step left: events after the first two, newest first, and verdicts."""
    store = MetadataStore.open(settings)
    events = [event.kind for event in store.history(spec) if event.event_id > 2]
    return events + [item.verdict.gate for item in store.verdicts(spec)]


def says_enough(error: PenstockError) -> None:
    assert "127.0.0.1" in error.which and error.what and "again" in error.fix
    assert "s3cr3t" not in str(error)


def impatient(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    monkeypatch.setitem(MetadataStore.open.__func__.__kwdefaults__, "patience_s", patience_s)  # type: ignore[attr-defined]


@pytest.fixture
def direct(settings: Settings, spec: PipelineSpec, postgres_url: str) -> Settings:
    """PostgreSQL without the proxy: versions 1 and 2 were promoted, 3 is registered, MLflow is down."""
    made = dataclasses.replace(
        on_postgres(settings, postgres_url), mlflow_url=f"http://127.0.0.1:{services.free_port()}"
    )
    two_promoted(made, spec)
    return made


def two_promoted(settings: Settings, spec: PipelineSpec) -> None:
    record_versions(settings, spec, 3)
    for number in (1, 2):
        registry.promote(
            settings, spec, number, expected=number - 1 or None, actor="t", reason="", check=loads
        )


@pytest.fixture
def proxy(direct: Settings) -> Iterator[PostgresProxy]:
    with PostgresProxy(direct.metadata_url) as made:
        yield made


@pytest.mark.parametrize("moment", ["at the statement", "before commit", "after commit"])
@pytest.mark.parametrize("name", STEPS)
def test_a_connection_cut_in_the_middle_of_a_step_leaves_nothing_or_all_of_it_and_the_next_attempt_does_not_do_it_twice(
    direct: Settings, proxy: PostgresProxy, spec: PipelineSpec, name: str, moment: Moment
) -> None:
    step, statement, whole = STEPS[name]
    through = dataclasses.replace(direct, metadata_url=proxy.url)
    proxy.add(statement, moment)
    if moment == "after commit" and statement == EVENTS:
        step(through, spec)  # the log is read on a new connection, and says that it was done
    else:
        wanted = ServiceUnavailable if moment == "at the statement" else CommitOutcomeUnknown
        with pytest.raises(wanted) as caught:
            step(through, spec)
        says_enough(caught.value)
    assert proxy.met == 1
    assert kept(direct, spec) == (whole if moment == "after commit" else [])
    step(through, spec)
    assert kept(direct, spec) == whole


@pytest.mark.parametrize(("move", "live"), [(promote, 3), (rollback, 1)])
def test_a_server_lost_after_the_commit_leaves_the_outcome_unknown_and_the_next_attempt_finds_the_move_done(
    direct: Settings, proxy: PostgresProxy, spec: PipelineSpec, move: Step, live: int
) -> None:
    through = dataclasses.replace(direct, metadata_url=proxy.url)
    proxy.add(EVENTS, "after commit", then_gone=True)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        move(through, spec)
    says_enough(caught.value)
    with pytest.raises(ServiceUnavailable) as gone:
        move(through, spec)
    says_enough(gone.value)
    proxy.gone = False
    before = registry.history(direct, spec)
    assert move(through, spec) == 3
    assert registry.history(direct, spec) == before
    found = registry.champion(through, spec)
    assert found is not None and found.version == live


@pytest.mark.parametrize("moment", ["hang at the statement", "hang at commit"])
def test_a_server_that_stops_answering_is_given_up_and_the_next_attempt_moves_the_champion(
    direct: Settings,
    proxy: PostgresProxy,
    spec: PipelineSpec,
    moment: Moment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through = dataclasses.replace(direct, metadata_url=proxy.url)
    impatient(monkeypatch, 0.1)
    proxy.add(EVENTS, moment)
    wanted = CommitOutcomeUnknown if moment == "hang at commit" else ServiceUnavailable
    with pytest.raises(wanted) as caught:
        promote(through, spec)
    says_enough(caught.value)
    assert kept(direct, spec) == []
    proxy.release()
    impatient(monkeypatch, 10.0)
    promote(through, spec)
    assert kept(direct, spec) == ["promote"]


@pytest.mark.parametrize("step", [promote, rollback, gate, registry.champion])
def test_a_lock_that_is_never_released_is_waited_for_a_known_time_by_readers_too(
    direct: Settings, spec: PipelineSpec, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 0.2)
    with create_engine(direct.metadata_url).connect() as other:
        other.execute(
            text("LOCK TABLE penstock_deployment_events, penstock_verdicts IN ACCESS EXCLUSIVE MODE")
        )
        with pytest.raises(ServiceUnavailable, match="lock timeout") as caught:
            step(direct, spec)
        assert "holds the lock" in caught.value.fix
    assert kept(direct, spec) == []
    step(direct, spec)


@pytest.mark.parametrize("step", [promote, rollback, canary])
def test_a_read_only_server_is_a_transient_error_that_says_so(
    direct: Settings, spec: PipelineSpec, step: Step
) -> None:
    def read_only(now: str) -> None:
        database = direct.metadata_url.rsplit("/", 1)[1]
        with create_engine(direct.metadata_url, isolation_level="AUTOCOMMIT").connect() as other:
            other.execute(text("SET default_transaction_read_only = off"))
            other.execute(text(f"ALTER DATABASE {database} SET default_transaction_read_only = {now}"))

    read_only("on")
    with pytest.raises(ServiceUnavailable, match="read-only") as caught:
        step(direct, spec)
    assert "primary" in caught.value.fix
    live = registry.champion(direct, spec)
    assert live is not None and live.version == 2, "reading goes on"
    read_only("off")
    step(direct, spec)
    assert kept(direct, spec)


def test_a_server_without_a_free_connection_is_a_transient_error_that_says_so(
    direct: Settings, spec: PipelineSpec
) -> None:
    role = direct.metadata_url.rsplit("/", 1)[1] + "_role"
    with create_engine(direct.metadata_url).begin() as owner:
        owner.execute(text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"))
        owner.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
    url = direct.metadata_url.replace("//penstock@", f"//{role}:s3cr3t@")
    few = dataclasses.replace(direct, metadata_url=url)
    with (
        create_engine(url, poolclass=NullPool).connect(),  # a pool would keep the only connection
        pytest.raises(ServiceUnavailable, match="too many connections") as caught,
    ):
        promote(few, spec)
    says_enough(caught.value)
    assert "max_connections" in caught.value.fix
    assert kept(direct, spec) == []
    promote(few, spec)
    assert kept(direct, spec) == ["promote"]


@pytest.mark.parametrize(
    ("statement", "moment", "gone"),
    [
        (EVENTS, "at the statement", False),
        (EVENTS, "after commit", True),
        ("INSERT INTO penstock_alias_projections", "at the statement", False),
        ("INSERT INTO penstock_alias_projections", "after commit", False),
    ],
)
def test_a_reconcile_that_loses_the_database_is_repeated_and_records_the_hand_once(
    with_mlflow: Settings,
    spec: PipelineSpec,
    postgres_url: str,
    train: Callable[[str], Trained],
    mlflow: MlflowRegistry,
    statement: str,
    moment: Moment,
    gone: bool,
) -> None:
    direct = on_postgres(with_mlflow, postgres_url)
    for letter in "ab":
        registry.register_challenger(direct, spec, train(letter), passing(spec, letter), {})
    registry.promote(direct, spec, 1, expected=None, actor="t", reason="", check=loads)
    mlflow.set_alias(spec.model_name, "champion", 2)
    with PostgresProxy(direct.metadata_url) as proxy:
        through = dataclasses.replace(direct, metadata_url=proxy.url)
        proxy.add(statement, moment, then_gone=gone)
        with pytest.raises((ServiceUnavailable, CommitOutcomeUnknown)) as caught:
            registry.reconcile(through, spec)
        says_enough(caught.value)
        proxy.gone = False
        registry.reconcile(through, spec)
        assert registry.reconcile(through, spec) == []
    assert mlflow.aliases(spec.model_name) == {"champion": 1, "challenger": 2}
    assert [event.kind for event in registry.history(direct, spec)] == ["revert", "promote"]


def test_a_waiver_is_not_placed_while_the_verdicts_cannot_be_read_and_once_when_they_can(
    direct: Settings, proxy: PostgresProxy
) -> None:
    toy = load_pipeline(direct, "toy")
    MetadataStore.open(direct).record_verdict(toy, passing(toy, "a", "fail"))
    through = dataclasses.replace(direct, metadata_url=proxy.url)
    until = (utc_now() + timedelta(days=3)).date().isoformat()

    def waive() -> None:
        wiring.step("waive_finding")(through, "toy", finding="auc", until=until, actor="ada", reason="known")

    proxy.add("FROM penstock_verdicts", "at the statement")
    with pytest.raises(ServiceUnavailable) as caught:
        waive()
    says_enough(caught.value)
    assert wiring.step("list_waivers")(direct, "toy")["waivers"] == []
    waive()
    assert len(wiring.step("list_waivers")(direct, "toy")["waivers"]) == 1


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("name", STEPS)
def test_a_disk_below_sqlite_that_cannot_be_written_leaves_the_champion_and_the_next_attempt_succeeds(
    settings: Settings,
    spec: PipelineSpec,
    small_disk: SmallDisk,  # noqa: F811
    fault: str,
    name: str,
) -> None:
    step, _, whole = STEPS[name]
    local = dataclasses.replace(
        settings,
        metadata_url=f"sqlite:///{small_disk.path / 'metadata.db'}",
        mlflow_url=f"http://127.0.0.1:{services.free_port()}",
    )
    two_promoted(local, spec)
    if fault == "full":
        small_disk.fill()
    else:
        small_disk.read_only(True)
    with pytest.raises(ServiceUnavailable) as caught:
        step(local, spec)
    assert str(small_disk.path) in caught.value.which and "again" in caught.value.fix
    if fault == "full":
        small_disk.make_space()
    else:
        small_disk.read_only(False)
    assert kept(local, spec) == []
    step(local, spec)
    assert kept(local, spec) == whole
