"""OpenLineage events of steps: what a run read and wrote, in which version and how many rows.

A job is `<pipeline>.<step>` in the namespace `penstock://<tenant>`; its run's parent is Airflow's task, where there is one.
Names of datasets follow OpenLineage's naming of files and S3 objects, so that another system's lineage joins.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tasks.core import PipelineSpec, Settings, utc_now
from tasks.core.clock import iso_utc
from tasks.core.errors import PenstockError
from tasks.wiring.context import Context, open_context

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run
    from openlineage.client.facet_v2 import parent_run

_PRODUCER = "urn:penstock"
_SEND_S = 5.0
_RETRY = {"total": 1, "backoff_factor": 0.2, "status_forcelist": [502, 503, 504], "allowed_methods": ["POST"]}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Touched:
    """A dataset that a step read or wrote. `key` is in the pipeline's store; `url` is anywhere."""

    key: str = ""
    url: str = ""
    version: str | None = None
    rows: int | None = None
    size_bytes: int | None = None
    files: int | None = None
    columns: tuple[tuple[str, str], ...] = ()
    checks: tuple[tuple[str, bool], ...] = ()
    """(name, whether it passed) of what a gate looked at."""


@dataclass(frozen=True)
class ReadAndWritten:
    """What a step did."""

    read: tuple[Touched, ...] = ()
    written: tuple[Touched, ...] = ()


def reported(
    name: str,
    function: Callable[..., dict[str, Any]],
    settings: Settings,
    pipeline: str,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Call a step between two events. An event that cannot be sent is a warning in the log."""
    event = _Events.of(name, settings, pipeline, arguments)
    event.send("START")
    try:
        result = function(settings, pipeline, **arguments)
    except BaseException as error:
        event.send("FAIL", error=error)
        raise
    event.send("COMPLETE", result=result)
    return result


class _Events:
    """The events of one run of a step."""

    def __init__(
        self, name: str, settings: Settings, context: Context | None, arguments: Mapping[str, Any]
    ) -> None:
        self._name = name
        self._settings = settings
        self._context = context
        self._arguments = arguments
        self._run_id = str(uuid.uuid4())

    @classmethod
    def of(cls, name: str, settings: Settings, pipeline: str, arguments: Mapping[str, Any]) -> _Events:
        try:
            return cls(name, settings, open_context(settings, pipeline), arguments)
        except PenstockError:  # the step says why; it has no dataset to tell of
            return cls(name, settings, None, arguments)

    def send(
        self, state: str, *, result: Mapping[str, Any] | None = None, error: BaseException | None = None
    ) -> None:
        if self._context is None:
            return
        try:
            from openlineage.client.event_v2 import RunEvent, RunState

            touched = _touched(self._name, self._context, self._arguments, result)
            read = [replace(one, checks=()) for one in touched.read] if state == "START" else touched.read
            _client(self._settings.lineage or "").emit(
                RunEvent(
                    eventType=RunState[state],
                    eventTime=iso_utc(utc_now()),
                    run=self._run(error),
                    job=self._job(self._context.spec),
                    inputs=[_input(self._context, one) for one in read],
                    outputs=[_output(self._context, one) for one in touched.written],
                    producer=_PRODUCER,
                )
            )
        except Exception as problem:  # lineage never fails a run
            log.warning("The lineage event %s of %s was not sent: %s", state, self._name, problem)

    def _job(self, spec: PipelineSpec) -> Job:
        from openlineage.client.event_v2 import Job
        from openlineage.client.facet_v2 import job_type_job

        kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="PENSTOCK", jobType="STEP")
        return Job(namespace=namespace_of(spec), name=f"{spec.name}.{self._name}", facets={"jobType": kind})

    def _run(self, error: BaseException | None) -> Run:
        from openlineage.client.event_v2 import Run
        from openlineage.client.facet_v2 import error_message_run, parent_run

        facets: dict[str, Any] = {}
        if self._settings.lineage_parent:
            namespace, job, run_id = self._settings.lineage_parent.rsplit("/", 2)
            facets["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(runId=run_id),
                job=parent_run.Job(namespace=namespace, name=job),
                root=self._root(),
            )
        if error is not None:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=str(error), programmingLanguage="python"
            )
        return Run(runId=self._run_id, facets=facets)

    def _root(self) -> parent_run.Root | None:
        from openlineage.client.facet_v2 import parent_run

        if not self._settings.lineage_root:
            return None
        namespace, job, run_id = self._settings.lineage_root.rsplit("/", 2)
        return parent_run.Root(
            run=parent_run.RootRun(runId=run_id), job=parent_run.RootJob(namespace=namespace, name=job)
        )


def namespace_of(spec: PipelineSpec) -> str:
    """The namespace of a tenant's jobs."""
    return f"penstock://{spec.tenant}"


def _touched(
    name: str, context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any] | None
) -> ReadAndWritten:
    """What is known of a step's datasets: before it ran by its arguments, after by its result."""
    found = _STEPS.get(name)
    return found(context, arguments, result or {}) if found else ReadAndWritten()


def _snapshot(context: Context, snapshot_id: str | None, **more: Any) -> tuple[Touched, ...]:
    if not snapshot_id:
        return ()
    found = context.snapshot(snapshot_id)
    size = sum(part.size_bytes for part in found.partitions)
    return (
        Touched(
            f"snapshots/{snapshot_id}.json",
            version=snapshot_id,
            rows=found.rows,
            size_bytes=size,
            files=len(found.partitions),
            columns=found.schema,
            **more,
        ),
    )


def _bundle(digest: str | None) -> tuple[Touched, ...]:
    return (Touched(f"bundles/{digest}", version=digest),) if digest else ()


