"""A tenant's user of MLflow does that tenant's work, and crosses none of the walls; nor does the user of Penstock's programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from share_files import say
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings
from tasks.core.mlflow_login import SERVICE_USER, Login, mlflow_login
from tasks.core.mlflow_users import EXPERIMENT, MODEL, Grant, MlflowUsers
from tasks.local import credentials
from tasks.local.services import mlflow_admin

REST, REST3, AJAX = "/api/2.0/mlflow", "/api/3.0/mlflow", "/ajax-api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True)
class Site:
    """An MLflow that asks for logins, with what two tenants have trained and registered."""

    settings: Settings
    logins: Mapping[str, Login | None]
    """By who it is of: `admin`, `service`, `acme`, `blue`, `nobody`."""
    client: httpx.Client
    ids: Mapping[str, str] = field(default_factory=dict)
    """`acme_run`, `blue_model`, ... as the walls below name them."""
    before: dict[str, Any] = field(default_factory=dict)
    """What was each tenant's when nobody had tried anything."""

    def ask(self, who: str, method: str, path: str, **content: Any) -> httpx.Response:
        self.client.cookies.clear()
        return self.client.request(method, path, auth=self.logins[who], **self._filled(content))

    def answer(self, who: str, method: str, path: str, **content: Any) -> Any:
        found = self.ask(who, method, path, **content)
        assert found.status_code == 200, found.text
        return found.json() if found.content else {}

    def _filled(self, content: Any) -> Any:
        if isinstance(content, str):
            return content.format_map(self.ids) if "{" in content else content
        if isinstance(content, dict):
            return {key: self._filled(value) for key, value in content.items()}
        return [self._filled(item) for item in content] if isinstance(content, list) else content

    def path(self, template: str) -> str:
        return str(self._filled(template))

    def contents(self, tenant: str) -> Any:
        """All that is the tenant's, as the admin sees it."""
        name, experiment = self.ids[f"{tenant}_model"], self.ids[f"{tenant}_experiment"]

        def told(path: str, /, **params: str) -> Any:
            return self.answer("admin", "GET", path, params=params)

        files = {}
        for folder in (f"{self.ids[f'{tenant}_run']}", f"models/{self.ids[f'{tenant}_logged']}"):
            root = f"{experiment}/{folder}/artifacts"
            for file in told(FILES, path=root)["files"]:
                answer = self.ask("admin", "GET", f"{FILES}/{root}/{file['path']}")
                files[f"{folder}/{file['path']}"] = answer.content
        return (
            told(f"{REST}/registered-models/get", name=name),
            told(f"{REST}/model-versions/search", filter=f"name = '{name}'"),
            told(f"{REST}/experiments/get", experiment_id=experiment),
            self.answer(
                "admin",
                "POST",
                f"{REST}/runs/search",
                json={"experiment_ids": [experiment], "run_view_type": "ALL"},
            ),
            told(f"{REST}/logged-models/{self.ids[f'{tenant}_logged']}"),
            told(f"{REST3}/users/permissions/list", username=f"penstock_{tenant}"),
            files,
        )


def trained(site: Site, who: str, name: str) -> dict[str, str]:
    """A run with an artifact, a logged model, and version 1 of it with the alias `champion`, as a training leaves them."""

    def post(path: str, **body: Any) -> Any:
        return site.answer(who, "POST", f"{REST}/{path}", json=body)

    found = site.answer(who, "GET", f"{REST}/experiments/get-by-name", params={"experiment_name": name})
    experiment = found["experiment"]["experiment_id"]
    run = post("runs/create", experiment_id=experiment, start_time=1)["run"]["info"]["run_id"]
    logged = post("logged-models", experiment_id=experiment, name="m", source_run_id=run)
    logged_id = logged["model"]["info"]["model_id"]
    for path in (f"{run}/artifacts/card.md", f"models/{logged_id}/artifacts/weights"):
        site.answer(who, "PUT", f"{FILES}/{experiment}/{path}", content=f"of {name}".encode())
    ready = {"model_id": logged_id, "status": "LOGGED_MODEL_READY"}
    site.answer(who, "PATCH", f"{REST}/logged-models/{logged_id}", json=ready)
    made = post(
        "model-versions/create", name=name, source=f"models:/{logged_id}", run_id=run, model_id=logged_id
    )
    assert made["model_version"]["version"] == "1"
    for alias in ("champion", "challenger"):
        post("registered-models/alias", name=name, alias=alias, version="1")
    gone = {"name": name, "alias": "challenger"}
    site.answer(who, "DELETE", f"{REST}/registered-models/alias", json=gone)
    return {"experiment": experiment, "run": run, "logged": logged_id, "model": name}


