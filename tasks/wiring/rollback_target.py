"""Before the champion moves: can what a rollback would go back to still be loaded (I7)?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.core.errors import TerminalError
from tasks.metadata import ModelVersion
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.registry import Deployment

log = logging.getLogger(__name__)

LOADED, NONE = "loaded", "none: nothing was live before"


def rollback_target(
    context: Context, live: Deployment | None, version: int, check: Callable[[ModelVersion], None]
) -> str:
    """`loaded` when the live version loads and its golden rows score as in training; else why there is no way back.

    A champion that is broken for good does not stop its own replacement, which may be the cure: the answer, in the
    promotion's record, warns. A store that does not answer now stops the promotion, which is tried again.

    Args:
        check: What a promotion checks its own version with.

    Raises:
        TransientError: The bundle could not be looked at.
    """
    from tasks.registry import version as registered

    if live is None:
        return NONE
    # A repeated promotion finds itself live, and answers what it answered before.
    number = live.version if live.version != version else live.previous_version
    if number is None:
        return NONE
    try:
        check(registered(context.settings, context.spec, number))
    except TerminalError as error:
        log.warning("%s: version %d cannot be gone back to: %s", context.spec.name, number, error)
        return f"not loadable: version {number}: {error.what}"
    return LOADED
