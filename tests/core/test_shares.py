"""The cluster's file and a tenant's share: defaults, limits and refusals with their figures."""

from __future__ import annotations

import os

import pytest
from share_files import say

from tasks.core import Settings, tenant_files
from tasks.core.errors import ConfigError
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.core.tenants import load_shares


def test_without_a_cluster_file_nothing_is_admitted_and_shares_say_nothing(settings: Settings) -> None:
    say(settings, None, red="share: {guarantee: {gpus: 9}}")
    assert load_shares(settings) is None


def test_a_guarantee_of_one_resource_is_the_same_share_of_the_others(settings: Settings) -> None:
    say(settings, "{gpus: 8, cpus: 64}", red="share: {guarantee: {gpus: 2}, borrow: {gpus: 1}}", blue="")
    found = load_shares(settings)
    assert found is not None
    cluster, shares = found
    assert shares["red"].guaranteed(cluster) == Resources(2, 16, 0)
    assert shares["red"].most(cluster) == Resources(3, 64, 0)
    assert shares["blue"].guaranteed(cluster) == Resources()
    assert shares["blue"].most(cluster) == cluster.resources


def test_memory_counts_only_where_the_cluster_says_how_much_there_is() -> None:
    share = TenantShare.model_validate({"guarantee": {"memory_gib": 8, "cpus": 4}})
    assert share.guaranteed(ClusterSpec(cpus=16)) == Resources(0, 4, 0)
    assert share.guaranteed(ClusterSpec(cpus=16, memory_gib=16)) == Resources(0, 4, 8)


@pytest.mark.parametrize(
    ("cluster", "tenant", "says"),
    [
        (
            "{gpus: 4, cpus: 8}",
            "guarantee: {gpus: 3}",
            "gpus 4, and the tenants' guarantees add up to 5: blue 2, red 3",
        ),
        ("{gpus: 4}", "", "cpus: Field required"),
        ("{gpus: -1, cpus: 4}", "", "gpus"),
        ("[", "", "not valid YAML"),
        ("{cpus: 4, lease: 3}", "", "lease: Extra inputs"),
        ("{gpus: 4, cpus: 8}", "weight: 0", "share.weight"),
        ("{gpus: 4, cpus: 8}", "guarantee: {gpus: .inf}", "share.guarantee.gpus"),
        ("{gpus: 4, cpus: 8}", "guarantee: {tpus: 1}", "share.guarantee.tpus"),
    ],
)
def test_wrong_shares_are_refused_with_the_field_and_the_figure(
    settings: Settings, cluster: str, tenant: str, says: str
) -> None:
    say(settings, cluster, red=f"share: {{{tenant}}}", blue="share: {guarantee: {gpus: 2}}")
    with pytest.raises(ConfigError) as caught:
        load_shares(settings)
    assert says in str(caught.value)


def test_a_file_is_read_again_when_it_has_changed_and_only_then(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(settings, "{gpus: 8, cpus: 64}", red="share: {guarantee: {gpus: 2}}")
    file = settings.project / "tenants" / "red.yaml"

    def guaranteed() -> float | None:
        found = load_shares(settings)
        assert found is not None
        return found[1]["red"].guarantee.gpus

    assert guaranteed() == 2
    file.write_text("share: {guarantee: {gpus: 3}}")
    assert guaranteed() == 3, "as long as before, and in the same moment"
    for path in file.parent.iterdir():
        os.utime(path, (0, 0))
    assert guaranteed() == 3
    with monkeypatch.context() as patch:
        patch.setattr(tenant_files, "_read", lambda *_: pytest.fail("read again"))
        assert guaranteed() == 3
    file.write_text("share: {guarantee: {gpus: 9}}")
    with pytest.raises(ConfigError, match="red 9"):
        load_shares(settings)
    file.write_text("share: [")
    os.utime(file, (0, 0))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"red\.yaml"):
            load_shares(settings)
