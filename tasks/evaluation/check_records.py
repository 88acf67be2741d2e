"""What the checks of the model itself found, as records of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.records import JsonRecord


@dataclass(frozen=True)
class TestFailure(JsonRecord):
    """One test of the model folder that failed or could not run."""

    __test__ = False  # pytest collects classes by their name

    name: str
    reason: str


@dataclass(frozen=True)
class FolderTests(JsonRecord):
    """The tests of `pipelines/<name>/tests`, run in a clean process."""

    passed: int
    failed: int
    """Failures and errors."""
    skipped: int
    junit_xml: str
    """The report as pytest wrote it; empty when no test ran."""
    output: str
    """The end of what pytest printed."""
    failures: tuple[TestFailure, ...] = ()
    error: str | None = None
    """Why the tests could not be run to their end, when they could not."""
    digest: str = ""
    """Of the files under `tests`; empty when there are none."""

    @property
    def found(self) -> bool:
        """Whether the folder has tests at all."""
        return bool(self.digest)


@dataclass(frozen=True)
class ProcessLoad(JsonRecord):
    """One bundle under load in a process of its own. Times are medians over the rounds."""

    rounds: int
    batch_rows: int
    p50_ms: float
    """Wall time of one row, from source row to probability."""
    p99_ms: float
    cpu_ms_one_row: float
    """CPU time of one row scored alone."""
    rows_per_cpu_s: float
    """At `batch_rows` rows at a time."""
    peak_memory_mb: float
    """Largest resident size of the process."""
    growth_mb: float
    """What the load added to it after the first batch."""
    load_cpu_s: float
    """CPU seconds until the bundle was loaded."""


@dataclass(frozen=True)
class Footprint(JsonRecord):
    """Candidate and champion under the same load, in turns."""

    candidate: ProcessLoad | None
    champion: ProcessLoad | None = None
    candidate_error: str | None = None
    champion_error: str | None = None
    one_row_ratio: float | None = None
    """CPU time of one row, candidate over champion; median over the rounds."""
    batch_ratio: float | None = None
    """The same of a batch."""


@dataclass(frozen=True)
class Dependency(JsonRecord):
    """A distribution that the scoring process imported."""

    name: str
    version: str
    licence: str
    """As its metadata says; empty when that says nothing."""


@dataclass(frozen=True)
class Signature(JsonRecord):
    """What a bundle reads and gives."""

    inputs: dict[str, str]
    """Source columns that its features are computed from, with their types."""
    features: tuple[str, ...]
    """In the order of the encoded matrix."""
    categories: dict[str, tuple[str, ...]]
    """Categories with a code of their own, by categorical feature."""
    outputs: dict[str, str]
    """Columns that its scores are published in, with their types."""


@dataclass(frozen=True)
class ModelChecks(JsonRecord):
    """Everything that is measured on the model itself."""

    footprint: Footprint
    signature: Signature | None
    champion_signature: Signature | None
    scoring_columns: dict[str, str]
    """Columns of the snapshot that a scoring snapshot has as well, with their types."""
    dependencies: tuple[Dependency, ...]
    python_version: str
    tests: FolderTests
    signature_error: str | None = None
