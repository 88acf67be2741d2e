"""Models that fail in a Ray actor: one that cannot be loaded, and ones that end or stop their process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from inference_support import StubModel

from tasks.core import PipelineSpec, Settings
from tasks.core.errors import DigestMismatch
from tasks.inference import Plan

DEADLY_PRICE = 666.0


def load_broken(*_: Any) -> Any:
    raise DigestMismatch("is damaged", which="bundle dddd", fix="train again")


class SignalsItself(StubModel):
    """Sends its process a signal at a deadly row; with a marker file only the first time that anybody does."""

    def __init__(self, version: int, sent: signal.Signals, marker: Path | None) -> None:
        super().__init__(version)
        self.sent, self.marker = sent, marker

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if (encoded[:, 0] == DEADLY_PRICE).any() and self._first():
            os.kill(os.getpid(), self.sent)
        return super().predict(encoded)

    def _first(self) -> bool:
        if self.marker is None:
            return True
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def load_killed_once(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    return SignalsItself(planned.fingerprint.model_version, signal.SIGKILL, settings.home / "killed")


def load_killed_always(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    return SignalsItself(planned.fingerprint.model_version, signal.SIGKILL, None)


def load_stopped_once(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    return SignalsItself(planned.fingerprint.model_version, signal.SIGSTOP, settings.home / "stopped")


class Unhurried(StubModel):
    """Takes its time, so that something can happen meanwhile."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(0.5)
        return super().predict(encoded)


def load_unhurried(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    return Unhurried(planned.fingerprint.model_version)
