"""The model itself, as training writes it and every scorer reads it.

The door is lazy: `from tasks.model import FeatureCode` imports neither torch nor anything else heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.model.attribution import Attributions
    from tasks.model.bundle import (
        Bundle,
        BundleManifest,
        Calibration,
        fetch_bundle,
        upload_bundle,
        write_bundle,
    )
    from tasks.model.encoder import FeatureEncoder
    from tasks.model.feature_code import FeatureCode
    from tasks.model.network import TabularMLP, build_network
    from tasks.model.network_spec import NetworkSpec
    from tasks.model.profile import Profile, ProfileSpec
    from tasks.model.scorer import Scorer

_HOME = {
    "Attributions": "attribution",
    "Bundle": "bundle",
    "BundleManifest": "bundle",
    "Calibration": "bundle",
    "FeatureCode": "feature_code",
    "FeatureEncoder": "encoder",
    "NetworkSpec": "network_spec",
    "Profile": "profile",
    "ProfileSpec": "profile",
    "Scorer": "scorer",
    "TabularMLP": "network",
    "build_network": "network",
    "fetch_bundle": "bundle",
    "upload_bundle": "bundle",
    "write_bundle": "bundle",
}

__all__ = [
    "Attributions",
    "Bundle",
    "BundleManifest",
    "Calibration",
    "FeatureCode",
    "FeatureEncoder",
    "NetworkSpec",
    "Profile",
    "ProfileSpec",
    "Scorer",
    "TabularMLP",
    "build_network",
    "fetch_bundle",
    "upload_bundle",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tasks.model.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
