"""A tenant's file gives defaults and bounds for the retention of its pipelines."""

from __future__ import annotations

import pytest

from tasks.core import Settings, load_pipeline
from tasks.core.errors import ConfigError
from tasks.core.tenants import load_tenant


def say(settings: Settings, tenant: str = "", pipeline: str = "") -> None:
    (settings.project / "tenants").mkdir(exist_ok=True)
    (settings.project / "tenants" / "default.yaml").write_text(tenant)
    path = settings.pipelines_dir / "toy" / "pipeline.yaml"
    path.write_text(f"{path.read_text()}\n{pipeline}\n")


def test_without_a_file_everything_is_as_before(settings: Settings) -> None:
    before = load_pipeline(settings, "toy").explanations
    assert (before.warm_days, before.expire_days, before.cold_values, before.top_k) == (30, 730, True, 5)
    assert load_tenant(settings, "default").explanations.defaults() == {}
    say(settings)
    assert load_pipeline(settings, "toy").explanations == before


def test_a_pipeline_takes_from_its_tenant_what_it_does_not_say(settings: Settings) -> None:
    say(
        settings,
        "explanations: {warm_days: 7, expire_days: 20, cold_values: false, top_k: 3}",
        "explanations: {expire_days: 15}",
    )
    found = load_pipeline(settings, "toy").explanations
    assert (found.warm_days, found.expire_days, found.cold_values, found.top_k) == (7, 15, False, 3)


@pytest.mark.parametrize(("days", "bound"), [(100, "min_expire_days 180"), (800, "max_expire_days 730")])
def test_a_pipeline_outside_its_tenants_bounds_is_refused_with_both_files(
    settings: Settings, days: int, bound: str
) -> None:
    say(
        settings,
        "explanations: {min_expire_days: 180, max_expire_days: 730}",
        f"explanations: {{expire_days: {days}}}",
    )
    with pytest.raises(ConfigError, match=bound) as caught:
        load_pipeline(settings, "toy")
    assert "pipelines/toy/pipeline.yaml" in str(caught.value) and "tenants/default.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("explanations: {warm: 3}", "explanations.warm"),
        ("explanations: {warm_days: 0}", "explanations.warm_days"),
        ("explanations: {min_expire_days: 9, max_expire_days: 8}", "is below"),
        ("[", "not valid YAML"),
        ("quota: {ray_jobs: 2}\nquota: {ray_jobs: 3}", "'quota' stands here a second time"),
        ("[]", "whole file"),
    ],
)
def test_a_wrong_tenant_file_is_named_with_its_field(settings: Settings, text: str, told: str) -> None:
    say(settings, text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_pipeline(settings, "toy")
    assert "tenants/default.yaml" in caught.value.which