def _taking(context: Context, _arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    uri = context.spec.source.uri
    if "://" not in uri:
        uri = str(context.settings.pipelines_dir / context.spec.name / uri)
    return ReadAndWritten(
        (Touched(url=uri),),
        _snapshot(context, result.get("snapshot_id")),
    )


def _validating(context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    judged = arguments.get("snapshot_id")
    verdicts = context.metadata.verdicts(context.spec, subject=judged, gate="data", limit=1) if judged else []
    checks = tuple(
        (finding.name, finding.status != "fail") for stored in verdicts for finding in stored.verdict.findings
    )
    written = _snapshot(context, result.get("snapshot_id"))
    if key := result.get("quarantine_key"):
        written += (Touched(str(key), rows=result.get("quarantined_rows")),)
    return ReadAndWritten(_snapshot(context, judged, checks=checks), written)


def _training(context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    return ReadAndWritten(
        _snapshot(context, arguments.get("snapshot_id")), _bundle(result.get("bundle_digest"))
    )


def _evaluating(context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    key = result.get("evaluation_key")
    return ReadAndWritten(
        _snapshot(context, arguments.get("snapshot_id")) + _bundle(arguments.get("bundle_digest")),
        (Touched(str(key), rows=result.get("rows")),) if key else (),
    )


def _scoring(context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    from tasks.inference import status
    from tasks.inference.records import read_plan

    run_id = str(arguments["run_id"])
    pinned = read_plan(context.store, run_id).fingerprint
    read = _snapshot(context, pinned.snapshot_id) + _bundle(pinned.bundle_digest)
    if pinned.exposed:
        read += _bundle(pinned.exposed.bundle_digest)
    if not result:
        return ReadAndWritten(read)
    whole = status(context.settings, context.spec, run_id)
    written: tuple[Touched, ...] = (
        Touched(
            f"runs/{run_id}",
            version=run_id,
            rows=whole.rows_done - whole.dead_letters,
            files=whole.shards_done,
        ),
    )
    if whole.dead_letters:
        written += (Touched(f"runs/{run_id}/dead-letters", version=run_id, rows=whole.dead_letters),)
    return ReadAndWritten(read, written)


def _publishing(_context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    run_id = str(arguments["run_id"])
    read = (Touched(f"runs/{run_id}", version=run_id, rows=result.get("rows")),)
    if not result:
        return ReadAndWritten(read)
    predictions = Touched(
        "tables/predictions", version=str(result["table_version"]), rows=result["rows"], files=result["files"]
    )
    return ReadAndWritten(read, (predictions, Touched("tables/audit", files=result["audit_files"])))


def _resuming(context: Context, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    scored = _scoring(context, arguments, result)
    if not result:
        return scored
    table = Touched("tables/predictions", version=str(result["table_version"]), rows=result["rows"])
    return ReadAndWritten(scored.read, (*scored.written, table, Touched("tables/audit")))


def _measuring(_context: Context, _arguments: Mapping[str, Any], result: Mapping[str, Any]) -> ReadAndWritten:
    return ReadAndWritten((Touched("tables/predictions"),), (Touched("monitoring"),) if result else ())


_STEPS: dict[str, Callable[[Context, Mapping[str, Any], Mapping[str, Any]], ReadAndWritten]] = {
    "snapshot_training": _taking,
    "snapshot_scoring": _taking,
    "validate_snapshot": _validating,
    "train_model": _training,
    "evaluate_model": _evaluating,
    "score_run": _scoring,
    "publish_run": _publishing,
    "resume_run": _resuming,
    "measure_window": _measuring,
    "join_labels": _measuring,
}
"""Steps whose datasets are told; the others' events name the run alone."""


def _named(context: Context, touched: Touched) -> tuple[str, str]:
    """(namespace, name) as OpenLineage names files and objects."""
    url = touched.url or context.store.url(touched.key)
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return "file", parts.path
    return f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")


def _facets(touched: Touched) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

    facets: dict[str, Any] = {}
    if touched.version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=touched.version)
    if touched.columns:
        fields = [
            schema_dataset.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in touched.columns
        ]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
    return facets


def _input(context: Context, touched: Touched) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import data_quality_assertions_dataset, input_statistics_input_dataset

    namespace, name = _named(context, touched)
    facets: dict[str, Any] = {}
    if touched.rows is not None:
        facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=touched.rows, size=touched.size_bytes, fileCount=touched.files
        )
    if touched.checks:
        facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            assertions=[
                data_quality_assertions_dataset.Assertion(assertion=check, success=passed)
                for check, passed in touched.checks
            ]
        )
    return InputDataset(namespace=namespace, name=name, facets=_facets(touched), inputFacets=facets)


def _output(context: Context, touched: Touched) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    namespace, name = _named(context, touched)
    facets: dict[str, Any] = {}
    if touched.rows is not None or touched.files is not None:
        facets["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=touched.rows, size=touched.size_bytes, fileCount=touched.files
        )
    return OutputDataset(namespace=namespace, name=name, facets=_facets(touched), outputFacets=facets)


@cache
def _client(target: str) -> OpenLineageClient:
    """A client that appends to a file or posts to a URL; its own environment variables are not asked."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    if target.startswith(("http://", "https://")):
        parts = urlsplit(target)
        config = HttpConfig(
            url=f"{parts.scheme}://{parts.netloc}",
            endpoint=parts.path.lstrip("/") or "api/v1/lineage",
            timeout=_SEND_S,
            retry=_RETRY,
        )
        return OpenLineageClient(transport=HttpTransport(config))
    return OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=target, append=True)))
