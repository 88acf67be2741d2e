"""The few calls of MLflow's REST API that the registry needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tasks.core.errors import NotFound
from tasks.core.mlflow_rest import MlflowRest, tag_list

_SEARCH_PAGE = 200


class MlflowRegistry(MlflowRest):
    """One MLflow server, as registry."""

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version. Raises `NotFound` when there is no such model."""
        model = self.call("GET", "registered-models/get", params={"name": name})["registered_model"]
        return {item["alias"]: int(item["version"]) for item in model.get("aliases", [])}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point `alias` at `version`. Raises `NotFound` when the version is gone."""
        self.call(
            "POST", "registered-models/alias", json={"name": name, "alias": alias, "version": str(version)}
        )

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove `alias`; nothing happens when it is not there."""
        self._delete("registered-models/alias", name=name, alias=alias)

    def versions_with_tag(self, name: str, key: str, value: str) -> list[int]:
        """Versions that carry a tag, lowest first."""
        return sorted(int(item["version"]) for item in self._versions(name, f"tags.`{key}` = '{value}'"))

    def tagged(self, name: str, key: str) -> dict[int, str]:
        """Version -> the tag's value, of those that carry it."""
        return {
            int(item["version"]): next(tag.get("value", "") for tag in item["tags"] if tag["key"] == key)
            for item in self._versions(name, f"tags.`{key}` LIKE '%'")
        }

    def _versions(self, name: str, condition: str) -> Iterator[dict[str, Any]]:
        page = ""
        while True:
            answer = self.call(
                "GET",
                "model-versions/search",
                params={
                    "filter": f"name = '{name}' AND {condition}",
                    "max_results": _SEARCH_PAGE,
                    **({"page_token": page} if page else {}),
                },
            )
            yield from answer.get("model_versions", [])
            page = answer.get("next_page_token", "")
            if not page:
                return

    def description(self, name: str, version: int) -> str:
        """Raises `NotFound` when the version is gone."""
        answer = self.call("GET", "model-versions/get", params={"name": name, "version": str(version)})
        return str(answer["model_version"].get("description", ""))

    def describe(self, name: str, version: int, description: str) -> None:
        """Raises `NotFound` when the version is gone."""
        content = {"name": name, "version": str(version), "description": description}
        self.call("PATCH", "model-versions/update", json=content)

    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Raises `NotFound` when the version is gone."""
        content = {"name": name, "version": str(version), "key": key, "value": value}
        self.call("POST", "model-versions/set-tag", json=content)

    def delete_tag(self, name: str, version: int, key: str) -> None:
        """Remove a tag; nothing happens when it is not there."""
        self._delete("model-versions/delete-tag", name=name, version=str(version), key=key)

    def create_version(
        self,
        name: str,
        *,
        source: str,
        run_id: str | None,
        description: str,
        tags: Mapping[str, str],
    ) -> int:
        """Create a version of `name` from `source` (`models:/m-...`, `runs:/...` or an artifact URI).

        It is asked for once: after a lost answer the version may exist, and its tags tell.
        """
        body: dict[str, Any] = {"name": name, "source": source, "description": description}
        body["tags"] = tag_list(tags)
        if run_id:
            body["run_id"] = run_id
        if source.startswith("models:/m-"):
            body["model_id"] = source.removeprefix("models:/").split("/")[0]
        answer = self.call("POST", "model-versions/create", json=body, attempts=1)
        return int(answer["model_version"]["version"])

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version; nothing happens when it is gone."""
        self._delete("model-versions/delete", name=name, version=str(version))

    def _delete(self, path: str, **which: str) -> None:
        with suppress(NotFound):
            self.call("DELETE", path, json=which)

    def run_url(self, run_id: str) -> str:
        """Page of a run in the UI. Raises `NotFound` when there is no such run."""
        info = self.call("GET", "runs/get", params={"run_id": run_id})["run"]["info"]
        return f"{self.public_url}/#/experiments/{info['experiment_id']}/runs/{run_id}"

    def version_url(self, name: str, version: int) -> str:
        """Page of a version in the UI."""
        return f"{self.public_url}/#/models/{quote(name, safe='')}/versions/{version}"
