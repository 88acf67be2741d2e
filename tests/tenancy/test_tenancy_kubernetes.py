"""Shares as Kueue and KubeRay manifests: the same figures, walls around each tenant, and only fields that there are."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from inference_support import plan_stub, scoring_snapshot
from jsonschema import Draft202012Validator
from share_files import say
from tenancy_support import pipeline_of
from typer.testing import CliRunner

from tasks import wiring
from tasks.cli.app import app
from tasks.core import Settings
from tasks.core.errors import ConfigError, NotFound
from tasks.core.shares import ClusterSpec, TenantShare
from tasks.tenancy.kubernetes import Platform, render_kueue

CLUSTER = "{gpus: 16, cpus: 128, memory_gib: 1024}"
RED = "share: {guarantee: {gpus: 8}, borrow: {gpus: 4, cpus: 32}, weight: 2, max_runs: 3}"
BLUE = "share: {guarantee: {gpus: 4}, priority: -2}"
CRDS = Path(__file__).parents[2] / ".penstock" / "crds"
"""Where a test looks for the CustomResourceDefinitions of Kueue and KubeRay, one YAML file each."""

QUANTITY = r"^[0-9]+(m|Mi)?$"
NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


@pytest.fixture
def production(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two tenants on a store and a database that a cluster reaches; the database's URL holds a password."""
    say(settings, CLUSTER, red=RED, blue_sky=BLUE)
    return dataclasses.replace(
        settings,
        store_url="s3://lake/prod",
        metadata_url="postgresql://penstock:hunter2@db:5432/penstock",
        mlflow_url="http://mlflow.penstock:5000",
    )


