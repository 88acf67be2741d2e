"""The model server without HTTP: admission, routing, and the threads behind it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid

from tasks.core.clock import utc_now
from tasks.serving.batching import MicroBatcher, Ticket
from tasks.serving.complaints import Complaints
from tasks.serving.entities import EntityFollower, FoundRow, Newest
from tasks.serving.exposure import Exposure
from tasks.serving.following import Follower, Live
from tasks.serving.limits import ServingLimits
from tasks.serving.metrics import ServingMetrics
from tasks.serving.models import Journal, Loader, Quality, ServedModel, Source
from tasks.serving.recording import Recorder, Shadow
from tasks.serving.refusals import Refused
from tasks.serving.requests import RawRequest
from tasks.serving.signature import Row, Signature

log = logging.getLogger(__name__)

_SHOWN = 80


class ModelServer:
    """One pipeline's models, answering.

    Args:
        pipeline: Its name.
        tenant: Whose it is; a label of the metrics.
        source: The deployment log.
        load: Makes a version answer.
        journal: The audit store; None: answers are not recorded.
        quality: What is known of a version's quality.
        entities: Published rows, for requests that name an entity alone; None: such requests are refused.
        limits: See there.
    """

    def __init__(
        self,
        pipeline: str,
        tenant: str,
        *,
        source: Source,
        load: Loader,
        journal: Journal | None,
        quality: Quality,
        entities: Newest | None = None,
        limits: ServingLimits | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.limits = limits or ServingLimits()
        self.metrics = ServingMetrics(tenant, pipeline)
        self.live: Live | None = None
        self.draining = False
        """Set on SIGTERM: not ready any more, and every answer closes its connection."""
        self._complaints = Complaints()
        self._recorder = Recorder(journal, self.limits, self.metrics)
        self._shadow = Shadow(self.limits, self.metrics)
        self._batcher = MicroBatcher(
            self.limits, self.metrics, record=self._recorder.offer, shadow=self._shadow.offer
        )
        self._entities = EntityFollower(entities, self.limits.entities_poll_s) if entities else None
        self._follower = Follower(source, load, self._swap, quality, self.limits, self.metrics)

    def follow_once(self) -> None:
        """Look for the champion now and load it; what fails is logged and tried again later."""
        self._follower.follow_once()

    def start(self) -> None:
        """Start the threads; called in the event loop that serves."""
        self._batcher.start(asyncio.get_running_loop())
        self._recorder.start()
        self._shadow.start()
        self._follower.start()
        if self._entities is not None:
            self._entities.start()

    def stop(self) -> None:
        """Answer what was admitted, record what was answered, end the threads."""
        self.draining = True
        self._follower.close()
        if self._entities is not None:
            self._entities.close()
        self._batcher.close(self.limits.drain_timeout_s)
        self._shadow.close()
        self._recorder.close(self.limits.drain_timeout_s)

    @property
    def ready(self) -> bool:
        return self.live is not None and not self.draining

    @property
    def waiting_s(self) -> float:
        """How long what was admitted and is not scored yet will take."""
        return self._batcher.expected_s()

    @property
    def busy_s(self) -> float:
        """Time that the scoring thread has worked so far."""
        return self._batcher.busy_s

    def refuse_early(self) -> None:
        """Refuse what would be refused anyway, before it costs reading and decoding.

        Raises:
            Refused: 503 without a model, 429 when too much waits.
        """
        if self.live is None:
            raise Refused(
                503,
                "not_ready",
                "no model answers yet",
                which=self.pipeline,
                fix="promote one, or wait until it is loaded",
                retry_after_s=max(1, math.ceil(self.limits.poll_s)),
            )
        if self._batcher.full:
            raise self._overloaded("queue_full", "too many requests wait")
        unrecorded = self._batcher.admitted_rows - self._batcher.unanswered_rows - self._recorder.done_rows
        if unrecorded >= self.limits.unrecorded_rows:
            raise self._overloaded("audit_backlog", "too many answered rows wait for the audit store")

    def refuse_late(self, deadline: float, rows: int = 1) -> None:
        """Refuse what would only be late.

        Raises:
            Refused: 429; a request of so many rows is not expected to be answered well before its deadline.
        """
        expected_s = self._batcher.expected_s(rows)
        left_s = deadline - time.monotonic()
        enough_s = self.limits.time_margin * left_s
        if expected_s > enough_s:
            raise self._overloaded(
                "would_be_late",
                f"it would take about {expected_s:.2f} s and has {max(0.0, left_s):.2f} s",
                alone=self._batcher.pace.batch_s(rows) > enough_s,
            )

    async def predict(self, request: RawRequest, *, arrived: float, timeout_s: float | None) -> Ticket:
        """Score a request's rows.

        Args:
            request: Its rows, not checked yet.
            arrived: When it came, by `time.monotonic`.
            timeout_s: Its deadline, from a header; one in the request itself goes first.

        Raises:
            Refused: It gets no prediction.
        """
        live = self.live
        assert live is not None, "refuse_early was not asked"
        deadline = arrived + (request.timeout_s or timeout_s or self.limits.default_timeout_s)
        self.refuse_late(deadline, len(request.rows))  # before its rows cost being checked
        rows, models, inputs = self._routed(live, request)
        champion_rows = self._as_challenger_reads(live, request, rows, models, inputs)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            rows,
            models,
            live.champion,
            live.shadow,
            deadline,
            request.request_id or uuid.uuid4().hex,
            future,
            champion_rows,
        )
        ticket.inputs = inputs
        if not self._batcher.admit(ticket):
            if self._batcher.closed:
                raise Refused(
                    503, "not_ready", "the server is shutting down", fix="send it to another replica"
                )
            raise self._overloaded("queue_full", "too many requests wait")
        await future
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def _routed(
        self, live: Live, request: RawRequest
    ) -> tuple[list[Row], list[ServedModel], list[FoundRow] | None]:
        """Checked rows, who answers each, and where they came from when they were looked up."""
        which = "entities" if request.by_key else "rows"
        if not request.rows:
            raise Refused(422, "invalid_field", "there is no row", which=which, fix="send at least one")
        if len(request.rows) > self.limits.max_rows:
            raise Refused(
                413,
                "too_large",
                f"has {len(request.rows):,} rows, {self.limits.max_rows:,} may be",
                which=which,
                fix="send several requests, or score them in batch",
            )
        signature = live.champion.signature
        where = request.where
        found = None
        if request.by_key:
            found = [self._looked_up(signature, raw, where(index)) for index, raw in enumerate(request.rows)]
            rows = [
                signature.of_source(one.values, one.entity, where(index)) for index, one in enumerate(found)
            ]
        else:
            rows = [signature.read(raw, where(index)) for index, raw in enumerate(request.rows)]
        return rows, [live.model_for(self.pipeline, row.entity) for row in rows], found

    def _as_challenger_reads(
        self,
        live: Live,
        request: RawRequest,
        rows: list[Row],
        models: list[ServedModel],
        found: list[FoundRow] | None,
    ) -> dict[int, Row]:
        """Put rows of an exposed challenger that reads other columns than the champion into its own; those of before, by place.

        Requests have the champion's columns. Where one does not have what the challenger reads, the champion answers in its
        place and `models` is changed: an exposure refuses nobody.
        """
        if live.challenger is None or live.challenger.signature.schema == live.champion.signature.schema:
            return {}
        signature, before = live.challenger.signature, {}
        for index in [place for place, model in enumerate(models) if model is live.challenger]:
            where = request.where(index)
            try:
                mine = (
                    signature.of_source(found[index].values, found[index].entity, where)
                    if found
                    else signature.read_among(request.rows[index], where)
                )
            except Refused as refused:
                models[index] = live.champion
                self.metrics.of(live.challenger).fallbacks.inc()
                version = live.challenger.deployed.version
                since = self._complaints.due(version, 1)
                if since is not None:
                    log.warning(
                        "Version %d, exposed, cannot read %d rows, the champion answers them: %s %s",
                        *(version, since, refused.which, refused.what),
                    )
                continue
            before[index], rows[index] = rows[index], mine
        return before

    def _looked_up(self, signature: Signature, raw: object, where: str) -> FoundRow:
        """The newest published row of an entity."""
        if self._entities is None:
            raise Refused(
                422,
                "invalid_field",
                "cannot be looked up: this server keeps no published rows",
                which=where,
                fix="send the whole row in `rows`, or start it with --entity-days",
            )
        entity, as_of = signature.read_key(raw, where)
        rows = self._entities.rows
        if rows is None:
            raise Refused(
                503,
                "not_ready",
                "the published rows are not read yet",
                which=where,
                fix="come again, or send the whole row in `rows`",
                retry_after_s=1,
            )
        found = rows.newest(entity, as_of)
        if found is None:
            until = f" until {as_of.isoformat()}" if as_of else ""
            raise Refused(
                404,
                "unknown_entity",
                f"the entity {entity[:_SHOWN]!r} has no row{until} among the published days that are kept",
                which=where,
                fix="send the whole row in `rows`",
            )
        limit_s, age_s = (
            self.limits.entity_max_age_s,
            ((as_of or utc_now()) - found.event_time).total_seconds(),
        )
        if limit_s is not None and age_s > limit_s:
            raise Refused(
                422,
                "entity_too_old",
                f"the newest row of the entity {entity[:_SHOWN]!r} is {age_s:,.0f} s old, {limit_s:,.0f} s may be",
                which=where,
                fix="send the whole row in `rows`",
            )
        return found

    def _overloaded(self, cause: str, what: str, *, alone: bool = False) -> Refused:
        """`alone`: it would be late if nothing else waited, so that waiting does not help it."""
        after_s = self._batcher.retry_after_s()
        fix = "allow it more time, or send fewer rows in a request" if alone else f"retry after {after_s} s"
        return Refused(429, cause, what, fix=fix, retry_after_s=after_s)

    def _swap(self, live: Live) -> None:
        before, self.live = self.live, live
        self.metrics.share.set(0.0 if live.exposure.shadow else live.exposure.share)
        self.metrics.loaded(
            [
                (model, deployed.live_since)
                for model, deployed in (
                    (live.champion, live.exposure.champion),
                    (live.challenger, live.exposure.challenger),
                )
                if model is not None and deployed is not None
            ]
        )
        log.info(
            "Version %d answers%s%s",
            live.exposure.champion.version,
            "" if live.challenger is None else _beside(live.exposure, live.challenger.deployed.version),
            f"; before: version {before.exposure.champion.version}" if before else "",
        )


def _beside(exposure: Exposure, challenger: int) -> str:
    if exposure.shadow:
        return f"; version {challenger} scores copies"
    return f", {exposure.share:.1%} of the entities by version {challenger}"
