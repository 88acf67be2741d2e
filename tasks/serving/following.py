"""Follows the deployment log: loads what is new beside what answers, and swaps only when it is verified and warm."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tasks.serving.exposure import Deployed, Exposure, goes_to_challenger
from tasks.serving.limits import ServingLimits
from tasks.serving.metrics import ServingMetrics
from tasks.serving.models import Loader, Quality, ServedModel, Source

log = logging.getLogger(__name__)

_FIRST_RETRY_S, _LONGEST_RETRY_S = 2.0, 120.0


@dataclass(frozen=True)
class Live:
    """Who answers now. Replaced as a whole, so a request sees one or the other and never a mixture."""

    exposure: Exposure
    champion: ServedModel
    challenger: ServedModel | None = None

    def model_for(self, pipeline: str, entity: str) -> ServedModel:
        """Who answers this entity."""
        if self.challenger is not None and goes_to_challenger(pipeline, entity, self.exposure):
            return self.challenger
        return self.champion

    @property
    def shadow(self) -> ServedModel | None:
        """Who scores copies."""
        return self.challenger if self.exposure.shadow else None


class Follower:
    """A thread that asks for the exposure every so often.

    Whatever fails, what answers goes on answering: the log that cannot be read is asked again, a version that cannot be loaded or does not
    compute what it was trained to is tried again later, and until then the version before it answers.

    Args:
        source: The deployment log.
        load: Makes a version answer.
        swap: Called with who answers from now on.
        quality: What is known of a version's quality.
    """

    def __init__(
        self,
        source: Source,
        load: Loader,
        swap: Callable[[Live], None],
        quality: Quality,
        limits: ServingLimits,
        metrics: ServingMetrics,
    ) -> None:
        self._source = source
        self._load = load
        self._swap = swap
        self._quality = quality
        self._limits = limits
        self._metrics = metrics
        self._live: Live | None = None
        self._applied: Exposure | None = None
        self._failed: dict[tuple[int, str], tuple[float, float]] = {}
        """Version and digest -> when to try again, and how long it was waited."""
        self._complaint = ""
        self._quality_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def follow_once(self) -> None:
        """Ask, and load and swap if there is something new. Raises nothing but what no version could answer for."""
        try:
            wanted = self._source()
        except Exception as error:
            self._complain("log", f"The deployment log cannot be read, what answers stays: {error}")
            return
        if wanted is None or wanted == self._applied:
            self._complaint = ""
            return
        champion = self._model(wanted.champion)
        if champion is None:
            return
        challenger = self._model(wanted.challenger) if wanted.challenger else None
        complete = challenger is not None or wanted.challenger is None
        live = Live(wanted if complete else Exposure(wanted.champion), champion, challenger)
        self._applied = wanted if complete else None
        if live != self._live:
            self._live, self._quality_at = live, 0.0
            self._swap(live)

    def _model(self, wanted: Deployed) -> ServedModel | None:
        """The model of a version, loaded unless it is; None when it cannot be now."""
        for known in (self._live.champion, self._live.challenger) if self._live else ():
            if known and _key(known.deployed) == _key(wanted):
                return known
        at, waited_s = self._failed.get(_key(wanted), (0.0, 0.0))
        if time.monotonic() < at:
            return None
        try:
            model = self._load(wanted)
        except Exception as error:  # a broken version must not end the server, whatever it raises
            wait_s = min(max(_FIRST_RETRY_S, 2 * waited_s), _LONGEST_RETRY_S)
            self._failed[_key(wanted)] = (time.monotonic() + wait_s, wait_s)
            self._complain("load", f"Version {wanted.version} cannot answer, what answers stays: {error}")
            return None
        self._failed.pop(_key(wanted), None)
        return model

    def _complain(self, cause: str, text: str) -> None:
        self._metrics.follow_failures.labels(*self._metrics.owner, cause).inc()
        if text != self._complaint:
            log.error("%s", text)
            self._complaint = text

    def _run(self) -> None:
        while not self._stop.wait(self._limits.poll_s):
            self.follow_once()
            if (share := accelerator_share()) is not None:
                self._metrics.accelerator_used(share)
            if self._live is not None and time.monotonic() >= self._quality_at:
                self._quality_at = time.monotonic() + self._limits.quality_every_s
                self._ask_quality(self._live)

    def _ask_quality(self, live: Live) -> None:
        for model in (live.champion, live.challenger):
            if model is not None:
                try:
                    self._metrics.measured(model, self._quality(model.deployed.version))
                except Exception as error:
                    self._complain("quality", f"What is known of quality cannot be read: {error}")


def accelerator_share() -> float | None:
    """How busy the GPU of this process is, 0 to 1; None when it uses none, or without the driver's library.

    A process that computes on the CPU does not ask: that alone would take some of the GPU's memory.
    """
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        return float(torch.cuda.utilization()) / 100
    except Exception:  # pynvml is not there, or forbidden
        return None


def _key(deployed: Deployed) -> tuple[int, str]:
    return deployed.version, deployed.bundle_digest
