"""What several replicas behind one address say together: their metrics, each with the replica's name.

A scrape through a load balancer would reach another replica each time, and counters would jump.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

FORGOTTEN_AFTER_S = 30.0
"""A replica that told nothing for so long is not there any more."""


class Board:
    """Keeps what each replica said last; an actor of its own on Ray."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, bytes]] = {}

    def put(self, replica: str, text: bytes) -> None:
        """What a replica says now."""
        self._said[replica] = (self._clock(), text)

    def remove(self, replica: str) -> None:
        """A replica has ended."""
        self._said.pop(replica, None)

    def all(self) -> dict[str, bytes]:
        """By replica, of those that live."""
        oldest = self._clock() - FORGOTTEN_AFTER_S
        self._said = {name: said for name, said in self._said.items() if said[0] >= oldest}
        return {name: text for name, (_, text) in self._said.items()}


class Teller:
    """A thread that tells the board every so often; a board that does not listen is told again later."""

    def __init__(self, tell: Callable[[], None], every_s: float) -> None:
        self._tell = tell
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._tell()


def merged(said: Mapping[str, bytes]) -> bytes:
    """One text in Prometheus' format from those of several replicas, each sample with its `replica`."""
    families: dict[str, Metric] = {}
    for replica in sorted(said):
        for family in text_string_to_metric_families(said[replica].decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))

    class Together:
        def collect(self) -> Iterable[Metric]:
            return families.values()

    registry = CollectorRegistry()
    registry.register(Together())
    return generate_latest(registry)
