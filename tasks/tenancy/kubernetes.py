"""The same shares for Kueue and KubeRay: what a tenant is promised as a queue, and a Ray cluster of its own in a namespace of its own.

Pure: records in, manifests out. What maps to what, and what does not, is in docs/tenancy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.core.errors import ConfigError
from tasks.core.shares import ClusterSpec, Resources, TenantShare

Manifest = dict[str, Any]

COHORT = FLAVOR = QUEUE = "penstock"
HEAD = Resources(0.0, 1.0, 4.0)
"""Of a Ray head, which does no work of runs."""
S3_SECRET, METADATA_SECRET, MLFLOW_SECRET = "penstock-s3", "penstock-metadata", "penstock-mlflow"
_KUEUE, _RAY = "kueue.x-k8s.io/v1beta2", "ray.io/v1"
_LABEL = {"app.kubernetes.io/managed-by": "penstock"}
_PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]
_RAY_DASHBOARD, _DNS, _HTTPS = 8265, 53, 443


@dataclass(frozen=True)
class Platform:
    """What of an installation on Kubernetes the shares do not say."""

    image: str
    ray_version: str
    gpu_resource: str = "nvidia.com/gpu"
    services_namespace: str = "penstock"
    """Where Airflow, MLflow and the databases are."""
    operator_namespace: str = "kuberay-operator"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings of the workers, without secrets."""


@dataclass(frozen=True)
class RunJob:
    """A run that is to be finished on a Ray cluster of its own."""

    tenant: str
    pipeline: str
    run_id: str
    workers: int
    each: Resources


def namespace_of(tenant: str) -> str:
    """Names in Kubernetes have no underscore."""
    return f"penstock-{tenant.replace('_', '-')}"


def render_kueue(
    spec: ClusterSpec, tenants: Mapping[str, TenantShare], platform: Platform
) -> dict[str, list[Manifest]]:
    """Manifests by file name: `cluster.yaml`, and one file for each tenant.

    Raises:
        ConfigError: The cluster does not say its memory, which Kueue has to count; or two tenants' names are one in Kubernetes.
    """
    if spec.memory_gib is None:
        raise ConfigError(
            "says nothing of memory, and every pod asks Kueue for some",
            which="tenants/_cluster.yaml: memory_gib",
            fix="say how much memory the nodes have for pods, in GiB",
        )
    names: dict[str, str] = {}
    for tenant in tenants:
        other = names.setdefault(namespace_of(tenant), tenant)
        if other != tenant:
            raise ConfigError(
                f"is namespace {namespace_of(tenant)}, as {other} is",
                which=f"tenant {tenant}",
                fix="rename one of them",
            )
    promised = Resources()
    for share in tenants.values():
        promised = promised.plus(share.guaranteed(spec))
    files = {"cluster.yaml": _cluster(spec, tenants, promised, platform)}
    for tenant, share in sorted(tenants.items()):
        files[f"{namespace_of(tenant)}.yaml"] = _tenant(spec, tenant, share, platform)
    return files


def render_job(job: RunJob, platform: Platform) -> Manifest:
    """A RayJob in the tenant's queue that finishes a run: what is committed is skipped, so Kueue may end and start it at will."""
    name = f"run-{job.run_id}"
    group = _workers("workers", job.workers, job.each, platform, most=job.workers)
    return {
        "apiVersion": _RAY,
        "kind": "RayJob",
        "metadata": _metadata(name, namespace_of(job.tenant), queue=True),
        "spec": {
            "entrypoint": f"penstock inference resume {job.pipeline} {job.run_id}",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "backoffLimit": 2,
            "suspend": True,
            "rayClusterSpec": _ray_cluster(platform, [group]),
            "submissionMode": "HTTPMode",
        },
    }


