"""Small real models of the toy pipeline, a server that runs in a thread, and clients."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from tasks.core import PipelineSpec, Settings
from tasks.metadata import MetadataStore
from tasks.metadata.deployments import NewEvent
from tasks.serving import Deployed, ModelServer, Running, ServingLimits, listen
from tasks.wiring.serving import ServedBundle, model_server

sys.path.append(str(Path(__file__).parents[1] / "inference"))

import inference_support
from bundle_support import upload_random_bundle

DAY = date(2024, 3, 1)
MOMENT = datetime(2024, 3, 1, tzinfo=UTC)
Bundles = dict[int, tuple[str, str]]
PATH = "/v1/pipelines/toy/predictions"
QUICK = ServingLimits(
    poll_s=0.05, record_every_s=0.02, count_every_s=0.02, drain_delay_s=0.05, default_timeout_s=20.0
)
"""Looks often, waits long: no test is about how fast this machine is."""


def toy_rows(settings: Settings, day: date = DAY) -> pa.Table:
    """A day of the toy source, as scoring sees it."""
    return inference_support.toy_rows(settings, day)


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as a client sends them."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def make_bundle(
    settings: Settings,
    spec: PipelineSpec,
    *,
    seed: int,
    hidden: tuple[int, ...] = (16, 8),
    features: str | None = None,
) -> tuple[str, str]:
    """A bundle with random weights in the store; (digest, feature version)."""
    folder = settings.home / f"made-{seed}"
    return upload_random_bundle(
        settings, spec, folder, seed=seed, hidden=hidden, features=features, training_id=f"{seed:016d}"
    )


def private_copy(made: Settings, root: Path) -> Settings:
    """An installation under `root` that has what `made` has."""
    shutil.copytree(made.home, root / "home")
    shutil.copytree(made.project, root / "project")
    return Settings.at_home(root / "home", project=root / "project")


def put_live(settings: Settings, spec: PipelineSpec, version: int, bundle: tuple[str, str]) -> None:
    """Write the event that makes a version live."""
    digest, feature_version = bundle
    MetadataStore.open(settings).append_events(
        spec,
        lambda head: [
            NewEvent(
                "promote",
                version,
                digest,
                feature_version,
                head.live.version if head.live else None,
                "tests",
                "serving",
            )
        ],
    )


@contextmanager
def running(server: ModelServer) -> Iterator[str]:
    """Serve in a thread until the end of the block; the URL."""
    listener = listen("127.0.0.1", 0)
    service, listens = Running(server), threading.Event()
    thread = threading.Thread(
        target=service.serve_on, args=(listener,), kwargs={"started": listens.set}, daemon=True
    )
    thread.start()
    assert listens.wait(60)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        service.end()
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def serving(
    settings: Settings, limits: ServingLimits = QUICK, **options: Any
) -> Iterator[tuple[ModelServer, httpx.Client]]:
    """The toy pipeline's server, its champion loaded, and a client."""
    server = model_server(settings, "toy", limits=limits, node="tests", **options)
    server.follow_once()
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield server, client


def until(condition: Any, *, timeout_s: float = 60, every_s: float = 0.01) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(every_s)


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels; 0 without one."""
    return sum(samples(client, name, **labels))


def samples(client: httpx.Client, name: str, **labels: str) -> list[float]:
    """The values of a metric's samples with these labels."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def deployed(version: int, bundles: Bundles) -> Deployed:
    return Deployed(version, *bundles[version], MOMENT)


class Clients:
    """Threads that ask for so many rows at once, and again so long after each answer; every answer or failure is kept."""

    def __init__(
        self,
        url: str,
        rows: list[dict[str, Any]],
        threads: int = 4,
        rows_each: int = 1,
        pause_s: float = 0.0,
    ) -> None:
        self._rows_each, self._pause_s = rows_each, pause_s
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self.stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, rows[number::threads]), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, url: str, rows: list[dict[str, Any]]) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not self.stop.is_set():
                for first in range(0, len(rows), self._rows_each):
                    time.sleep(self._pause_s)
                    some = rows[first : first + self._rows_each]
                    try:
                        answer = client.post(PATH, json={"rows": some})
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))
                        continue
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                    else:
                        names = [row["customer"] for row in some]
                        self.answers += zip(names, answer.json()["predictions"], strict=True)

    def versions(self) -> Counter[int]:
        return Counter(prediction["model_version"] for _, prediction in list(self.answers))


def expected_scores(
    settings: Settings, spec: PipelineSpec, bundles: Bundles, versions: tuple[int, ...]
) -> dict[tuple[str, int], float]:
    """(customer, version) -> score."""
    rows = toy_rows(settings)
    found = {}
    for version in versions:
        model = ServedBundle(settings, spec, deployed(version, bundles))
        scores = model.score(rows).scores.tolist()
        found.update(
            {(name, version): score for name, score in zip(rows["customer"].to_pylist(), scores, strict=True)}
        )
    return found


def now() -> datetime:
    return datetime.now(UTC)
