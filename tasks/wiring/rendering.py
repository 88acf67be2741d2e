"""Tenants as files for other engines: Kueue and KubeRay manifests, and policies for the object store and the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks.core import Settings, load_pipeline
from tasks.core.errors import ConfigError, NotFound, disk_error
from tasks.core.shares import Resources
from tasks.core.spec import Name
from tasks.core.tenants import load_tenant, require_shares, tenant_file, tenant_names
from tasks.tenancy.database_policy import postgres_policy
from tasks.tenancy.kubernetes import Platform, RunJob, render_job, render_kueue
from tasks.tenancy.store_policy import s3_policy

KINDS = ("kueue", "s3-policy", "postgres")
_GIB_PER_CPU = 4.0
"""Of a worker whose pipeline does not say `memory_gib_per_worker`."""
_NO_SECRET = ("PENSTOCK_STORE", "PENSTOCK_MLFLOW_URL", "PENSTOCK_S3_ENDPOINT", "PENSTOCK_S3_REGION")


def render_tenancy(
    settings: Settings,
    kind: str,
    to: Path,
    *,
    image: str = "",
    services_namespace: str = "penstock",
    operator_namespace: str = "kuberay-operator",
    run: str | None = None,
) -> dict[str, Any]:
    """Write files of `kind` into the folder `to`; returns their names. Files of a tenant that is gone stay.

    Args:
        kind: One of `KINDS`.
        image: The container image of Ray's head and workers; left out, that of docker-compose.yml.
        services_namespace: Where Airflow, MLflow and the databases are.
        operator_namespace: Where KubeRay's operator is.
        run: `PIPELINE/RUN_ID`: also a RayJob that finishes this run in its tenant's queue.

    Raises:
        NotFound: There is no such kind.
        ConfigError: A file of `tenants/` is wrong or missing, or the store is a folder that a cluster cannot share.
    """
    if kind not in KINDS:
        raise NotFound("cannot be rendered", which=kind, fix=f"use one of: {', '.join(KINDS)}")
    if kind == "postgres":
        names = [_checked(settings, name) for name in tenant_names(settings)]
        limits = {name: load_tenant(settings, name).quota.database_connections for name in names}
        return _write(to, {f"{name}.sql": postgres_policy(name, limits[name]) for name in names})
    _require_s3(settings)
    if kind == "s3-policy":
        files = {
            f"{name}.json": json.dumps(s3_policy(settings.store_url, name), indent=2) + "\n"
            for name in tenant_names(settings)
        }
        return _write(to, files)
    cluster, shares = require_shares(settings)
    environment = settings.as_environment()
    platform = Platform(
        image=image or _image(),
        ray_version=_ray_version(),
        services_namespace=services_namespace,
        operator_namespace=operator_namespace,
        environment={name: environment[name] for name in _NO_SECRET if name in environment},
    )
    manifests: dict[str, list[Mapping[str, Any]]] = {
        name: list(items) for name, items in render_kueue(cluster, shares, platform).items()
    }
    if run is not None:
        job = _job(settings, run)
        manifests[f"run-{job.run_id}.yaml"] = [render_job(job, platform)]
    return _write(to, {name: _yaml(items) for name, items in manifests.items()})


def _job(settings: Settings, run: str) -> RunJob:
    from tasks.inference.records import read_plan
    from tasks.wiring.context import open_context

    pipeline, _, run_id = run.partition("/")
    spec = load_pipeline(settings, pipeline)
    context = open_context(settings, pipeline)
    read_plan(context.store, run_id)
    scoring = spec.inference
    memory_gib = scoring.memory_gib_per_worker or _GIB_PER_CPU * scoring.cpus_per_worker
    each = Resources(scoring.gpus_per_worker, scoring.cpus_per_worker, memory_gib)
    return RunJob(spec.tenant, pipeline, run_id, scoring.max_workers, each)


def _checked(settings: Settings, tenant: str) -> str:
    """The name of a tenant's file, which goes into statements, as a pipeline may write it."""
    try:
        return TypeAdapter(Name).validate_python(tenant)
    except ValidationError:
        raise ConfigError(
            "is not named as a tenant can be: a letter, then letters, digits and underscores, all small",
            which=str(tenant_file(settings, tenant)),
            fix="rename or remove the file",
        ) from None


def _require_s3(settings: Settings) -> None:
    if not settings.store_url.startswith("s3://"):
        raise ConfigError(
            f"is a folder of this machine ({settings.store_url}), which tenants' clusters cannot reach",
            which="PENSTOCK_STORE",
            fix="render with the production's settings: PENSTOCK_STORE=s3://bucket/prefix",
        )


def _image() -> str:
    """The image that docker-compose.yml builds."""
    from importlib.metadata import version

    return f"penstock:{version('penstock')}"


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


def _yaml(items: list[Mapping[str, Any]]) -> str:
    import yaml

    return "---\n".join(yaml.safe_dump(dict(item), sort_keys=False, width=110) for item in items)


def _write(to: Path, files: Mapping[str, str]) -> dict[str, Any]:
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (to / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, str(to)) from error
    return {"folder": str(to), "files": sorted(files)}