@pytest.fixture
def rendered(production: Settings, tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    wiring.render_tenancy(production, "kueue", tmp_path / "out", image="registry/penstock:1")
    return manifests(tmp_path / "out")


def manifests(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, namespace/name) -> manifest."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            at = one["metadata"]
            key = one["kind"], f"{at['namespace']}/{at['name']}" if "namespace" in at else at["name"]
            assert key not in found, f"{key} twice"
            found[key] = one
    return found


def quota(queue: Mapping[str, Any], field: str = "nominalQuota") -> dict[str, Any]:
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    return {one["name"]: one.get(field) for one in flavor["resources"]}


def amount(quantity: str) -> float:
    factor = {"m": 0.001, "Mi": 1 / 1024}.get(quantity.lstrip("0123456789"), 1.0)
    return float(re.sub(r"[a-zA-Z]", "", quantity)) * factor


def test_guarantees_are_nominal_quotas_and_with_what_nobody_is_promised_they_are_the_cluster(
    rendered: dict[tuple[str, str], dict[str, Any]],
) -> None:
    red, blue = rendered["ClusterQueue", "penstock-red"], rendered["ClusterQueue", "penstock-blue-sky"]
    assert quota(red) == {"cpu": "64000m", "memory": "524288Mi", "nvidia.com/gpu": "8"}
    assert quota(blue) == {"cpu": "32000m", "memory": "262144Mi", "nvidia.com/gpu": "4"}
    every = [quota(red), quota(blue), quota(rendered["Cohort", "penstock"])]
    whole = {name: sum(amount(one[name]) for one in every) for name in every[0]}
    assert whole == {"cpu": 128, "memory": 1024, "nvidia.com/gpu": 16}
    assert quota(red, "borrowingLimit") == {"cpu": "32000m", "memory": "524288Mi", "nvidia.com/gpu": "4"}
    assert set(quota(blue, "borrowingLimit").values()) == {None}, "all that is idle"
    assert red["spec"]["fairSharing"] == {"weight": "2"}
    assert red["spec"]["preemption"]["reclaimWithinCohort"] == "Any"
    assert rendered["LocalQueue", "penstock-red/penstock"]["spec"] == {"clusterQueue": "penstock-red"}
    assert rendered["WorkloadPriorityClass", "penstock-minus-2"]["value"] == -2
    names = {one["spec"]["cohortName"] for (kind, _), one in rendered.items() if kind == "ClusterQueue"}
    assert names == {"penstock"} == {rendered["Cohort", "penstock"]["metadata"]["name"]}


def test_a_tenants_ray_cluster_with_its_head_fits_into_what_it_is_promised_and_stands_in_its_queue(
    rendered: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for name, gpus in (("penstock-red", 8), ("penstock-blue-sky", 4)):
        cluster = rendered["RayCluster", f"{name}/penstock"]
        assert cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "penstock"
        (group,) = cluster["spec"]["workerGroupSpecs"]
        assert group["replicas"] == gpus
        pods = [(cluster["spec"]["headGroupSpec"], 1), (group, group["replicas"])]
        asked = {
            resource: sum(
                amount(spec["template"]["spec"]["containers"][0]["resources"]["requests"].get(resource, "0"))
                * n
                for spec, n in pods
            )
            for resource in ("cpu", "memory", "nvidia.com/gpu")
        }
        promised = {key: amount(value) for key, value in quota(rendered["ClusterQueue", name]).items()}
        assert all(0.95 * promised[key] <= asked[key] <= promised[key] for key in promised), asked
        assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_each_tenant_has_a_namespace_with_limits_no_token_and_no_way_to_another_tenant(
    rendered: dict[tuple[str, str], dict[str, Any]],
) -> None:
    hard = rendered["ResourceQuota", "penstock-red/penstock"]["spec"]["hard"]
    assert (hard["limits.cpu"], hard["requests.nvidia.com/gpu"], hard["count/rayjobs.ray.io"]) == (
        "96000m",
        "12",
        "3",
    )
    account = rendered["ServiceAccount", "penstock-red/penstock-worker"]
    assert account["automountServiceAccountToken"] is False
    policy = rendered["NetworkPolicy", "penstock-red/penstock"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["podSelector"] == {}
    text = json.dumps(policy)
    assert "blue" not in text, "nothing of another tenant is named, and what is not named is closed"
    reached = re.findall(r'"kubernetes.io/metadata.name": "([^"]*)"', text)
    assert set(reached) == {"penstock", "kuberay-operator", "kube-system"}
    for (kind, _), cluster in rendered.items():
        if kind != "RayCluster":
            continue
        for pod in every_pod(cluster):
            (container,) = pod["containers"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert container["envFrom"] == [
                {"secretRef": {"name": "penstock-s3"}},
                {"secretRef": {"name": "penstock-mlflow", "optional": True}},
            ]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert pod["serviceAccountName"] == "penstock-worker"


def every_pod(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_no_secret_is_in_a_file(production: Settings, tmp_path: Path) -> None:
    wiring.render_tenancy(production, "kueue", tmp_path / "out")
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "hunter2" not in text and "postgresql://" not in text
    assert "s3://lake/prod" in text and "key: url" in text


def test_a_run_can_be_finished_by_a_job_of_its_own_in_its_tenants_queue(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(settings, CLUSTER, red=RED)
    red = pipeline_of(settings, "red", "{max_workers: 6, gpus_per_worker: 1, cpus_per_worker: 4}")
    run_id = plan_stub(settings, red, scoring_snapshot(settings, red)).run_id
    monkeypatch.setattr("tasks.wiring.rendering._require_s3", lambda _: None)
    wiring.render_tenancy(settings, "kueue", tmp_path / "out", run=f"{red.name}/{run_id}")
    job = manifests(tmp_path / "out")["RayJob", f"penstock-red/run-{run_id}"]
    assert job["spec"]["entrypoint"] == f"penstock inference resume {red.name} {run_id}"
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 6
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "penstock"
    check_fields(job)
    with pytest.raises(NotFound, match="is not a planned run"):
        wiring.render_tenancy(settings, "kueue", tmp_path / "out", run=f"{red.name}/{'0' * 16}")


def test_what_cannot_be_rendered_says_what_is_missing(
    production: Settings, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="use one of: kueue, s3-policy"):
        wiring.render_tenancy(production, "slurm", tmp_path)
    with pytest.raises(ConfigError, match="which tenants' clusters cannot reach"):
        wiring.render_tenancy(settings, "kueue", tmp_path)
    say(production, "{gpus: 16, cpus: 128}")
    with pytest.raises(ConfigError, match="says nothing of memory"):
        wiring.render_tenancy(production, "kueue", tmp_path)
    platform = Platform("i", "2")
    spec = ClusterSpec(cpus=8, memory_gib=8)
    with pytest.raises(ConfigError, match="is namespace penstock-a-b, as a_b is"):
        render_kueue(spec, {"a_b": TenantShare(), "a-b": TenantShare()}, platform)
    (production.project / "tenants" / "_cluster.yaml").unlink()
    with pytest.raises(ConfigError, match="is not there"):
        wiring.render_tenancy(production, "kueue", tmp_path)
    assert list(tmp_path.glob("*.yaml")) == []


def test_the_command_writes_a_file_for_the_cluster_and_one_for_each_tenant(
    production: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in production.as_environment().items():
        monkeypatch.setenv(name, value)
    answer = CliRunner().invoke(
        app, ["tenancy", "render", "kueue", "--to", str(tmp_path / "out"), "--json"], catch_exceptions=False
    )
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["files"] == [
        "cluster.yaml",
        "penstock-blue-sky.yaml",
        "penstock-red.yaml",
    ]


# The fields that are written, as the definitions of Kueue (v1beta2), KubeRay (v1) and Kubernetes have them: a misspelt or moved one fails here.
_RESOURCES = {"limits", "requests"}
_POD = {
    "serviceAccountName": str,
    "automountServiceAccountToken": bool,
    "securityContext": {"runAsNonRoot": bool, "seccompProfile": {"type": str}},
    "containers": [
        {
            "name": str,
            "image": str,
            "env": [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}],
            "envFrom": [{"secretRef": {"name": str, "optional": bool}}],
            "resources": {name: {"*": QUANTITY} for name in _RESOURCES},
            "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
        }
    ],
}
_RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": r"^(disabled|token)$"},
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": {"rayStartParams": {"*": str}, "template": {"spec": _POD}},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": {"*": str},
            "template": {"spec": _POD},
        }
    ],
}
_GROUPS = [
    {
        "coveredResources": [str],
        "flavors": [
            {
                "name": NAME,
                "resources": [{"name": str, "nominalQuota": QUANTITY, "borrowingLimit": QUANTITY}],
            }
        ],
    }
]
_PEERS = [
    {
        "podSelector": {},
        "namespaceSelector": {"matchLabels": {"*": str}},
        "ipBlock": {"cidr": str, "except": [str]},
    }
]
_PORTS = [{"port": int, "protocol": r"^(TCP|UDP)$"}]
FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v1", "Namespace"): {},
    ("v1", "ServiceAccount"): {"automountServiceAccountToken": bool, "secrets": [{"name": NAME}]},
    ("v1", "ResourceQuota"): {"spec": {"hard": {"*": QUANTITY}}},
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "spec": {
            "podSelector": {},
            "policyTypes": [r"^(Ingress|Egress)$"],
            "ingress": [{"from": _PEERS, "ports": _PORTS}],
            "egress": [{"to": _PEERS, "ports": _PORTS}],
        }
    },
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): {"spec": {}},
    ("kueue.x-k8s.io/v1beta2", "Cohort"): {"spec": {"resourceGroups": _GROUPS}},
    ("kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass"): {"value": int, "description": str},
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {"spec": {"clusterQueue": NAME}},
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): {
        "spec": {
            "cohortName": NAME,
            "namespaceSelector": {"matchLabels": {"*": str}},
            "queueingStrategy": r"^(StrictFIFO|BestEffortFIFO)$",
            "resourceGroups": _GROUPS,
            "fairSharing": {"weight": r"^[0-9.]+$"},
            "preemption": {
                "reclaimWithinCohort": r"^(Never|LowerPriority|Any)$",
                "withinClusterQueue": r"^(Never|LowerPriority|LowerOrNewerEqualPriority)$",
            },
        }
    },
    ("ray.io/v1", "RayCluster"): {"spec": _RAY_CLUSTER},
    ("ray.io/v1", "RayJob"): {
        "spec": {
            "entrypoint": str,
            "shutdownAfterJobFinishes": bool,
            "ttlSecondsAfterFinished": int,
            "backoffLimit": int,
            "suspend": bool,
            "submissionMode": r"^(HTTPMode|K8sJobMode|SidecarMode)$",
            "rayClusterSpec": _RAY_CLUSTER,
        }
    },
}
_METADATA = {"name": NAME, "namespace": NAME, "labels": {"*": str}}


