"""How much the server takes in, and how long it waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingLimits:
    """The defaults, with the reason where it is not plain."""

    queue_requests: int = 1024
    """Requests that wait for the model."""
    batch_rows: int = 512
    """Most rows that are scored at once; a request is never cut."""
    batch_s: float = 0.02
    """No more are scored at once than take about so long: deadlines are looked at between batches, and a slow model gains nothing
    from larger ones."""
    time_margin: float = 0.6
    """A request is admitted if it is expected to be answered within this part of the time that it has left."""
    max_wait_s: float = 0.002
    """How long a batch waits for as many requests as came together before it; after a lone one it waits for nobody. 0: what gathers while
    a batch is scored is the next one."""
    default_timeout_s: float = 1.0
    """A request without a deadline of its own is dropped after so long."""
    max_timeout_s: float = 30.0
    max_body_bytes: int = 4 << 20
    max_rows: int = 1000
    """Rows of one request; more belong to batch scoring."""
    body_timeout_s: float = 10.0
    """A client that takes longer to send its request is told so and let go."""
    unrecorded_rows: int = 20_000
    """Rows that were admitted and are not in the audit store yet; beyond it requests are refused: none is answered without a trace."""
    explain_backlog_rows: int = 4_000
    """Beyond so many of them explanations are left out, until there are fewer."""
    record_every_s: float = 0.25
    """Answered rows gather so long before they are explained and written together,"""
    record_rows: int = 1024
    """or until they are so many: a row costs little less among more, and answers wait while many are packed."""
    count_every_s: float = 1.0
    """How often answered rows are counted for the metrics of inputs and scores."""
    shadow_requests: int = 256
    """Copies that wait for a shadow challenger; more are not scored."""
    entities_poll_s: float = 15.0
    """How often it is asked whether new rows were published, for requests that name an entity alone."""
    entity_max_age_s: float | None = None
    """An entity whose newest row is older is refused; None: it is answered, and its age said."""
    poll_s: float = 2.0
    """How often the deployment log is asked."""
    quality_every_s: float = 60.0
    drain_delay_s: float = 1.0
    """After SIGTERM: how long it is not ready, and still answers, so that load balancers look away first."""
    drain_timeout_s: float = 30.0
    """Then connections that are still busy are cut."""
