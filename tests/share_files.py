"""The files of `tenants/` by which a test says who is promised what."""

from __future__ import annotations

from tasks.core import Settings


def say(settings: Settings, cluster: str | None, **tenants: str) -> None:
    """Write `tenants/_cluster.yaml`, where it is given, and a file for each tenant."""
    folder = settings.project / "tenants"
    folder.mkdir(exist_ok=True)
    if cluster is not None:
        (folder / "_cluster.yaml").write_text(cluster)
    for name, text in tenants.items():
        (folder / f"{name}.yaml").write_text(text)
