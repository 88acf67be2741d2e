"""The model server of a pipeline: models from the registry, scores by batch scoring's code, rows to the audit store."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core import PipelineSpec, Settings
from tasks.core.clock import epoch_micros
from tasks.core.errors import FingerprintMismatch
from tasks.core.prediction_ids import PredictionIds
from tasks.core.rows import event_micros
from tasks.core.sampling import SampledRows, explained_rows
from tasks.serving import (
    Answered,
    Deployed,
    Exposure,
    ModelServer,
    Recorded,
    RowFailure,
    Scores,
    ServingLimits,
    Signature,
)
from tasks.wiring.context import open_context
from tasks.wiring.published_rows import PublishedRows

if TYPE_CHECKING:
    from tasks.audit.hot import OnlineModel, OnlineRows
    from tasks.metadata import MetadataStore
    from tasks.metadata.deployments import LogHead
    from tasks.model import Profile

log = logging.getLogger(__name__)

_LOG_PATIENCE_S = 5.0
ENTITY_DAYS = 7
"""Published days whose rows can be asked for by entity key."""


class ServedBundle:
    """A bundle that answers requests: verified by digest, its golden rows replayed, warm.

    Rows pass the same functions as in a shard (`tasks.inference.scoring`), so a score, and the prediction id with it, is the
    same to the last bit.

    Raises:
        NotFound, DigestMismatch: The store does not have the bundle, or another one.
        FingerprintMismatch: The bundle has another feature version than the registry says.
    """

    def __init__(self, settings: Settings, spec: PipelineSpec, deployed: Deployed) -> None:
        from tasks.core import open_store
        from tasks.inference.bundle_model import BundleModel, scoring_device
        from tasks.model import Scorer, fetch_bundle
        from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN
        from tasks.model.execution import CPU_BLOCK_ROWS, LEAST_BLOCK_ROWS, Execution
        from tasks.serving.blocks import use_smallest_exact_block

        self.deployed = deployed
        self.spec = spec
        store = open_store(settings, prefix=spec.prefix)
        bundle = fetch_bundle(store, deployed.bundle_digest, settings.cache_dir)
        device = scoring_device(spec)
        execution = Execution(
            device,
            block_rows=CPU_BLOCK_ROWS if device == "cpu" else LEAST_BLOCK_ROWS,  # as in batch scoring
            bfloat16=spec.inference.precision == "bfloat16",
        )
        scorer = Scorer(bundle, execution=execution, compiled=spec.inference.compile)
        if scorer.feature_version != deployed.feature_version:
            raise FingerprintMismatch(
                f"has feature version {deployed.feature_version} in the registry and "
                f"{scorer.feature_version} in its bundle",
                which=f"model version {deployed.version}",
                fix="register the model again",
            )
        scorer.check_golden()
        golden = bundle.golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])
        afterwards = spec.label.known_afterwards
        self.signature = Signature(
            pa.schema([field for field in golden.schema if field.name not in afterwards]), spec
        )
        if not spec.inference.compile:  # each shape would be compiled anew
            use_smallest_exact_block(scorer)
        self.block_rows = scorer.execution.block_rows
        self.model = BundleModel(scorer)
        self.output_names = self.model.output_names
        self._bundle = bundle
        self._base_value = float(scorer.explain(scorer.golden_encoded()[:1]).base_value)
        self._warm_up(golden)

    @cached_property
    def trained_until(self) -> datetime:
        """The midnight after the last training day."""
        after = self._bundle.manifest.train_last_day + timedelta(days=1)
        return datetime.combine(after, time(), ZoneInfo(self.spec.source.time_zone))

    @cached_property
    def reference_scores(self) -> npt.NDArray[np.int64]:
        """Scores of the validation days, or of all reference days where there are none."""
        manifest, profiles = self._bundle.manifest, self._bundle.reference_profiles
        held_out = [found for day, found in profiles.items() if day >= manifest.validation_first_day]
        counts: npt.NDArray[np.int64] = sum(
            (one.score.counts for one in held_out or profiles.values()), np.zeros(50, np.int64)
        )
        return counts

    @cached_property
    def online_model(self) -> OnlineModel:
        """How the audit store names it."""
        from tasks.audit.hot import OnlineModel

        names = tuple(self.model.feature_names)
        return OnlineModel(
            pipeline=self.spec.name,
            model_version=self.deployed.version,
            bundle_digest=self.deployed.bundle_digest,
            feature_computation_version=self.deployed.feature_version,
            names=names,
            numeric=tuple(name for name in names if name in self.spec.features.numeric),
            explainer=self.model.explainer,
            explainer_version=self.model.explainer_version,
            background_id=self.model.background_id,
            base_value=self._base_value,
        )

    def score(self, rows: pa.Table) -> Scores:
        """Score source rows; those that cannot be scored are named, the others are scored all the same."""
        from tasks.inference.scoring import DeadLetters, score_rows

        dead = DeadLetters(rows.num_rows, f"a request to {self.spec.name}")
        batches = score_rows(self.model, self.spec, rows, first_row=0, dead=dead, explain=False)
        ids: list[str] = []
        for batch in batches:
            ids += batch.prediction_ids.texts().to_pylist()
        failures = {
            letter.source_row: RowFailure(letter.stage, letter.error_class, letter.reason)
            for letter in dead.letters
        }
        if len(batches) == 1:
            only = batches[0]
            return Scores(only.source_rows, ids, only.scores, only.outputs, failures, batches)
        width = len(self.output_names)
        return Scores(
            np.concatenate([np.zeros(0, np.int64), *(batch.source_rows for batch in batches)]),
            ids,
            np.concatenate([np.zeros(0, np.float32), *(batch.scores for batch in batches)]),
            np.concatenate([np.zeros((0, width), np.float32), *(batch.outputs for batch in batches)]),
            failures,
            batches,
        )

    def profile(self, batches: Any) -> Profile:
        """Counts of scored rows on the bundle's grid."""
        from tasks.model import Profile

        features = pa.concat_tables([batch.features for batch in batches])
        scores = np.concatenate([batch.scores for batch in batches])
        return Profile.of(self._bundle.profile_spec, features, scores)

    def _warm_up(self, golden: pa.Table) -> None:
        """Whatever is made at first use is made before the first request."""
        rows = golden.select(self.signature.schema.names)
        for size in (1, 2, rows.num_rows):
            scored = self.score(rows.slice(0, size))
        if scored.batches:
            self.profile(scored.batches)


