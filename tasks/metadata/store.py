"""`MetadataStore`: the parts of the metadata database behind one door."""

from __future__ import annotations

from typing import Self

from tasks.core.clock import Clock, utc_now
from tasks.core.settings import Settings
from tasks.metadata.alerts import AlertRecords
from tasks.metadata.canary import CanarySteps
from tasks.metadata.database import Database
from tasks.metadata.deployments import Deployments
from tasks.metadata.evidence import Evidence
from tasks.metadata.fleet import Fleet
from tasks.metadata.leases import LeaseRecords
from tasks.metadata.monitoring import Monitoring
from tasks.metadata.runs import Runs
from tasks.metadata.schema import ensure_current
from tasks.metadata.series import Series
from tasks.metadata.stored import StoredBytes


class MetadataStore(
    Evidence,
    Runs,
    Deployments,
    Monitoring,
    Fleet,
    Series,
    CanarySteps,
    AlertRecords,
    LeaseRecords,
    StoredBytes,
):
    """Everything that is asked later, in SQL. Open it wherever it is needed; there is nothing to close.

    Every method takes the owner of the rows first: a `PipelineSpec` or a `Scope`; those about all pipelines take a tenant. Every method raises
    `ServiceUnavailable` when the database does not answer in time.
    """

    @classmethod
    def open(cls, settings: Settings, *, clock: Clock = utc_now, patience_s: float = 30.0) -> Self:
        """Connect to `settings.metadata_url`, creating or migrating the schema when it is not current.

        Any number of processes may do so at once.

        Args:
            patience_s: How long a call waits for a lock or a connection.

        Raises:
            ConfigError: The URL cannot be used, or a newer release migrated this database.
            ServiceUnavailable: The database does not answer; the message shows its URL without the password.
        """
        database = Database(settings.metadata_url, patience_s=patience_s)
        ensure_current(database)
        return cls(database, clock=clock)