def check_fields(manifest: dict[str, Any]) -> None:
    fields = FIELDS[manifest["apiVersion"], manifest["kind"]]
    _check(manifest, {"apiVersion": str, "kind": str, "metadata": _METADATA, **fields}, manifest["kind"])


def _check(value: Any, allowed: Any, at: str) -> None:
    if isinstance(allowed, dict):
        assert isinstance(value, dict), at
        for key, inner in value.items():
            assert key in allowed or "*" in allowed, f"{at} has no field {key}"
            _check(inner, allowed.get(key, allowed.get("*")), f"{at}.{key}")
    elif isinstance(allowed, list):
        assert isinstance(value, list) and value, at
        for number, inner in enumerate(value):
            _check(inner, allowed[0], f"{at}[{number}]")
    elif isinstance(allowed, type):
        assert isinstance(value, allowed), f"{at}: {value!r}"
    else:
        assert isinstance(value, str) and re.search(allowed, value), f"{at}: {value!r}"


def test_every_field_that_is_written_is_one_that_the_definitions_have(
    rendered: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for manifest in rendered.values():
        check_fields(manifest)
    assert {kind for kind, _ in rendered} == {kind for _, kind in FIELDS} - {"RayJob"}
    misspelt = json.loads(json.dumps(rendered["ClusterQueue", "penstock-red"]))
    misspelt["spec"]["cohort"] = misspelt["spec"].pop("cohortName")
    with pytest.raises(AssertionError, match=r"ClusterQueue\.spec has no field cohort"):
        check_fields(misspelt)


@pytest.mark.skipif(
    not list(CRDS.glob("*.yaml")),
    reason="needs the CustomResourceDefinitions of Kueue and KubeRay: their YAML files in .penstock/crds un-skip it",
)
def test_the_manifests_are_valid_by_the_definitions_themselves(
    production: Settings, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.wiring.rendering._require_s3", lambda _: None)
    red = pipeline_of(settings, "red", "{max_workers: 6, gpus_per_worker: 1, cpus_per_worker: 4}")
    run_id = plan_stub(settings, red, scoring_snapshot(settings, red)).run_id
    wiring.render_tenancy(settings, "kueue", tmp_path / "out", run=f"{red.name}/{run_id}")
    schemas = {}
    for path in CRDS.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
        for version in definition["spec"]["versions"]:
            schemas[f"{group}/{version['name']}", kind] = _strict(version["schema"]["openAPIV3Schema"])
    checked = set()
    for (kind, name), manifest in manifests(tmp_path / "out").items():
        schema = schemas.get((manifest["apiVersion"], kind))
        if schema is None:
            assert manifest["apiVersion"] in ("v1", "networking.k8s.io/v1"), f"{kind} has no definition"
            continue
        checked.add(kind)
        problems = [
            f"{kind} {name}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)
        ]
        assert problems == []
    assert checked == {
        *("ResourceFlavor", "Cohort", "WorkloadPriorityClass", "ClusterQueue", "LocalQueue"),
        *("RayCluster", "RayJob"),
    }


def _strict(schema: Any) -> Any:
    """The schema with fields that it does not name forbidden: the API server would drop them without a word."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    named = found.get("properties")
    open_ended = "additionalProperties" in found or found.get("x-kubernetes-preserve-unknown-fields")
    if found.get("type") == "object" and isinstance(named, dict) and not open_ended:
        found["additionalProperties"] = False
    return found