class HotJournal:
    """Answered rows as online predictions of the audit store: durable when `append` returns."""

    def __init__(self, settings: Settings, spec: PipelineSpec, node: str) -> None:
        from tasks.audit.hot import HotLog

        self._spec = spec
        self._log = HotLog(settings, spec, node=node)

    def append(self, groups: Sequence[Answered], *, explain: bool) -> Recorded:
        """Keep all rows in one append. Raises `PenstockError`; nothing was kept then, unless its outcome is unknown."""
        kept: list[OnlineRows] = []
        shed = 0
        by_model = sorted(groups, key=lambda group: group.model.deployed.version)
        for model, of_model in groupby(by_model, key=lambda group: group.model):
            assert isinstance(model, ServedBundle)
            rows, wanted = _online_rows(self._spec, model, list(of_model), explain=explain)
            kept.append(rows)
            shed += 0 if explain else wanted
        self._log.append(kept)
        return Recorded(
            sum(len(rows.request_ids) for rows in kept), sum(len(rows.attributions) for rows in kept), shed
        )

    def close(self) -> None:
        self._log.close()


def _online_rows(
    spec: PipelineSpec, model: ServedBundle, groups: Sequence[Answered], *, explain: bool
) -> tuple[OnlineRows, int]:
    """Rows for the audit store, and how many of them the pipeline wants explained."""
    from tasks.audit.hot import OnlineRows

    pairs = [(group, batch) for group in groups for batch in group.batches]
    requests = [group.request_ids[row] for group, batch in pairs for row in batch.source_rows.tolist()]
    scored_us = [epoch_micros(group.scored_at) for group, _ in pairs]
    moments = np.repeat(np.array(scored_us, np.int64), [len(batch.scores) for _, batch in pairs])
    features = pa.concat_tables([batch.features for _, batch in pairs]).combine_chunks()
    identity = pa.concat_tables([batch.identity for _, batch in pairs]).combine_chunks()
    entities = pa.concat_arrays([batch.entity_ids for _, batch in pairs])
    scores = np.concatenate([batch.scores for _, batch in pairs])
    ids = PredictionIds.concat([batch.prediction_ids for _, batch in pairs])
    if None in requests:  # their requests failed for other rows
        kept = np.flatnonzero([request is not None for request in requests])
        requests = [request for request in requests if request is not None]
        moments, scores, ids = moments[kept], scores[kept], ids.take(kept)
        features, identity, entities = features.take(kept), identity.take(kept), entities.take(kept)
    chosen = explained_rows(spec, SampledRows(ids, entities, identity, features, scores))
    explained = np.zeros(len(chosen), np.bool_)
    attributions, residual = np.zeros((0, features.num_columns), np.float32), np.zeros(0, np.float32)
    if explain and chosen.any():
        try:
            found = model.model.explain(model.model.encode(features.filter(pa.array(chosen))))
            explained, attributions, residual = chosen, found.attributions, found.residual
        except Exception as error:  # a prediction without its explanation is still a prediction
            log.warning("%d answered rows were not explained: %s", int(chosen.sum()), error)
    rows = OnlineRows(
        model=model.online_model,
        prediction_ids=ids,
        request_ids=requests,
        entity_ids=entities,
        event_us=event_micros(identity, spec),
        predictions=scores,
        features=features,
        scored_us=moments,
        explained=explained,
        attributions=attributions,
        residual=residual,
    )
    return rows, int(chosen.sum())


