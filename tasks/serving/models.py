"""What the server needs of a model, of the audit store and of the deployment log; `tasks.wiring.serving` gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.serving.exposure import Deployed, Exposure
from tasks.serving.signature import Signature

if TYPE_CHECKING:
    from tasks.model.profile import Profile

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RowFailure:
    """A row that could not be scored."""

    stage: str
    error_class: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.error_class}: {self.reason}"


@dataclass(frozen=True)
class Scores:
    """What a model said of n rows. k of them were scored."""

    rows: npt.NDArray[np.int64]
    """Which rows, shape (k,)."""
    prediction_ids: Sequence[str]
    scores: Floats
    """Shape (k,)."""
    outputs: Floats
    """Shape (k, O)."""
    failures: Mapping[int, RowFailure]
    """By row."""
    batches: Any
    """The scored rows with their features, for the recorder alone."""


class ServedModel(Protocol):
    """A model that is loaded, verified and warm. `score` is called by one thread at a time, beside one that explains."""

    @property
    def deployed(self) -> Deployed: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def output_names(self) -> tuple[str, ...]: ...
    @property
    def trained_until(self) -> datetime:
        """End of its training window."""
        ...

    @property
    def reference_scores(self) -> npt.NDArray[np.int64]:
        """Histogram of its scores on the validation days; the bins of `Profile.score`."""
        ...

    def score(self, rows: pa.Table) -> Scores:
        """Score source rows by the code that batch scoring runs."""
        ...

    def profile(self, batches: Any) -> Profile:
        """Counts of scored rows on the bundle's grid."""
        ...


@dataclass(frozen=True)
class Answered:
    """Rows that were answered by one model, on their way to the audit store."""

    model: ServedModel
    batches: Any
    """`Scores.batches`."""
    request_ids: Sequence[str | None]
    """By row; None: its request was not answered, so it is not recorded."""
    scored_at: datetime
    rows: int


@dataclass(frozen=True)
class Recorded:
    """What one append did."""

    rows: int
    explained: int
    shed: int
    """Rows that the pipeline wants explained and that were not, because of the load."""


class Journal(Protocol):
    """Where answered rows become durable."""

    def append(self, groups: Sequence[Answered], *, explain: bool) -> Recorded:
        """Keep all rows, with or without explanations. Raises `PenstockError`."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where the exposure comes from."""

    def __call__(self) -> Exposure | None:
        """What the deployment log says now; None before the first promotion. Raises `PenstockError`."""
        ...


class Loader(Protocol):
    """How a version becomes a model that can answer."""

    def __call__(self, deployed: Deployed) -> ServedModel:
        """Fetch it by digest, verify it, replay its golden rows, warm it up. Raises `PenstockError`."""
        ...


class Quality(Protocol):
    """What is known of a version's quality."""

    def __call__(self, version: int) -> Mapping[str, float]:
        """Newest value by metric, from labels or estimated. Raises `PenstockError`."""
        ...