@pytest.fixture(scope="module")
def site(with_logins: Settings) -> Iterator[Site]:
    """acme has trained with its own login, for blue the user of Penstock's programs has."""
    settings = with_logins
    say(settings, None, acme="{}", blue="{}")
    for tenant in ("acme", "blue"):
        pipeline_of(settings, tenant, "{}")
    wiring.sync_mlflow(settings, settings.home / "logins")
    logins = {
        "admin": mlflow_admin(settings),
        "service": mlflow_login(credentials(settings)),
        **{tenant: login_of(settings.home / "logins", tenant) for tenant in ("acme", "blue")},
        "nobody": None,
    }
    with httpx.Client(base_url=settings.mlflow_url, timeout=30, trust_env=False) as client:
        empty = Site(settings, logins, client)
        ids = {
            f"{tenant}_{key}": value
            for tenant, who in (("acme", "acme"), ("blue", "service"))
            for key, value in trained(empty, who, f"{tenant}.{tenant}_toy").items()
        }
        made = replace(empty, ids=ids)
        made.before.update({tenant: made.contents(tenant) for tenant in ("acme", "blue")})
        yield made


def login_of(folder: Path, tenant: str) -> Login:
    lines = (folder / f"{tenant}.env").read_text().splitlines()
    login = mlflow_login(dict(line.split("=", 1) for line in lines))
    assert login is not None and login[0] == f"penstock_{tenant}"
    return login


def test_each_tenant_sees_its_own_and_the_service_user_sees_all(site: Site) -> None:
    names = {site.ids["acme_model"], site.ids["blue_model"]}
    for who, seen in (
        ("acme", {site.ids["acme_model"]}),
        ("blue", {site.ids["blue_model"]}),
        ("service", names),
    ):
        models = site.answer(who, "GET", f"{REST}/registered-models/search").get("registered_models", [])
        versions = site.answer(who, "GET", f"{REST}/model-versions/search").get("model_versions", [])
        found = site.answer(who, "POST", f"{REST}/experiments/search", json={"max_results": 100})
        experiments = {item["name"] for item in found.get("experiments", [])}
        ids = [site.ids["acme_experiment"], site.ids["blue_experiment"]]
        runs = site.answer(who, "POST", f"{REST}/runs/search", json={"experiment_ids": ids}).get("runs", [])
        logged = site.answer(who, "POST", f"{REST}/logged-models/search", json={"experiment_ids": ids})
        assert len(runs) == len(logged["models"]) == len(seen)
        for found_names in (
            {item["name"] for item in versions},
            {item["name"] for item in models},
            experiments,
        ):  # other tests have tenants of their own, whom the service user sees too
            assert found_names >= seen if who == "service" else found_names == seen
    for tenant in ("acme", "blue"):
        alias = {"name": site.ids[f"{tenant}_model"], "alias": "champion"}
        found = site.answer(tenant, "GET", f"{REST}/registered-models/alias", params=alias)
        assert found["model_version"]["version"] == "1"
        file = f"{FILES}/{{{tenant}_experiment}}/models/{{{tenant}_logged}}/artifacts/weights"
        assert site.ask(tenant, "GET", site.path(file)).text == f"of {site.ids[f'{tenant}_model']}"