class DeploymentLog:
    """Where the server learns what is live, and what is known of it.

    Args:
        settings: This installation.
        spec: The pipeline.
        shadow: Let the registered challenger score copies of requests, and answer none.
    """

    def __init__(self, settings: Settings, spec: PipelineSpec, *, shadow: bool = False) -> None:
        self._settings = settings
        self._spec = spec
        self._shadow = shadow

    @cached_property
    def _metadata(self) -> MetadataStore:
        from tasks.metadata import MetadataStore

        return MetadataStore.open(self._settings, patience_s=_LOG_PATIENCE_S)

    def exposure(self) -> Exposure | None:
        """Who answers now; None before the first promotion.

        A challenger answers the share that the newest `expose` event gives it, until it is withdrawn, barred, or the
        champion moves.

        Raises:
            ServiceUnavailable: The database does not answer.
        """
        head = self._metadata.head(self._spec)
        if head.live is None:
            return None
        live = head.live
        champion = Deployed(live.version, live.bundle_digest, live.feature_version, live.at_utc)
        if self._shadow:
            challenger = self._registered_challenger(head)
            return Exposure(champion, challenger, shadow=challenger is not None)
        exposed = head.exposed
        if exposed is None or not exposed.share or exposed.version in head.barred:
            return Exposure(champion)
        challenger = Deployed(exposed.version, exposed.bundle_digest, exposed.feature_version, exposed.at_utc)
        return Exposure(champion, challenger, exposed.share)

    def quality(self, version: int) -> Mapping[str, float]:
        """Newest value of each metric that the monitor measured of a version.

        Raises:
            ServiceUnavailable: The database does not answer.
        """
        found = {}
        for name in self._metadata.metric_names(self._spec):
            points = self._metadata.series(self._spec, name, model_version=version, source="monitor")
            if points:
                found[name] = points[-1].value
        return found

    def _registered_challenger(self, head: LogHead) -> Deployed | None:
        projection = self._metadata.projection(self._spec, "challenger")
        version = projection.version if projection else None
        assert head.live is not None
        if version is None or version == head.live.version or version in head.barred:
            return None
        found = self._metadata.model_version(self._spec, version)
        if found is None:
            return None
        return Deployed(version, found.bundle_digest, found.feature_version, found.created_at_utc)


def model_server(
    settings: Settings,
    pipeline: str,
    *,
    limits: ServingLimits | None = None,
    audit: bool = True,
    shadow: bool = False,
    entity_days: int = ENTITY_DAYS,
    node: str | None = None,
) -> ModelServer:
    """The server of a pipeline, not started yet.

    Args:
        audit: Whether answers are kept.
        shadow: As `DeploymentLog`.
        entity_days: As `PublishedRows`; 0: whoever asks brings the rows.
        node: Name under which it writes to the audit store; one for each process on a machine, and the same after a restart.

    Raises:
        NotFound, ConfigError: The pipeline's folder or file is not right.
        HotLogInUse: Another process writes under this name.
    """
    spec = open_context(settings, pipeline).spec
    journal = HotJournal(settings, spec, node or socket.gethostname()) if audit else None
    return server_of(settings, spec, journal, limits=limits, shadow=shadow, entity_days=entity_days)


def server_of(
    settings: Settings,
    spec: PipelineSpec,
    journal: HotJournal | None,
    *,
    limits: ServingLimits | None,
    shadow: bool,
    entity_days: int,
) -> ModelServer:
    """A server that follows the pipeline's deployment log and writes to `journal`; not started yet."""
    deployments = DeploymentLog(settings, spec, shadow=shadow)
    return ModelServer(
        spec.name,
        spec.tenant,
        source=deployments.exposure,
        load=lambda deployed: ServedBundle(settings, spec, deployed),
        journal=journal,
        quality=deployments.quality,
        entities=PublishedRows(settings, spec, days=entity_days) if entity_days else None,
        limits=limits,
    )


def serve(
    settings: Settings,
    pipeline: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: ServingLimits | None = None,
    audit: bool = True,
    shadow: bool = False,
    entity_days: int = ENTITY_DAYS,
    started: Callable[[str, int | None], None] | None = None,
) -> None:
    """Answer predictions until SIGTERM or SIGINT.

    Args:
        started: Called with the server's URL and the live version when it listens.

    Raises:
        ConfigError: The address cannot be used.
        PenstockError: As `model_server`.
    """
    from tasks.serving import Running, listen

    listener = listen(host, port)
    host, port = listener.getsockname()[:2]
    try:
        server = model_server(
            settings,
            pipeline,
            limits=limits,
            audit=audit,
            shadow=shadow,
            entity_days=entity_days,
            node=f"{socket.gethostname()}-{port}",
        )
        server.follow_once()

        def tell() -> None:
            shown = f"[{host}]" if ":" in host else host
            live = server.live
            assert started is not None
            started(f"http://{shown}:{port}", live.exposure.champion.version if live else None)

        Running(server).serve_on(listener, started=tell if started else None)
    finally:
        listener.close()
