"""Settings of this installation, and the only reader of the environment.

| variable | default | meaning |
|---|---|---|
| `PENSTOCK_HOME` | `<project>/.penstock` | state of this installation: databases, logs, local store |
| `PENSTOCK_STORE` | `<home>/store` | where snapshots, bundles, runs and tables live: a folder or `s3://bucket/prefix` |
| `PENSTOCK_METADATA_URL` | SQLite under `<home>` | SQLAlchemy URL of the metadata store |
| `PENSTOCK_MLFLOW_URL` | `http://127.0.0.1:5000` | MLflow tracking and registry server |
| `PENSTOCK_RAY_JOBS_URL` | `http://127.0.0.1:8265` | Ray Jobs API |
| `PENSTOCK_AIRFLOW_URL` | `http://127.0.0.1:8080` | Airflow UI and REST API, for links |
| `PENSTOCK_PROJECT` | this checkout | folder with `pipelines/` and `great_expectations/` |
| `PENSTOCK_S3_ENDPOINT` | unset | endpoint URL of an S3-compatible store |
| `PENSTOCK_S3_REGION` | `us-east-1` | region of the store |
| `PENSTOCK_LOG_FORMAT` | `text` | log lines of commands, jobs and workers: `text` or `json` |
| `PENSTOCK_OTLP_URL` | unset | OpenTelemetry collector that gets traces over HTTP, such as `http://host:4318` |
| `PENSTOCK_LINEAGE` | unset | who gets OpenLineage events: a file to append to, or the URL of an HTTP endpoint |
| `PENSTOCK_TRACE_PARENT`, `PENSTOCK_LINEAGE_PARENT`, `PENSTOCK_LINEAGE_ROOT` | unset | set by Penstock for its jobs: the span and the lineage run that they belong to, and the run at the top of that one |
| `PENSTOCK_SERVICE` | unset | set by `penstock up` in the services that it starts, so that it finds them again |

S3 credentials come from the usual AWS variables or instance profile; Penstock never stores them. MLflow's login comes from
`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, that of its admin, for `penstock tenancy mlflow` alone, from
`MLFLOW_AUTH_ADMIN_USERNAME` and `MLFLOW_AUTH_ADMIN_PASSWORD`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import ConfigError

_KNOWN = {
    "PENSTOCK_HOME",
    "PENSTOCK_STORE",
    "PENSTOCK_METADATA_URL",
    "PENSTOCK_MLFLOW_URL",
    "PENSTOCK_RAY_JOBS_URL",
    "PENSTOCK_AIRFLOW_URL",
    "PENSTOCK_PROJECT",
    "PENSTOCK_S3_ENDPOINT",
    "PENSTOCK_S3_REGION",
    "PENSTOCK_LOG_FORMAT",
    "PENSTOCK_OTLP_URL",
    "PENSTOCK_LINEAGE",
    "PENSTOCK_TRACE_PARENT",
    "PENSTOCK_LINEAGE_PARENT",
    "PENSTOCK_LINEAGE_ROOT",
    "PENSTOCK_SERVICE",
}
LOG_FORMATS = ("text", "json")
_PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """One installation. Build it with `Settings.from_environment()`, or directly in tests."""

    home: Path
    project: Path
    store_url: str
    metadata_url: str
    mlflow_url: str = "http://127.0.0.1:5000"
    ray_jobs_url: str = "http://127.0.0.1:8265"
    airflow_url: str = "http://127.0.0.1:8080"
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    log_format: str = "text"
    """One of `LOG_FORMATS`."""
    otlp_url: str | None = None
    lineage: str | None = None
    trace_parent: str | None = None
    """W3C `traceparent` of the span that this process's work belongs to."""
    lineage_parent: str | None = None
    """`namespace/job/run id` of the OpenLineage run that it belongs to."""
    lineage_root: str | None = None
    """The same of the run at the top of that one: in Airflow that of the DAG run, or what started it."""

    @property
    def pipelines_dir(self) -> Path:
        """The folder whose sub-folders are pipelines."""
        return self.project / "pipelines"

    @property
    def expectations_dir(self) -> Path:
        """The folder that holds `<suite>.json` files."""
        return self.project / "great_expectations" / "expectations"

    @property
    def cache_dir(self) -> Path:
        """Local copies of immutable things; safe to delete at any time."""
        return self.home / "cache"

    @classmethod
    def at_home(cls, home: Path, *, project: Path | None = None) -> Settings:
        """Settings with every default, for state under `home`."""
        home = home.resolve()
        return cls(
            home=home,
            project=(project or _PROJECT).resolve(),
            store_url=str(home / "store"),
            metadata_url=f"sqlite:///{home / 'metadata.db'}",
        )

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, defaults: Settings | None = None
    ) -> Settings:
        """Read `PENSTOCK_*`; what the environment does not say is as in `defaults`, or as the table above says.

        Raises:
            ConfigError: An unknown `PENSTOCK_*` variable is set: a misspelt setting must not be ignored.
        """
        env = os.environ if environ is None else environ
        unknown = sorted(key for key in env if key.startswith("PENSTOCK_") and key not in _KNOWN)
        if unknown:
            raise ConfigError(
                "is not a setting of Penstock",
                which=", ".join(unknown),
                fix=f"unset it or use one of: {', '.join(sorted(_KNOWN))}",
            )
        if defaults is None:
            project = Path(env.get("PENSTOCK_PROJECT") or _PROJECT).resolve()
            home = Path(env.get("PENSTOCK_HOME") or project / ".penstock").resolve()
            base = cls.at_home(home, project=project)
        else:
            base = defaults
            project = Path(env.get("PENSTOCK_PROJECT") or base.project).resolve()
            home = Path(env.get("PENSTOCK_HOME") or base.home).resolve()
        return cls(
            home=home,
            project=project,
            store_url=env.get("PENSTOCK_STORE") or base.store_url,
            metadata_url=env.get("PENSTOCK_METADATA_URL") or base.metadata_url,
            mlflow_url=(env.get("PENSTOCK_MLFLOW_URL") or base.mlflow_url).rstrip("/"),
            ray_jobs_url=(env.get("PENSTOCK_RAY_JOBS_URL") or base.ray_jobs_url).rstrip("/"),
            airflow_url=(env.get("PENSTOCK_AIRFLOW_URL") or base.airflow_url).rstrip("/"),
            s3_endpoint=env.get("PENSTOCK_S3_ENDPOINT") or base.s3_endpoint,
            s3_region=env.get("PENSTOCK_S3_REGION") or base.s3_region,
            log_format=log_format(env, default=base.log_format),
            otlp_url=env.get("PENSTOCK_OTLP_URL") or base.otlp_url,
            lineage=env.get("PENSTOCK_LINEAGE") or base.lineage,
            trace_parent=env.get("PENSTOCK_TRACE_PARENT") or base.trace_parent,
            lineage_parent=env.get("PENSTOCK_LINEAGE_PARENT") or base.lineage_parent,
            lineage_root=env.get("PENSTOCK_LINEAGE_ROOT") or base.lineage_root,
        )

    def as_environment(self) -> dict[str, str]:
        """The variables that make another process see these settings; `from_environment` is the inverse."""
        env = {
            "PENSTOCK_HOME": str(self.home),
            "PENSTOCK_PROJECT": str(self.project),
            "PENSTOCK_STORE": self.store_url,
            "PENSTOCK_METADATA_URL": self.metadata_url,
            "PENSTOCK_MLFLOW_URL": self.mlflow_url,
            "PENSTOCK_RAY_JOBS_URL": self.ray_jobs_url,
            "PENSTOCK_AIRFLOW_URL": self.airflow_url,
            "PENSTOCK_S3_REGION": self.s3_region,
        }
        further = {
            "PENSTOCK_S3_ENDPOINT": self.s3_endpoint,
            "PENSTOCK_LOG_FORMAT": None if self.log_format == LOG_FORMATS[0] else self.log_format,
            "PENSTOCK_OTLP_URL": self.otlp_url,
            "PENSTOCK_LINEAGE": self.lineage,
            "PENSTOCK_TRACE_PARENT": self.trace_parent,
            "PENSTOCK_LINEAGE_PARENT": self.lineage_parent,
            "PENSTOCK_LINEAGE_ROOT": self.lineage_root,
        }
        return {**env, **{name: value for name, value in further.items() if value}}


def log_format(environ: Mapping[str, str] | None = None, *, default: str = LOG_FORMATS[0]) -> str:
    """How log lines are written; asked before there are any settings.

    Raises:
        ConfigError: It is neither of `LOG_FORMATS`.
    """
    found = (os.environ if environ is None else environ).get("PENSTOCK_LOG_FORMAT") or default
    if found not in LOG_FORMATS:
        raise ConfigError(
            "is not a format of log lines",
            which=f"PENSTOCK_LOG_FORMAT={found}",
            fix=f"use one of: {', '.join(LOG_FORMATS)}",
        )
    return found