BLUE = {"name": "{blue_model}"}
BLUE_1 = {**BLUE, "version": "1"}
RUN, EXPERIMENT_ID, ALIAS = (
    {"run_id": "{blue_run}"},
    {"experiment_id": "{blue_experiment}"},
    {"alias": "champion"},
)
ACME_2 = {"name": "{acme_model}"}
CARD = f"{FILES}/{{blue_experiment}}/{{blue_run}}/artifacts/card.md"
WALLS: list[tuple[str, str, dict[str, Any]]] = [
    # registered models, their versions and aliases
    ("GET", f"{REST}/registered-models/get", {"params": BLUE}),
    ("GET", f"{REST}/model-versions/get", {"params": BLUE_1}),
    ("GET", f"{REST}/model-versions/get-download-uri", {"params": BLUE_1}),
    ("GET", "/model-versions/get-artifact", {"params": {**BLUE_1, "path": "weights"}}),
    ("GET", f"{REST}/registered-models/alias", {"params": {**BLUE, **ALIAS}}),
    ("POST", f"{REST}/registered-models/get-latest-versions", {"json": BLUE}),
    ("PATCH", f"{REST}/registered-models/update", {"json": {**BLUE, "description": "x"}}),
    ("POST", f"{REST}/registered-models/rename", {"json": {**BLUE, "new_name": "acme.mine"}}),
    ("POST", f"{REST}/registered-models/set-tag", {"json": {**BLUE, "key": "k", "value": "v"}}),
    ("DELETE", f"{REST}/registered-models/delete", {"json": BLUE}),
    ("POST", f"{REST}/registered-models/alias", {"json": {**BLUE_1, **ALIAS}}),
    ("DELETE", f"{REST}/registered-models/alias", {"json": {**BLUE, **ALIAS}}),
    ("PATCH", f"{REST}/model-versions/update", {"json": {**BLUE_1, "description": "x"}}),
    ("POST", f"{REST}/model-versions/set-tag", {"json": {**BLUE_1, "key": "k", "value": "v"}}),
    ("DELETE", f"{REST}/model-versions/delete", {"json": BLUE_1}),
    ("POST", f"{REST}/model-versions/create", {"json": {**BLUE, "source": "models:/{acme_logged}"}}),
    ("POST", f"{REST}/registered-models/rename", {"json": {**ACME_2, "new_name": "{blue_model}"}}),
    ("POST", f"{REST}/registered-models/create", {"json": BLUE}),
    # a version of one's own from what is another's
    ("POST", f"{REST}/model-versions/create", {"json": {**ACME_2, "source": "models:/{blue_logged}"}}),
    ("POST", f"{REST}/model-versions/create", {"json": {**ACME_2, "source": "models:/{blue_model}/1"}}),
    (
        "POST",
        f"{REST}/model-versions/create",
        {"json": {**ACME_2, "source": "models:/{blue_model}@champion"}},
    ),
    ("POST", f"{REST}/model-versions/create", {"json": {**ACME_2, "source": "runs:/{blue_run}/x"}}),
    ("POST", f"{REST}/model-versions/create", {"json": {**ACME_2, "source": "runs:/{blue_run}/x", **RUN}}),
    *(
        ("POST", f"{REST}/model-versions/create", {"json": {**ACME_2, "source": source}})
        for source in (
            "mlflow-artifacts:/{blue_experiment}/{blue_run}/artifacts",
            "s3://penstock/store/blue/blue_toy/bundles",
            "file:///etc",
            "/etc",
            "http://127.0.0.1:9/x",
        )
    ),
    # experiments and runs
    ("GET", f"{REST}/experiments/get", {"params": EXPERIMENT_ID}),
    ("GET", f"{REST}/experiments/get-by-name", {"params": {"experiment_name": "{blue_model}"}}),
    ("POST", f"{REST}/experiments/update", {"json": {**EXPERIMENT_ID, "new_name": "acme.mine"}}),
    ("POST", f"{REST}/experiments/set-experiment-tag", {"json": {**EXPERIMENT_ID, "key": "k", "value": "v"}}),
    ("POST", f"{REST}/experiments/delete", {"json": EXPERIMENT_ID}),
    ("POST", f"{REST}/experiments/create", {"json": {"name": "{blue_model}"}}),
    ("POST", f"{REST}/runs/create", {"json": {**EXPERIMENT_ID, "start_time": 1}}),
    ("GET", f"{REST}/runs/get", {"params": RUN}),
    ("POST", f"{REST}/runs/update", {"json": {**RUN, "status": "FAILED"}}),
    ("POST", f"{REST}/runs/delete", {"json": RUN}),
    ("POST", f"{REST}/runs/set-tag", {"json": {**RUN, "key": "k", "value": "v"}}),
    ("POST", f"{REST}/runs/log-metric", {"json": {**RUN, "key": "k", "value": 1.0, "timestamp": 1}}),
    ("POST", f"{REST}/runs/log-batch", {"json": {**RUN, "params": [{"key": "k", "value": "v"}]}}),
    ("GET", f"{REST}/metrics/get-history", {"params": {**RUN, "metric_key": "k"}}),
    ("POST", f"{REST}/logged-models", {"json": {**EXPERIMENT_ID, "name": "m"}}),
    ("GET", f"{REST}/logged-models/{{blue_logged}}", {}),
    ("DELETE", f"{REST}/logged-models/{{blue_logged}}", {}),
    ("PATCH", f"{REST}/logged-models/{{blue_logged}}/tags", {"json": {"tags": [{"key": "k", "value": "v"}]}}),
    # artifacts
    ("GET", CARD, {}),
    ("PUT", CARD, {"content": b"other"}),
    ("DELETE", CARD, {}),
    ("GET", f"{FILES}/{{blue_experiment}}/models/{{blue_logged}}/artifacts/weights", {}),
    ("PUT", f"{FILES}/{{blue_experiment}}/models/{{blue_logged}}/artifacts/weights", {"content": b"other"}),
    ("DELETE", f"{FILES}/{{blue_experiment}}", {}),
    ("GET", CARD.replace("/{blue_experiment}", "/{acme_experiment}/%2e%2e/{blue_experiment}"), {}),
    ("GET", CARD.replace("/{blue_experiment}", "/%2e/{blue_experiment}"), {}),
    ("GET", CARD.replace("/{blue_experiment}", "/%2f{blue_experiment}"), {}),
    ("GET", FILES, {"params": {"path": "{blue_experiment}/{blue_run}/artifacts"}}),
    ("GET", FILES, {"params": {"path": "{acme_experiment}/../{blue_experiment}"}}),
    ("GET", FILES, {"params": {"path": ""}}),
    ("GET", "/get-artifact", {"params": {**RUN, "path": "card.md"}}),
    ("GET", "/get-artifact", {"params": {"run_id": "{acme_run}", "path": "../../../{blue_experiment}"}}),
    ("GET", f"{REST}/artifacts/list", {"params": RUN}),
    ("POST", f"{AJAX}/upload-artifact", {"params": {"run_uuid": "{blue_run}", "path": "x"}, "content": b"x"}),
    (
        "GET",
        f"{AJAX}/logged-models/{{blue_logged}}/artifacts/files",
        {"params": {"artifact_file_path": "weights"}},
    ),
    *(
        (
            "POST",
            f"{REST}/experiments/create",
            {"json": {"name": f"acme.elsewhere{number}", "artifact_location": place}},
        )
        for number, place in enumerate(
            (
                "mlflow-artifacts:/{blue_experiment}/{blue_run}/artifacts",
                "s3://penstock/store/blue",
                "file:///tmp",
                "/tmp",
            )
        )
    ),
    # users and what they were granted
    ("POST", f"{REST}/users/create", {"json": {"username": "more", "password": "a-password-of-mine"}}),
    ("GET", f"{REST}/users/get", {"params": {"username": "penstock_blue"}}),
    ("DELETE", f"{REST}/users/delete", {"json": {"username": "penstock_blue"}}),
    ("PATCH", f"{REST}/users/update-admin", {"json": {"username": "penstock_acme", "is_admin": True}}),
    (
        "PATCH",
        f"{REST}/users/update-password",
        {"json": {"username": "penstock_blue", "password": "another-password"}},
    ),
    (
        "PATCH",
        f"{REST}/users/update-password",
        {"json": {"username": "admin", "password": "another-password"}},
    ),
    ("GET", f"{REST3}/users/permissions/list", {"params": {"username": "penstock_blue"}}),
    *(
        (
            "POST",
            f"{REST3}/users/permissions/grant",
            {
                "json": {
                    "username": "penstock_acme",
                    "resource_type": kind,
                    "resource_id": which,
                    "permission": "READ",
                }
            },
        )
        for kind, which in (
            (MODEL, "{blue_model}"),
            (EXPERIMENT, "{blue_experiment}"),
            (MODEL, "*"),
            (EXPERIMENT, "*"),
            ("run", "*"),
        )
    ),
    (
        "POST",
        f"{REST3}/users/permissions/revoke",
        {"json": {"username": "penstock_blue", "resource_type": MODEL, "resource_id": "{blue_model}"}},
    ),
    ("POST", f"{REST3}/roles/create", {"json": {"workspace": "default", "name": "mine"}}),
    ("POST", f"{REST3}/roles/assign", {"json": {"username": "penstock_acme", "role_id": 1}}),
    (
        "POST",
        f"{REST3}/roles/permissions/add",
        {"json": {"role_id": 2, "resource_type": MODEL, "resource_pattern": "*", "permission": "MANAGE"}},
    ),
    ("GET", f"{REST}/webhooks", {}),
]


