"""A small installation with published predictions, and the plugin's application in front of it, as Airflow mounts it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.testclient import TestClient
from shared_app import SharedApp
from toy_installation import install_toy

from plugins import pages
from tasks.core import PipelineSpec, Settings, load_pipeline
from tasks.inference import plan, publish

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "audit"), str(TESTS / "inference")]

from bundle_support import upload_random_bundle  # noqa: E402
from inference_support import run_stub, score_and_publish, scoring_snapshot, table_rows  # noqa: E402

EVIL = '<script>alert("x")</script>'
START, END = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 3, tzinfo=UTC)
WINDOW = "start=2024-03-01T00:00:00Z&end=2024-03-03T00:00:00Z"
API = "/penstock/api/v1"
TOY = f"{API}/pipelines/toy"
PAGE = "/penstock/audit"
READS = {"ada": {"toy", "other"}, "vic": {"toy"}}
"""Whose runs the users may read, once `Site.limited` is on."""


@dataclass(frozen=True)
class Site:
    """The toy pipeline with two runs of its first day and one of its second, and another tenant's pipeline."""

    settings: Settings
    toy: PipelineSpec
    ids: tuple[str, ...]
    other_id: str
    first_run: str
    """Superseded on the first day."""
    bundle: str

    def client(self, user: str | None = "ada", role: str | None = "VIEWER", **overrides: Any) -> TestClient:
        """A client of the whole, mounted where Airflow mounts it; `user` None is nobody."""
        app = SharedApp()
        app.dependency_overrides[pages.read_settings] = lambda: self.settings
        if user:
            app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username=user, role=role)
        for name, value in overrides.items():
            app.dependency_overrides[getattr(pages, name)] = lambda value=value: value
        root = FastAPI()
        root.mount("/penstock", app)
        return TestClient(root, follow_redirects=False, raise_server_exceptions=False)


def build_site(folder: Path) -> Site:
    """Publish everything into `folder`, with the real write path and a stub model."""
    settings = install_toy(folder)
    other = settings.pipelines_dir / "other"
    shutil.copytree(settings.pipelines_dir / "toy", other)
    text = (other / "pipeline.yaml").read_text().replace("name: toy", "name: other")
    (other / "pipeline.yaml").write_text(f"{text}tenant: rival\n" if "tenant:" not in text else text)
    toy, rival = load_pipeline(settings, "toy"), load_pipeline(settings, "other")
    bundle, _ = upload_random_bundle(settings, toy, folder / "bundle")
    first = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1, change=_hostile), 1)
    half = toy.model_copy(update={"explanations": toy.explanations.model_copy(update={"share": 0.5})})
    second = plan(
        settings,
        half,
        scoring_snapshot(settings, toy, days=2, change=_hostile),
        model_version=2,
        bundle_digest=bundle,
        feature_version="1+stub",
    )
    run_stub(settings, half, second.run_id)
    publish(settings, half, second.run_id)
    score_and_publish(settings, rival, scoring_snapshot(settings, rival, days=1), 1)
    ids = sorted({row["prediction_id"] for row in table_rows(settings, toy, "predictions")})
    other_id = min(row["prediction_id"] for row in table_rows(settings, rival, "predictions"))
    return Site(settings, toy, tuple(ids), other_id, first, bundle)


def _hostile(rows: pa.Table) -> pa.Table:
    """The day's first row is about an entity and a city that try to run as script and as a formula."""
    customers, cities = rows.column("customer").to_pylist(), rows.column("city").to_pylist()
    customers[0], cities[0] = f"=1+1{EVIL}", EVIL
    for name, values in (("customer", customers), ("city", cities)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
    return rows