def _cluster(
    spec: ClusterSpec, tenants: Mapping[str, TenantShare], promised: Resources, platform: Platform
) -> list[Manifest]:
    whole = spec.resources
    free = Resources(*(max(0.0, there - said) for there, said in zip(whole, promised, strict=True)))
    cohort = {
        "apiVersion": _KUEUE,
        "kind": "Cohort",
        "metadata": _metadata(COHORT),
        "spec": {"resourceGroups": [_quota(free, platform)]},
    }
    flavor = {"apiVersion": _KUEUE, "kind": "ResourceFlavor", "metadata": _metadata(FLAVOR), "spec": {}}
    classes: list[Manifest] = [
        {
            "apiVersion": _KUEUE,
            "kind": "WorkloadPriorityClass",
            "metadata": _metadata(_priority_class(number)),
            "value": number,
            "description": f"share.priority {number} of a tenant",
        }
        for number in sorted({share.priority for share in tenants.values()})
    ]
    return [flavor, cohort, *classes]


def _tenant(spec: ClusterSpec, tenant: str, share: TenantShare, platform: Platform) -> list[Manifest]:
    namespace = namespace_of(tenant)
    promised, most = share.guaranteed(spec), share.most(spec)
    borrow = None
    if share.borrow is not None:
        borrow = Resources(*(max(0.0, may - own) for may, own in zip(most, promised, strict=True)))
    levels = ("enforce", "audit", "warn")
    found: list[Manifest] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace,
                "labels": {
                    **_LABEL,
                    "penstock/tenant": tenant,
                    **{f"pod-security.kubernetes.io/{level}": "restricted" for level in levels},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": _metadata("penstock-worker", namespace),
            "automountServiceAccountToken": False,
            "secrets": [{"name": S3_SECRET}, {"name": METADATA_SECRET}],
        },
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": _metadata("penstock", namespace),
            "spec": {"hard": _hard(most, share, platform)},
        },
        _network(namespace, platform),
        {
            "apiVersion": _KUEUE,
            "kind": "ClusterQueue",
            "metadata": _metadata(namespace),
            "spec": {
                "cohortName": COHORT,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "queueingStrategy": "BestEffortFIFO",
                "resourceGroups": [_quota(promised, platform, borrow)],
                "fairSharing": {"weight": f"{share.weight:g}"},
                "preemption": {
                    "reclaimWithinCohort": "Any",
                    "withinClusterQueue": "LowerPriority",
                },
            },
        },
        {
            "apiVersion": _KUEUE,
            "kind": "LocalQueue",
            "metadata": _metadata(QUEUE, namespace),
            "spec": {"clusterQueue": namespace},
        },
    ]
    each = _worker_pod(spec, promised)
    count = _fit(promised, each) if each else 0
    if each and count:
        metadata = _metadata("penstock", namespace, queue=True)
        metadata["labels"]["kueue.x-k8s.io/priority-class"] = _priority_class(share.priority)
        group = _workers("workers", count, each, platform, most=count)
        found.append(
            {
                "apiVersion": _RAY,
                "kind": "RayCluster",
                "metadata": metadata,
                "spec": _ray_cluster(platform, [group]),
            }
        )
    return found


def _quota(amount: Resources, platform: Platform, borrow: Resources | None = None) -> Manifest:
    quantities = _quantities(amount, platform)
    limits = _quantities(borrow, platform) if borrow is not None else {}
    resources: list[Manifest] = [
        {
            "name": name,
            "nominalQuota": quantity,
            **({"borrowingLimit": limits[name]} if name in limits else {}),
        }
        for name, quantity in quantities.items()
    ]
    return {"coveredResources": list(quantities), "flavors": [{"name": FLAVOR, "resources": resources}]}


def _quantities(amount: Resources, platform: Platform) -> dict[str, str]:
    """What Kubernetes calls an amount. GPUs are whole there; of CPUs a thousandth is the least."""
    return {
        "cpu": f"{math.floor(amount.cpus * 1000 + 1e-6)}m",
        "memory": f"{math.floor(amount.memory_gib * 1024 + 1e-6)}Mi",
        platform.gpu_resource: f"{math.floor(amount.gpus + 1e-6)}",
    }


