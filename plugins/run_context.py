"""Values that a step takes from the DAG run it is part of, by name.

DAG files name them (`from_run=("dag_run", "actor")`), so that nothing but plain text is serialised with a DAG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plugins.links import dag_run_url, run_page_url
from plugins.triggers import causes
from tasks.core.errors import ConfigError
from tasks.core.near_names import did_you_mean
from tasks.core.settings import Settings


def dag_run_name(context: Mapping[str, Any]) -> str:
    """`<dag_id>/<run_id>`: what verdicts are recorded under."""
    return f"{context['ti'].dag_id}/{context['ti'].run_id}"


def actor(context: Mapping[str, Any]) -> str:
    """Who is answerable: the form's `actor`, and always the Airflow user that triggered the run, if one did."""
    named = (context["params"].get("actor") or "").strip()
    user = getattr(context["dag_run"], "triggering_user_name", None)
    run_type = str(getattr(context["dag_run"], "run_type", "airflow")).rsplit(".", 1)[-1].lower()
    through = f"airflow:{user}" if user else f"airflow:{run_type}"
    return f"{named} ({through})" if named else through


def reason(context: Mapping[str, Any]) -> str:
    """The form's `reason`, or a plain statement of what led here."""
    given = (context["params"].get("reason") or "").strip()
    return given or f"passed its gates in {dag_run_name(context)}"


def _links(context: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    ti = context["ti"]
    return {
        "Airflow run": dag_run_url(settings, ti.dag_id, ti.run_id),
        "Evidence": run_page_url(settings, ti.dag_id, ti.run_id),
    }


_VALUES: Mapping[str, Callable[[Mapping[str, Any], Settings], Any]] = {
    "dag_run": lambda context, _: dag_run_name(context),
    "actor": lambda context, _: actor(context),
    "reason": lambda context, _: reason(context),
    "links": _links,
    "causes": lambda context, _: causes(context),
}


def values(names: tuple[str, ...], context: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The named values for this run."""
    return {name: _VALUES[name](context, settings) for name in names}


def refuse_unknown_params(context: Mapping[str, Any]) -> None:
    """Airflow accepts a run's configuration with any key; one that is no field of the form would change nothing.

    Raises:
        ConfigError: It names the key, a close match, and the fields there are.
    """
    given = getattr(context["dag_run"], "conf", None) or {}
    known = sorted(context["dag"].params) if given else []
    unknown = sorted(set(given) - set(known))
    if not unknown:
        return
    raise ConfigError(
        f"is no parameter of this DAG{did_you_mean(unknown[0], known)}",
        which=f"{context['ti'].dag_id}: {unknown[0]}",
        fix=f"trigger it again with: {', '.join(known) or 'no parameter'}",
    )


def check_names(names: tuple[str, ...]) -> None:
    """Raise `ValueError` at parse time for a name that does not exist."""
    unknown = sorted(set(names) - set(_VALUES))
    if unknown:
        raise ValueError(f"from_run {unknown} are not known; use: {', '.join(_VALUES)}")
