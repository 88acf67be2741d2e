"""`pipelines/alerts.yaml`: channels, which severity goes where, and how often. Secrets are not in it.

A channel names a connection; where that comes from (Airflow, or a file) is the caller's business.
"""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tasks.core import Settings
from tasks.core.errors import ConfigError
from tasks.core.yaml_text import read_yaml

FILE = "alerts.yaml"
SEVERITIES = ("page", "warn", "info")
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+$")]
ConnectionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Channel(_Record):
    """Where messages go."""

    kind: Literal["email", "slack", "webhook"]
    connection: ConnectionId
    """Id of an Airflow connection, or of one in `<home>/connections.json`."""
    to: tuple[Address, ...] = ()
    """Of `email`: who gets it."""
    sender: Address | None = Field(None, alias="from")
    """Of `email`: whose address it carries; default: `from_email` of the connection."""

    @model_validator(mode="after")
    def _addressed(self) -> Channel:
        if (self.kind == "email") != bool(self.to):
            raise ValueError("`to` belongs to, and is needed by, a channel of kind email")
        return self


class Routes(_Record):
    """Channels by severity."""

    page: tuple[Name, ...] = ()
    warn: tuple[Name, ...] = ()
    info: tuple[Name, ...] = ()


class PipelineRules(_Record):
    """What one pipeline has otherwise."""

    routes: Routes | None = None
    """In the place of the routes above."""
    freshness_hours: float | None = Field(None, gt=0)
    """The newest published day must have ended at most so long ago; without it freshness has no objective."""


class AlertRules(_Record):
    """The file."""

    channels: dict[Name, Channel] = Field(default_factory=dict)
    routes: Routes = Routes()
    remind_hours: float = Field(12.0, gt=0)
    """An incident that is still open is told again after this."""
    group_minutes: float = Field(5.0, ge=0)
    """A channel gets at most one message in this time; what comes meanwhile goes into the next one."""
    max_per_hour: int = Field(12, ge=1)
    """Messages a channel gets in an hour at most; the rest waits."""
    pipelines: dict[str, PipelineRules] = Field(default_factory=dict)

    def channels_of(self, pipeline: str, severity: str) -> tuple[str, ...]:
        """Names of the channels that an alert goes to."""
        own = self.pipelines.get(pipeline)
        routes = own.routes if own and own.routes else self.routes
        found: tuple[str, ...] = getattr(routes, severity)
        return found

    @model_validator(mode="after")
    def _known(self) -> AlertRules:
        every = [self.routes, *(item.routes for item in self.pipelines.values() if item.routes)]
        named = {name for routes in every for severity in SEVERITIES for name in getattr(routes, severity)}
        if unknown := sorted(named - set(self.channels)):
            raise ValueError(
                f"the routes name {', '.join(unknown)}, which is no channel; there are: "
                f"{', '.join(sorted(self.channels)) or 'none'}"
            )
        return self


def load_rules(settings: Settings) -> AlertRules:
    """The rules of this installation; without the file nothing is sent.

    Raises:
        ConfigError: The file is not YAML or a field is wrong; each problem is named.
    """
    path = settings.pipelines_dir / FILE
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return AlertRules()
    except yaml.YAMLError as error:
        raise ConfigError(
            f"is not valid YAML: {getattr(error, 'problem', error)}", which=str(path), fix="correct that line"
        ) from error
    try:
        return AlertRules.model_validate(raw or {})
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        )
        raise ConfigError(
            said, which=str(path), fix="correct the fields named; docs/alerts.md lists all of them"
        ) from None
