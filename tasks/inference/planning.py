"""Cut a snapshot into shards, once (I1)."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

from tasks.core import ids
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import ConfigError, DataError, FingerprintMismatch, NotFound
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.records import PartitionFile, Snapshot
from tasks.core.report_style import percent
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import Exposed, Fingerprint, Plan, ShardPlan, plan_key, read_plan

log = logging.getLogger(__name__)

_NEW_RUN = "start a new run: plan the snapshot again without naming a run id, and score what that plan says"


def plan(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    model_version: int,
    bundle_digest: str,
    feature_version: str,
    exposed: Exposed | None = None,
    expected_run_id: str | None = None,
    clock: Clock = utc_now,
) -> Plan:
    """Plan the scoring of `snapshot` with one pinned model.

    Equal work has an equal run id, so planning it again returns the plan that exists, with the shards it was
    cut into then, whatever `inference.shard_rows` says by now.

    Args:
        settings: This installation.
        spec: The pipeline.
        snapshot: What to score; kind `scoring`.
        model_version: Version in the registry.
        bundle_digest: Digest of that version's bundle, 64 hex digits.
        feature_version: `FeatureCode.version` of the bundle.
        exposed: A challenger that scores its share of the entities beside this model.
        expected_run_id: The run that the caller means to continue, when it retries.
        clock: The time.

    Raises:
        FingerprintMismatch: `expected_run_id` is the run of other inputs; both fingerprints are named.
        DataError: The snapshot has no rows, is another pipeline's, or holds labels.
    """
    if snapshot.pipeline != spec.name or snapshot.kind != "scoring":
        raise DataError(
            f"is a {snapshot.kind} snapshot of pipeline {snapshot.pipeline}",
            which=f"snapshot {snapshot.snapshot_id}",
            fix=f"take a scoring snapshot of pipeline {spec.name}",
        )
    store = open_store(settings, prefix=spec.prefix)
    fingerprint = Fingerprint(
        pipeline=spec.name,
        snapshot_id=snapshot.snapshot_id,
        model_version=model_version,
        bundle_digest=bundle_digest,
        feature_version=feature_version,
        scoring_config=scoring_config(spec),
        exposed=exposed,
    )
    identity = run_id_of(fingerprint)
    if expected_run_id is not None and expected_run_id != identity:
        try:
            planned = read_plan(store, expected_run_id).fingerprint
            differences = "; ".join(planned.differences(fingerprint))
        except NotFound:
            differences = "that run was never planned here"
        raise _mismatch(expected_run_id, identity, differences)
    shards = cut_shards(snapshot.partitions, spec.inference.shard_rows, spec.inference.shard_bytes)
    if not shards:
        raise DataError(
            "has no rows to score", which=f"snapshot {snapshot.snapshot_id}", fix="choose days that have rows"
        )
    return create_plan(store, Plan(identity, fingerprint, snapshot.partitions, shards, iso_utc(clock())))


def create_plan(store: ObjectStore, made: Plan) -> Plan:
    """Write a plan exclusively, or find the one that is there.

    Raises:
        FingerprintMismatch: The plan that is there is of other inputs.
    """
    try:
        store.put_exclusive(plan_key(made.run_id), canonical_json(made.to_json()))
    except AlreadyExists:
        found = read_plan(store, made.run_id)
        if found.fingerprint != made.fingerprint:
            differences = "; ".join(found.fingerprint.differences(made.fingerprint))
            raise _mismatch(made.run_id, run_id_of(made.fingerprint), differences) from None
        log.info("Run %s was planned at %s; continuing it.", made.run_id, found.created_at_utc)
        return found
    log.info(
        "Planned run %s: %s rows of %d days in %d shards, model version %d%s.",
        made.run_id,
        f"{made.rows:,}",
        len(made.days),
        len(made.shards),
        made.fingerprint.model_version,
        _beside(made.fingerprint.exposed),
    )
    return made


def _beside(exposed: Exposed | None) -> str:
    if exposed is None:
        return ""
    return f", version {exposed.model_version} exposed to {percent(exposed.share)} of entities"


def check_unchanged(spec: PipelineSpec, planned: Plan) -> None:
    """Refuse to continue a run whose pipeline was edited since it was planned.

    Raises:
        FingerprintMismatch: A part of the pipeline that decides predictions differs from the plan's.
    """
    current = Fingerprint.from_json({**planned.fingerprint.to_json(), "scoring_config": scoring_config(spec)})
    if current != planned.fingerprint:
        differences = "; ".join(planned.fingerprint.differences(current))
        raise _mismatch(planned.run_id, run_id_of(current), differences)


def scoring_config(spec: PipelineSpec) -> dict[str, Any]:
    """The parts of the pipeline that decide what a prediction row says.

    Sizes, worker counts and thresholds are not among them: changing those continues the same run. Nor are
    the features: scoring runs the features.py of the bundle, whose digest is in the fingerprint already.
    """
    config: dict[str, Any] = {
        "entity_key": list(spec.entity_key),
        "event_time": spec.event_time,
        "explanations_share": spec.explanations.share,
        "explanations_top_k": spec.explanations.top_k,
    }
    policy = (
        spec.explanations
    )  # what is not set is left out: runs from before there was a choice keep their identity
    if policy.strata is not None:
        config["explanations_strata"] = policy.strata.model_dump()
    if policy.score_bands:
        config["explanations_score_bands"] = [list(band) for band in policy.score_bands]
    if policy.canary:
        config["explanations_canary"] = spec.canary.slice_share
    if spec.inference.precision != "float32":
        config["precision"] = spec.inference.precision
    return config


def run_id_of(fingerprint: Fingerprint) -> str:
    """The run id (I1) of a fingerprint."""
    config = fingerprint.scoring_config
    if fingerprint.replay_of is not None:
        config = {**config, "replay_of": fingerprint.replay_of, "replay": fingerprint.replay}
    if fingerprint.exposed is not None:
        config = {**config, "exposed": fingerprint.exposed.to_json()}
    return ids.run_id(
        pipeline=fingerprint.pipeline,
        snapshot_id=fingerprint.snapshot_id,
        model_version=str(fingerprint.model_version),
        bundle_digest=fingerprint.bundle_digest,
        feature_version=fingerprint.feature_version,
        scoring_config=config,
    )


def cut_shards(
    partitions: tuple[PartitionFile, ...], shard_rows: int, shard_bytes: int
) -> tuple[ShardPlan, ...]:
    """Shards of at most `shard_rows` rows and about `shard_bytes` bytes, the same for the same input.

    A shard stays inside one partition file, so it never spans two source days. Cuts fall on row group
    boundaries where groups are small enough; a larger group is cut inside into even parts.

    Args:
        partitions: Of the snapshot, in its order.
        shard_rows: Most rows of a shard.
        shard_bytes: Most bytes of a shard as the partition stores them, by the partition's average row.

    Raises:
        ConfigError: A limit is below 1.
    """
    for name, limit in (("shard_rows", shard_rows), ("shard_bytes", shard_bytes)):
        if limit < 1:
            raise ConfigError("must be at least 1", which=f"inference.{name}", fix="give a larger number")
    shards: list[ShardPlan] = []
    for index, partition in enumerate(partitions):
        starts = [0]
        for rows in partition.row_group_rows:
            starts.append(starts[-1] + rows)
        most_rows = min(shard_rows, max(1, shard_bytes * partition.rows // max(1, partition.size_bytes)))
        for start, stop in _ranges(starts, most_rows):
            groups = tuple(
                group
                for group in range(len(starts) - 1)
                if starts[group] < stop and starts[group + 1] > start
            )
            shards.append(
                ShardPlan(
                    shard=len(shards),
                    day=partition.day,
                    partition=index,
                    row_start=start,
                    row_stop=stop,
                    row_groups=groups,
                    skip_rows=start - starts[groups[0]],
                )
            )
    return tuple(shards)


def _ranges(starts: list[int], shard_rows: int) -> list[tuple[int, int]]:
    """Row ranges of one partition whose row groups begin at `starts` (the last entry is its row count)."""
    ranges: list[tuple[int, int]] = []
    open_from = 0
    for start, stop in pairwise(starts):
        if stop - open_from <= shard_rows:
            continue
        if start > open_from:
            ranges.append((open_from, start))
            open_from = start
        if stop - start > shard_rows:
            parts = -(-(stop - start) // shard_rows)
            cuts = [start + (stop - start) * part // parts for part in range(parts + 1)]
            ranges.extend(pairwise(cuts))
            open_from = stop
    if starts[-1] > open_from:
        ranges.append((open_from, starts[-1]))
    return ranges


def _mismatch(expected: str, found: str, differences: str) -> FingerprintMismatch:
    return FingerprintMismatch(
        f"is not the run of these inputs, whose fingerprint is {found} ({differences})",
        which=f"run {expected}",
        fix=_NEW_RUN,
    )
