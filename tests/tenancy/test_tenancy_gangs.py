"""Trainings on a shared cluster: all of their workers or none, kept to the end, and an account of what they had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from database_fixtures import on_database
from share_files import say
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import ServiceUnavailable, TerminalError, TransientError
from tasks.inference import Demand
from tasks.metadata import MetadataStore
from tasks.wiring.admission import Admission, admission
from tasks.wiring.context import open_context
from tasks.wiring.gang import gang

CLUSTER = "{gpus: 4, cpus: 16, beat_s: 0.1, lease_s: 60, gang_wait_s: 100}"
TWO = "share: {guarantee: {gpus: 2}}"


class Hands:
    """A clock that each sleep moves on by ten seconds, and what happens meanwhile."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self.now_s = 0.0
        self._meanwhile = list(meanwhile)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, _: float) -> None:
        self.now_s += 10
        if self._meanwhile:
            self._meanwhile.pop(0)()


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """An installation whose ledger is empty, once on each database."""
    return on_database(request, settings)


@pytest.fixture
def two(settings: Settings) -> Settings:
    """Red scores; blue trains on two GPUs."""
    say(settings, CLUSTER, red=TWO, blue=TWO)
    pipeline_of(settings, "red", "{max_workers: 4, gpus_per_worker: 1, cpus_per_worker: 4}")
    pipeline_of(settings, "blue", "{}")
    trains(settings, "{epochs: 2, workers: 2, gpus_per_worker: 1}")
    return settings


def trains(settings: Settings, training: str) -> None:
    path = settings.pipelines_dir / "blue_toy" / "pipeline.yaml"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("training:")]
    path.write_text("\n".join([*kept, f"training: {training}"]) + "\n")


@contextmanager
def trained(settings: Settings, hands: Hands, *worked: float) -> Iterator[None]:
    """A training that has kept `worked` seconds of epochs before and after."""
    found = iter(worked or (0.0, 0.0))
    with gang(
        open_context(settings, "blue_toy"),
        "t1",
        lambda: next(found),
        monotonic=hands,
        sleep=hands.sleep,
    ):
        yield


def red_borrows(settings: Settings) -> Admission:
    red = admission(open_context(settings, "red_toy"), "r1")
    assert isinstance(red, Admission)
    assert red.allowed(_has(0), boundary=False) == 4
    return red


def _has(workers: int) -> Demand:
    return Demand(workers, 4, 10, None, 0.0, 0.0, 0.0)


def beats(red: Admission, workers: int) -> int:
    red._beat_s = None
    return red.allowed(_has(workers), boundary=True)


def test_a_training_waits_until_all_of_its_workers_are_there_and_keeps_them_to_its_end(two: Settings) -> None:
    red = red_borrows(two)
    hands = Hands(
        lambda: beats(red, 4),  # it is told to give two back, and has not yet
        lambda: beats(red, 3),  # one is there: of no use to a gang
        lambda: beats(red, 2),
    )
    with trained(two, hands):
        assert hands.now_s == 30.0
        rows = {row["tenant"]: row for row in MetadataStore.open(two).lease_rows()}
        assert (rows["blue"]["width"], rows["blue"]["kind"], rows["blue"]["least"]) == (2, "training", 2)
        assert beats(red, 2) == 2, "red wants four, and gets none of them back before the training ends"
    assert beats(red, 2) == 4
    assert [row["tenant"] for row in MetadataStore.open(two).lease_rows()] == ["red"]


def test_a_training_that_can_never_be_placed_is_refused_with_limit_and_figure(two: Settings) -> None:
    trains(two, "{epochs: 2, workers: 5, gpus_per_worker: 1}")
    with (
        pytest.raises(TerminalError, match="5 workers at once need 5 GPUs, 5 CPUs; the cluster has 4 GPUs"),
        trained(two, Hands()),
    ):
        raise AssertionError("it began")
    trains(two, "{epochs: 2, workers: 3, gpus_per_worker: 1}")
    with (
        pytest.raises(
            TerminalError, match="the tenant's guarantee and what is promised to nobody come to 2 GPUs"
        ),
        trained(two, Hands()),
    ):
        raise AssertionError("it began")
    assert MetadataStore.open(two).lease_rows() == []


def test_a_training_that_has_waited_too_long_says_what_it_waited_for(two: Settings) -> None:
    red_borrows(two)
    waits = (
        r"has waited 100 s \(gang_wait_s\) for 2 workers at once: gets 2 workers as soon as others have finished "
        "the shards they are at"
    )
    with pytest.raises(TransientError, match=waits), trained(two, Hands()):
        raise AssertionError("it began")
    assert [row["tenant"] for row in MetadataStore.open(two).lease_rows()] == ["red"]


def test_a_second_attempt_waits_while_the_first_has_the_workers(two: Settings) -> None:
    with trained(two, Hands()):
        with (
            pytest.raises(TransientError, match="another attempt of it has its workers"),
            trained(two, Hands()),
        ):
            raise AssertionError("it began")
        assert len(MetadataStore.open(two).lease_rows()) == 1
    with trained(two, Hands()):
        pass


def test_without_the_ledger_no_training_begins_and_one_that_runs_keeps_its_workers(
    two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ServiceUnavailable("the metadata database does not answer: connection refused", which="db")

    with monkeypatch.context() as patch, trained(two, Hands()):
        patch.setattr(MetadataStore, "lease_request", away)
    assert len(MetadataStore.open(two).lease_rows()) == 1, "its lease ends by itself"
    with monkeypatch.context() as patch:
        patch.setattr(MetadataStore, "lease_request", away)
        with pytest.raises(ServiceUnavailable, match="nothing was begun"), trained(two, Hands()):
            raise AssertionError("it began")


@pytest.mark.parametrize("cluster", [True, False])
def test_the_account_of_a_training_is_that_of_its_workers_and_a_failed_one_is_billed_and_flagged(
    two: Settings, cluster: bool
) -> None:
    if not cluster:
        (two.project / "tenants" / "_cluster.yaml").unlink()
    hands = Hands()
    with trained(two, hands, 100.0, 130.0):
        hands.now_s = 40.0
    hands = Hands()
    with pytest.raises(RuntimeError), trained(two, hands, 130.0, 135.0):
        hands.now_s = 50.0
        raise RuntimeError("out of memory")
    failed, finished = sorted(wiring.cost_ledger(two)["lines"], key=lambda line: str(line["outcome"]))
    assert (finished["outcome"], failed["outcome"]) == ("finished", "failed")
    assert {"tenant": "blue", "kind": "training", "run": "t1"}.items() <= finished.items()
    times = ("allocated_s", "used_s", "idle_s", "wasted_s", "gpu_seconds", "cpu_seconds")
    assert [finished[name] for name in times] == [80.0, 60.0, 20.0, 0.0, 80.0, 80.0]
    assert [failed[name] for name in times] == [100.0, 10.0, 0.0, 90.0, 100.0, 100.0]
