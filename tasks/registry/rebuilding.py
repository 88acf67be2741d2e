"""What MLflow still knows of a pipeline's versions, for a metadata database that was lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.core.errors import NotFound
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.registry.aliases import CHAMPION
from tasks.registry.challengers import BUNDLE_TAG
from tasks.registry.mlflow_api import MlflowRegistry


@dataclass(frozen=True)
class FoundInMlflow:
    """Versions that carry a bundle's tag, and the alias that the log was last projected to."""

    versions: dict[int, str]
    """Number -> bundle digest."""
    champion: int | None


def found_in_mlflow(settings: Settings, spec: PipelineSpec, digests: Iterable[str]) -> FoundInMlflow:
    """Which numbers these bundles have in MLflow; of one that has several the lowest, as registration does.

    Raises:
        ServiceUnavailable: MLflow does not answer.
    """
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        try:
            champion = mlflow.aliases(spec.model_name).get(CHAMPION)
        except NotFound:
            return FoundInMlflow({}, None)
        numbers = {
            digest: mlflow.versions_with_tag(spec.model_name, BUNDLE_TAG, digest)
            for digest in sorted(set(digests))
        }
    return FoundInMlflow({found[0]: digest for digest, found in numbers.items() if found}, champion)


def version_url(settings: Settings, spec: PipelineSpec, version: int) -> str:
    """Page of a version in MLflow's UI; asks nobody."""
    with MlflowRegistry(settings.mlflow_url) as mlflow:
        return mlflow.version_url(spec.model_name, version)
