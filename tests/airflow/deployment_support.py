"""A deployment log to look at and to change, and the REST API in front of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from database_fixtures import put_sqlite_file, sqlite_file_after
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator, FormatChecker
from shared_app import SharedApp
from toy_installation import install_toy

from plugins import pages
from plugins.problems import MEDIA_TYPE
from tasks import registry
from tasks.core import Finding, PipelineSpec, Settings, Verdict, load_pipeline
from tasks.metadata import MetadataStore, ModelVersion
from tasks.metadata.deployments import NewEvent

EVIL = '<script>alert("x")</script>'
API = "/penstock/api/v1"
TOY = f"{API}/pipelines/toy"
ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "docs" / "contracts" / "delivery-1.json"
GETS = [
    "/deployments",
    "/pipelines/toy/deployments",
    "/pipelines/toy/live",
    "/pipelines/toy/verdicts",
    "/pipelines/toy/canaries",
]


def model(number: int, bundle_digest: str | None = None) -> ModelVersion:
    return ModelVersion(
        version=number,
        bundle_digest=bundle_digest or f"{number:064x}",
        feature_version="1+toy",
        snapshot_id="0" * 16,
        training_id=f"t{number}",
        mlflow_model_name="toy",
        mlflow_run_id=None,
        mlflow_model_uri=None,
        url="",
        created_at_utc=datetime(2024, 2, number, tzinfo=UTC),
        metrics={"validation_auc": 0.7 + number / 100},
    )


def deployed(settings: Settings) -> PipelineSpec:
    """The toy pipeline with version 1 live before version 2, which is live; 3 waits, and its gate has refused it."""
    spec = load_pipeline(settings, "toy")
    put_sqlite_file(settings, _deployed_once())
    return spec


@cache
def _deployed_once() -> bytes:
    """A database as `deployed` says, which is copied: to make its tables takes longer than most tests."""
    return sqlite_file_after(_deploy)


def _deploy(settings: Settings) -> None:
    spec = load_pipeline(settings, "toy")
    store = MetadataStore.open(settings)
    for number in (1, 2, 3):
        store.record_model_version(spec, model(number))
    for number, expected in ((1, None), (2, 1)):
        made = model(number)
        event = NewEvent(
            "promote", number, made.bundle_digest, "1+toy", expected, "airflow:ada", f"number {number} {EVIL}"
        )
        store.append_events(spec, lambda _head, event=event: [event])
    finding = Finding("min_auc", "fail", f"AUC 0.5 {EVIL}", value=0.5, limit=0.6)
    store.record_verdict(
        spec,
        Verdict(
            gate="evaluation",
            pipeline="toy",
            subject=model(3).bundle_digest,
            outcome="fail",
            findings=(finding, Finding("data", "pass", "900 rows")),
            decided_at_utc="2024-02-03T00:00:00Z",
        ),
    )


@dataclass(frozen=True)
class Delivery:
    """The installation behind the API."""

    settings: Settings
    spec: PipelineSpec
    _apps: dict[Any, FastAPI] = field(default_factory=dict)

    def client(self, role: str | None = "ADMIN", user: str | None = "ada", **headers: str) -> TestClient:
        """A client of the whole, mounted where Airflow mounts it; `user` None is nobody."""
        if (user, role) not in self._apps:
            app = SharedApp()
            app.dependency_overrides[pages.read_settings] = lambda: self.settings
            if user:
                app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username=user, role=role)
            self._apps[user, role] = FastAPI()
            self._apps[user, role].mount("/penstock", app)
        root = self._apps[user, role]
        return TestClient(root, follow_redirects=False, raise_server_exceptions=False, headers=headers)

    def program(self, user: str = "ada") -> TestClient:
        """A client that sends a token, as programs do."""
        return self.client(user=user, authorization="Bearer of-a-program")

    def live(self) -> tuple[int, int]:
        """(version, event) that is live."""
        found = registry.champion(self.settings, self.spec)
        assert found is not None
        return found.version, found.event_id

    def moves(self) -> list[tuple[str, int]]:
        """(kind, version) of the log, oldest first."""
        return [(event.kind, event.version) for event in reversed(registry.history(self.settings, self.spec))]


def installation(folder: Path) -> Delivery:
    """An installation of its own in `folder`."""
    settings = install_toy(folder)
    return Delivery(settings, deployed(settings))


def promotion(**fields: Any) -> dict[str, Any]:
    return {"version": 3, "expected_event_id": 2, "reason": "better on Mondays", **fields}


def reversal(**fields: Any) -> dict[str, Any]:
    return {"expected_event_id": 2, "reason": "wrong on Mondays", **fields}


POSTS = [("/pipelines/toy/promotions", promotion()), ("/pipelines/toy/rollbacks", reversal())]


def said(answer: Any, kind: str, status: int = 200) -> dict[str, Any]:
    """The body of an answer, which must be what the published contract says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["cache-control"] == "private, no-store"
    document = {**json.loads(CONTRACT.read_text()), "$ref": f"#/$defs/{kind}"}
    Draft202012Validator(document, format_checker=FormatChecker()).validate(answer.json())
    return answer.json()


def conflict(answer: Any) -> dict[str, Any]:
    """The problem document of a request that changed nothing."""
    assert answer.status_code == 409, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert set(answer.json()) == {"type", "what", "which", "fix", "live"}
    return answer.json()
