"""Records, errors, settings, object store, ids and clock: what every room stands on."""

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import PenstockError, TerminalError, TransientError
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import Finding, PartitionFile, Snapshot, Verdict
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, load_pipeline, pipeline_names

__all__ = [
    "Clock",
    "Finding",
    "ObjectStore",
    "PartitionFile",
    "PenstockError",
    "PipelineSpec",
    "Settings",
    "Snapshot",
    "TerminalError",
    "TransientError",
    "Verdict",
    "iso_utc",
    "load_pipeline",
    "open_store",
    "pipeline_names",
    "utc_now",
]
