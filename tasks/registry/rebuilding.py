"""What MLflow still knows of a pipeline's versions, for a metadata database that was lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.core.errors import NotFound
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.registry.aliases import BARRED_TAG, CHAMPION
from tasks.registry.challengers import BUNDLE_TAG
from tasks.registry.mlflow_api import MlflowRegistry


@dataclass(frozen=True)
class FoundInMlflow:
    """Versions that carry a bundle's tag, and what the log was last projected to: an alias, and tags of barred versions."""

    versions: dict[int, str]
    """Number -> bundle digest."""
    champion: int | None
    barred: dict[int, str]
    """Number -> when, by whom and why, as its tag says."""


def found_in_mlflow(settings: Settings, spec: PipelineSpec, digests: Iterable[str]) -> FoundInMlflow:
    """Which numbers these bundles have in MLflow; of one that has several the lowest, as registration does.

    Raises:
        ServiceUnavailable: MLflow does not answer.
    """
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        try:
            champion = mlflow.aliases(spec.model_name).get(CHAMPION)
        except NotFound:
            return FoundInMlflow({}, None, {})
        numbers = {
            digest: mlflow.versions_with_tag(spec.model_name, BUNDLE_TAG, digest)
            for digest in sorted(set(digests))
        }
        barred = mlflow.tagged(spec.model_name, BARRED_TAG)
    versions = {found[0]: digest for digest, found in numbers.items() if found}
    return FoundInMlflow(versions, champion, barred)


def version_url(settings: Settings, spec: PipelineSpec, version: int) -> str:
    """Page of a version in MLflow's UI; asks nobody."""
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        return mlflow.version_url(spec.model_name, version)
