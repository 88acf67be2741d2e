"""Can a version be scored on what the source gives now? Its bundle may be whole and the columns it reads be gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.core.errors import NotFound, TerminalError
from tasks.metadata import ModelVersion
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.model import Scorer


def refuse_unfit(context: Context, version: ModelVersion, scorer: Scorer) -> None:
    """Compare the columns that the version's features read with those of the newest snapshot that was used.

    Raises:
        TerminalError: A column is missing, has another type, or is known only afterwards.
        PipelineCodeError: The version's features.py does not run on its own golden rows.
    """
    from tasks.evaluation.signature import inputs_finding, signature_of

    columns = _columns_now(context)
    if columns is None:
        return  # nothing was trained or scored here since: nothing is known that its own snapshot does not say
    finding = inputs_finding(context.spec, signature_of(scorer), columns)
    if finding.status != "pass":
        raise TerminalError(
            finding.detail,
            which=f"{context.spec.name} version {version.version}",
            fix="choose a version that was trained on the source as it is now, or let the source give the columns again",
        )


def _columns_now(context: Context) -> dict[str, str] | None:
    """Column -> type of the snapshot that was last trained on or scored, without what is known only afterwards."""
    from tasks.evaluation.signature import scoring_columns

    store, spec = context.metadata, context.spec
    used = [(item.recorded_at_utc, item.snapshot_id) for item in store.trainings(spec, limit=1)]
    used += [
        (item.planned_at_utc, item.snapshot_id) for item in store.runs(spec, limit=1) if item.snapshot_id
    ]
    if not used:
        return None
    try:
        snapshot = context.snapshot(str(max(used)[1]))
    except NotFound:
        return None
    return scoring_columns(spec, snapshot)
