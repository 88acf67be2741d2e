"""What the tests of the REST API have in common: problem documents, and questions made from its OpenAPI document."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import schemathesis
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from plugins import problems


def problem(answer: Any, status: int) -> dict[str, str]:
    """The problem document of an answer that must have this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    found = answer.json()
    assert set(found) == {"type", "what", "which", "fix"}
    return found


def delivered_checks() -> list[Any]:
    """What schemathesis looks at."""
    return [
        check
        for check in schemathesis.checks.CHECKS.get_all()
        # Who asks is given by the test; a window that is well-formed may still end before it starts.
        if check.__name__ not in ("ignored_auth", "positive_data_acceptance", "unsupported_method")
    ]


def ask_often(
    operation: Any, mode: GenerationMode, checks: list[Any], known: dict[str, Any], **sent: Any
) -> int:
    """Ask an operation with generated parameters, half of the time about things that exist; how often."""
    asked = 0

    @hypothesis_settings(
        max_examples=15,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), exists=st.booleans(), data=st.data())
    def ask(case: Any, exists: bool, data: Any) -> None:
        nonlocal asked
        for name in set(case.path_parameters or {}) & set(known) if exists else ():
            case.path_parameters[name] = data.draw(known[name])
        # Starlette's mounts match no line break: such an address never reaches the plugin.
        assume("\n" not in unquote("".join(map(str, (case.path_parameters or {}).values()))))
        case.call_and_validate(checks=checks, **sent)
        asked += 1

    ask()
    return asked
