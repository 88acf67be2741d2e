"""A tenant's policy for the object store allows what its work really asks of the store, and nothing of another tenant's."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import s3_endpoint
from fault_proxy import Fault, FaultProxy
from inference_support import POISON, plan_stub, run_stub, scoring_snapshot, table_rows
from share_files import say
from store_fixtures import s3_url  # noqa: F401
from tenancy_support import pipeline_of

from tasks import wiring
from tasks.core import Settings, open_store, utc_now
from tasks.core.errors import AccessDenied, ConfigError
from tasks.inference import optimize, publish, replay, status, sweep_orphans, vacuum, verify
from tasks.tenancy.store_policy import s3_policy

pytestmark = pytest.mark.s3
ACTIONS = {
    "GetObject": ["s3:GetObject"],
    "HeadObject": ["s3:GetObject"],
    "PutObject": ["s3:PutObject"],
    "DeleteObject": ["s3:DeleteObject"],
    "DeleteObjects": ["s3:DeleteObject"],
    "Multipart": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
    "ListObjects": ["s3:ListBucket"],
}
"""What AWS asks for a request. Those of a `DeleteObjects` are in its body, one for each key."""


def allows(policy: dict[str, Any], bucket: str, operation: str, key: str) -> bool:
    """As IAM decides: some statement allows each action on the resource, under its condition."""
    listing = operation == "ListObjects"
    resource = f"arn:aws:s3:::{bucket}" if listing else f"arn:aws:s3:::{bucket}/{key}"
    for action in ACTIONS[operation]:
        for statement in policy["Statement"]:
            asked = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
            if (
                statement["Effect"] == "Allow"
                and action in statement["Action"]
                and any(fnmatch.fnmatchcase(resource, one) for one in statement["Resource"])
                and (asked is None or any(fnmatch.fnmatchcase(key, one) for one in asked))
            ):
                break
        else:
            return False
    return True


@pytest.fixture
def proxy(s3_url: str) -> Iterator[FaultProxy]:  # noqa: F811
    with FaultProxy(s3_url) as found:
        yield found


@pytest.fixture
def remote(settings: Settings, proxy: FaultProxy) -> Settings:
    return dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=proxy.url)


def everything(settings: Settings, tenant: str) -> str:
    """Snapshot, plan, score, publish, verify, replay, merge, vacuum, sweep; the run's id."""
    spec = pipeline_of(settings, tenant, "{shard_rows: 40, batch_rows: 64, max_dead_letter_share: 0.2}")
    bad = scoring_snapshot(
        settings,
        spec,
        days=2,
        change=lambda rows: rows.set_column(rows.column_names.index("price"), "price", _spoilt(rows)),
    )
    run_id = plan_stub(settings, spec, bad).run_id
    run_stub(settings, spec, run_id)
    publish(settings, spec, run_id)
    assert verify(settings, spec, run_id).ok and status(settings, spec, run_id).dead_letters == 2
    corrected = scoring_snapshot(settings, spec, days=2)
    replay(
        settings,
        spec,
        run_id,
        corrected=corrected,
        local=True,
        audit_table=None,
        load_model="inference_support:load_stub",
    )
    optimize(settings, spec)
    vacuum(settings, spec, retention=timedelta(days=1))
    open_store(settings, prefix=spec.prefix).put(
        "tables/predictions/event_date=2024-03-01/orphan.parquet", b""
    )
    sweep_orphans(settings, spec, older_than=timedelta(hours=1), clock=lambda: utc_now() + timedelta(hours=2))
    assert table_rows(settings, spec)
    return run_id


def _spoilt(rows: Any) -> Any:
    import pyarrow as pa

    prices = rows.column("price").to_pylist()
    prices[0] = POISON
    return pa.array(prices, rows.schema.field("price").type)


def test_what_a_tenants_work_asks_of_the_store_is_what_its_policy_allows_and_another_tenants_does_not(
    remote: Settings, proxy: FaultProxy
) -> None:
    say(remote, None, red="{}", blue="{}")
    bucket, _, prefix = remote.store_url.removeprefix("s3://").partition("/")
    red, blue = s3_policy(remote.store_url, "red"), s3_policy(remote.store_url, "blue")
    proxy.add(
        Fault("*", rf"^(?!{prefix}/red(/|$)).+", "answer", status=403, code="AccessDenied"),
        Fault("ListObjects", r"^$", "answer", status=403, code="AccessDenied"),
    )
    everything(remote, "red")
    seen = {(one.operation, one.key) for one in proxy.seen}
    assert {operation for operation, _ in seen} >= {"GetObject", "PutObject", "ListObjects", "DeleteObject"}
    refused = [one for one in seen if one[1] and not allows(red, bucket, *one)]
    assert refused == [], "the policy would have stopped its own tenant"
    assert [one for one in seen if one[1] and allows(blue, bucket, *one)] == []
    met = [one for one in proxy.seen if one.fault]
    assert met == [], "nothing beside its own prefix was asked for"
    assert len(seen) > 50
    with pytest.raises(AccessDenied):
        open_store(remote, prefix="blue/blue_toy").get("runs/x/plan.json")


def test_the_policies_are_written_for_each_tenant_and_none_reads_the_answers_of_jobs(
    settings: Settings, tmp_path: Path
) -> None:
    say(settings, None, red="{}", blue="{}")
    production = dataclasses.replace(settings, store_url="s3://lake/prod/")
    found = wiring.render_tenancy(production, "s3-policy", tmp_path / "out")
    assert found["files"] == ["blue.json", "red.json"]
    red = json.loads((tmp_path / "out" / "red.json").read_text())
    assert red == s3_policy("s3://lake/prod", "red")
    assert allows(red, "lake", "GetObject", "prod/red/toy/runs/1/plan.json")
    assert allows(red, "lake", "PutObject", "prod/jobs/1.json")
    for operation, key in (
        ("GetObject", "prod/jobs/1.json"),
        ("GetObject", "prod/red2/toy/plan.json"),
        ("GetObject", "red/toy/plan.json"),
        ("PutObject", "prod/blue/toy/plan.json"),
        ("ListObjects", "prod/"),
        ("ListObjects", "prod/blue/"),
        ("ListObjects", ""),
    ):
        assert not allows(red, "lake", operation, key), f"{operation} {key}"
    assert allows(s3_policy("s3://lake", "red"), "lake", "GetObject", "red/toy/plan.json")
    with pytest.raises(ConfigError, match="PENSTOCK_STORE=s3://"):
        wiring.render_tenancy(settings, "s3-policy", tmp_path)