@pytest.mark.parametrize(
    ("method", "path", "content"),
    WALLS,
    ids=[f"{n}-{wall[0]}-{wall[1][-40:]}" for n, wall in enumerate(WALLS)],
)
def test_nothing_of_another_tenant_is_read_changed_taken_or_deleted(
    site: Site, method: str, path: str, content: dict[str, Any]
) -> None:
    for who, refusals in (("acme", {400, 403, 404}), ("nobody", {401})):
        answer = site.ask(who, method, site.path(path), **content)
        assert answer.status_code in refusals, answer.text
        assert "of blue" not in answer.text
    assert site.contents("blue") == site.before["blue"]


def test_and_nothing_was_made_of_anothers(site: Site) -> None:
    assert site.contents("acme") == site.before["acme"]


def test_every_wall_stands_for_something_that_its_owner_or_the_admin_can_do(site: Site) -> None:
    """Else a refusal would say nothing: the request itself might be wrong. These change nothing."""
    for method, path, content in WALLS:
        if method != "GET" or "webhooks" in path or ".." in str(content) or "%2" in path:
            continue
        who = "admin" if "/users/" in path or content.get("params") == {"path": ""} else "blue"
        assert site.ask(who, method, site.path(path), **content).status_code == 200, path


def test_graphql_answers_for_ones_own_alone(site: Site) -> None:
    def asked(who: str, run: str) -> Any:
        query = f'query {{ mlflowGetRun(input: {{runId: "{run}"}}) {{ run {{ info {{ runId }} }} }} }}'
        body = {"query": query.replace("{", "{{").replace("}", "}}"), "operationName": None}
        return site.answer(who, "POST", "/graphql", json=body)["data"]["mlflowGetRun"]

    assert asked("acme", site.ids["blue_run"]) is None
    assert asked("blue", site.ids["blue_run"])["run"]["info"]["runId"] == site.ids["blue_run"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "users/create", {"username": "more", "password": "a-password-of-mine"}),
        ("DELETE", "users/delete", {"username": "penstock_blue"}),
        ("PATCH", "users/update-admin", {"username": SERVICE_USER, "is_admin": True}),
        ("PATCH", "users/update-password", {"username": "penstock_blue", "password": "another-password"}),
        ("PATCH", "users/update-password", {"username": "admin", "password": "another-password"}),
    ],
)
def test_the_user_of_penstocks_programs_makes_and_changes_no_user(
    site: Site, method: str, path: str, body: dict[str, Any]
) -> None:
    for who, code in (("service", 403), ("nobody", 401)):
        assert site.ask(who, method, f"{REST}/{path}", json=body).status_code == code
    grant = {"username": SERVICE_USER, "resource_type": "prompt", "resource_id": "*", "permission": "MANAGE"}
    assert site.ask("service", "POST", f"{REST3}/users/permissions/grant", json=grant).status_code == 403