def _hard(most: Resources, share: TenantShare, platform: Platform) -> dict[str, str]:
    amount = _quantities(most, platform)
    hard = {
        "requests.cpu": amount["cpu"],
        "limits.cpu": amount["cpu"],
        "requests.memory": amount["memory"],
        "limits.memory": amount["memory"],
        f"requests.{platform.gpu_resource}": amount[platform.gpu_resource],
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    if share.max_runs is not None:
        hard["count/rayjobs.ray.io"] = str(share.max_runs)
    return hard


def _network(namespace: str, platform: Platform) -> Manifest:
    """Pods of the namespace reach each other, names, the services and the object store; of others, the services reach Ray's API."""

    def of(name: str) -> Manifest:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    own: Manifest = {"podSelector": {}}
    dns = [{"port": _DNS, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata("penstock", namespace),
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {
                    "from": [of(platform.services_namespace), of(platform.operator_namespace)],
                    "ports": [{"port": _RAY_DASHBOARD, "protocol": "TCP"}],
                },
            ],
            "egress": [
                {"to": [own]},
                {"to": [of("kube-system")], "ports": dns},
                {"to": [of(platform.services_namespace)]},
                {
                    "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": _PRIVATE}}],
                    "ports": [{"port": _HTTPS, "protocol": "TCP"}],
                },
            ],
        },
    }


def _worker_pod(spec: ClusterSpec, promised: Resources) -> Resources | None:
    """A worker pod is a GPU with its part of the CPUs and memory; without GPUs, up to eight CPUs. None when nothing is promised."""
    room = _less_head(promised)
    if room.cpus <= 0:
        return None
    whole = spec.resources
    if promised.gpus >= 1:
        count = math.floor(promised.gpus + 1e-6)
        return Resources(1.0, room.cpus / count, room.memory_gib / count)
    count = max(1, math.ceil(room.cpus / 8))
    return Resources(0.0, room.cpus / count, min(room.memory_gib, whole.memory_gib) / count)


def _less_head(amount: Resources) -> Resources:
    return Resources(*(max(0.0, there - head) for there, head in zip(amount, HEAD, strict=True)))


def _fit(amount: Resources, each: Resources) -> int:
    room = _less_head(amount)
    counts = [int(there / need + 1e-6) for there, need in zip(room, each, strict=True) if need]
    return min(counts, default=0)


def _ray_cluster(platform: Platform, groups: list[Manifest]) -> Manifest:
    return {
        "rayVersion": platform.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(HEAD, "ray-head", platform),
        },
        "workerGroupSpecs": groups,
    }


def _workers(name: str, count: int, each: Resources, platform: Platform, *, most: int) -> Manifest:
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _pod(each, "ray-worker", platform),
    }


def _pod(amount: Resources, name: str, platform: Platform) -> Manifest:
    """Limits are the requests: a pod that takes more memory than its own is ended, and no other."""
    resources = {key: value for key, value in _quantities(amount, platform).items() if value != "0"}
    environment: list[Manifest] = [
        {"name": key, "value": value} for key, value in sorted(platform.environment.items())
    ]
    secret = {"name": METADATA_SECRET, "key": "url"}
    environment.append({"name": "PENSTOCK_METADATA_URL", "valueFrom": {"secretKeyRef": secret}})
    return {
        "spec": {
            "serviceAccountName": "penstock-worker",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": name,
                    "image": platform.image,
                    "env": environment,
                    "envFrom": [
                        {"secretRef": {"name": S3_SECRET}},
                        {"secretRef": {"name": MLFLOW_SECRET, "optional": True}},
                    ],
                    "resources": {"requests": resources, "limits": resources},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        }
    }


def _priority_class(number: int) -> str:
    return f"penstock-{'minus-' if number < 0 else ''}{abs(number)}"


def _metadata(name: str, namespace: str | None = None, *, queue: bool = False) -> Manifest:
    labels = dict(_LABEL)
    if queue:
        labels["kueue.x-k8s.io/queue-name"] = QUEUE
    return {"name": name, **({"namespace": namespace} if namespace else {}), "labels": labels}