def test_what_mlflow_does_not_hold_is_names_and_a_name_taken_first_is_taken_back(
    site: Site, tmp_path: Path
) -> None:
    users = site.answer("acme", "GET", f"{REST}/users/list")["users"]
    assert {"penstock_blue", "admin"} <= {user["username"] for user in users}
    roles = site.answer("acme", "GET", f"{REST3}/roles/list", params={"workspace": "default"})["roles"]
    told = {grant["resource_pattern"] for role in roles for grant in role["permissions"]}
    assert {site.ids["blue_model"], site.ids["blue_experiment"]} <= told, "names of others can be read"

    site.answer("acme", "POST", f"{REST}/registered-models/create", json={"name": "blue.next"})
    made = site.answer("acme", "POST", f"{REST}/experiments/create", json={"name": "blue.next"})
    with MlflowUsers(site.settings.mlflow_url, mlflow_admin(site.settings)) as admin:
        held = admin.held_by("penstock_acme")
        assert held is not None
        theirs = {
            Grant("penstock_acme", MODEL, "blue.next"),
            Grant("penstock_acme", EXPERIMENT, made["experiment_id"]),
        }
        assert theirs <= held.grants
        folder = site.settings.home / "logins"
        acme, blue = wiring.sync_mlflow(site.settings, folder)["tenants"]
        assert acme["taken"] == blue["given"] == ["experiment blue.next", "model blue.next"]
        again = admin.held_by("penstock_acme")
        assert again is not None and not theirs & again.grants
    assert (
        site.ask("acme", "GET", f"{REST}/registered-models/get", params={"name": "blue.next"}).status_code
        == 403
    )
    site.answer("blue", "DELETE", f"{REST}/registered-models/delete", json={"name": "blue.next"})
