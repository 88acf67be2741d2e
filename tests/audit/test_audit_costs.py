"""What is kept costs what the report says, and whatever is done to it is an event."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from audit_support import publish_days, table_rows

from tasks import wiring
from tasks.audit import measure_costs, retain
from tasks.audit.archive import archived_dates
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import ConfigError, NotFound
from tasks.core.holds import holds

AS_OF = date(2024, 3, 4)
FIRST = "2024-03-01"


def sized(store: Any, prefix: str, paths: set[str] | None = None) -> int:
    return sum(
        info.size_bytes
        for info in store.list(prefix)
        if info.key.endswith(".parquet") and (paths is None or info.key.removeprefix(f"{prefix}/") in paths)
    )


def test_each_tier_is_counted_with_what_lies_in_it(settings: Settings, toy: PipelineSpec) -> None:
    half = toy.model_copy(update={"explanations": toy.explanations.model_copy(update={"share": 0.5})})
    publish_days(settings, half, days=3)
    told = retain(settings, half, as_of=AS_OF, warm_days=1, dry_run=True)
    done = retain(settings, half, as_of=AS_OF, warm_days=1)
    assert done.archive_bytes_added == sized(open_store(settings, prefix=half.prefix), "archive/audit")
    assert told.archive_bytes_added > 0
    retain(settings, half, as_of=date(2024, 3, 12), warm_days=10, expire_days=10)
    store = open_store(settings, prefix=half.prefix)
    found = measure_costs(settings, half, price=20.0)
    warm, cold, expired, waiting = found.tiers
    assert [tier.tier for tier in found.tiers] == ["warm", "cold", "expired", "waiting"]
    assert [(tier.days, tier.rows) for tier in (warm, cold, expired)] == [(1, 120), (1, 120), (1, 120)]
    assert (cold.files, cold.size_bytes) == (1, sized(store, "archive/audit"))
    assert waiting.size_bytes == told.hot_bytes_freed
    assert warm.size_bytes + waiting.size_bytes == sized(store, "tables/audit")
    explained = [row for row in table_rows(settings, half, "audit") if row["attributions"] is not None]
    assert warm.explained_share == pytest.approx(len(explained) / 120, abs=1e-4)
    assert cold.explained_share is not None and 0.25 < cold.explained_share < 0.75
    assert found.month_cost == pytest.approx(found.size_bytes * 20 / 1e9)
    assert warm.bytes_per_row == pytest.approx(warm.size_bytes / 120, abs=0.1)
    assert measure_costs(settings, half).month_cost is None
    with pytest.raises(ConfigError):
        measure_costs(settings, half, price=-1)


def test_a_pipeline_without_explanation_data_costs_nothing(settings: Settings, toy: PipelineSpec) -> None:
    found = measure_costs(settings, toy, price=1.0)
    assert (found.size_bytes, found.month_cost) == (0, 0.0)
    assert all(tier.bytes_per_row is None for tier in found.tiers)


def kinds(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Events, oldest first."""
    found = wiring.audit_events(settings, "toy")["events"]
    return [(one["kind"], one["day"], one["actor"], one["reason"]) for one in reversed(found)]


def test_every_action_is_an_event_with_its_actor_and_reason(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=1)
    entity = table_rows(settings, toy)[0]["entity_id"]
    who = {"actor": "ada", "reason": "case 1"}
    days = {"first_day": FIRST, "last_day": FIRST}
    wiring.archive_explanations(settings, "toy", as_of="2024-04-20")
    wiring.restore_days(settings, "toy", **days, **who, days=3, as_of="2024-04-20")
    held = wiring.hold_days(settings, "toy", **days, actor="bob", reason="trial")
    assert wiring.erase_entity(settings, "toy", entity=entity, **who)["state"] == "deferred"
    wiring.release_days(settings, "toy", hold_id=held["hold_id"], actor="bob", reason="over")
    assert wiring.archive_explanations(settings, "toy", as_of="2024-04-21")["continued_erasures"]
    wiring.archive_explanations(settings, "toy", as_of="2024-04-24")
    wiring.archive_explanations(settings, "toy", as_of="2028-01-01")
    found = kinds(settings)
    assert found == [
        ("archived", FIRST, "retention", ""),
        ("restored", FIRST, "ada", "case 1"),
        ("held", FIRST, "bob", "trial"),
        ("deferred", FIRST, "ada", "case 1"),
        ("released", FIRST, "bob", "over"),
        ("erased", FIRST, "retention", "case 1"),
        # What the erasure left of the restored copy is not the archive's file any more: it joins it again.
        ("archived", FIRST, "retention", ""),
        ("returned", FIRST, "retention", ""),
        ("expired", FIRST, "retention", ""),
    ]
    assert kinds(settings) == found


def test_an_event_that_a_crash_kept_from_the_metadata_store_is_told_by_the_next_look(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.wiring import audit_upkeep

    publish_days(settings, toy, days=1)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(audit_upkeep, "record_actions", dies)
        for call in (
            lambda: wiring.archive_explanations(settings, "toy", as_of="2024-04-20"),
            lambda: wiring.hold_days(
                settings, "toy", first_day=FIRST, last_day=FIRST, actor="bob", reason="trial"
            ),
        ):
            with pytest.raises(KeyboardInterrupt):
                call()
    publish_days(settings, toy, days=1, version=2)
    assert [kind for kind, *_ in kinds(settings)] == ["archived", "held"]
    [hold] = holds(open_store(settings, prefix=toy.prefix))
    wiring.release_days(settings, "toy", hold_id=hold.hold_id, actor="bob", reason="over")
    wiring.archive_explanations(settings, "toy", as_of="2024-04-20")
    assert [kind for kind, *_ in kinds(settings)] == ["archived", "held", "released", "archived"]


def test_a_dry_run_of_retention_by_command_moves_and_records_nothing(
    settings: Settings, toy: PipelineSpec
) -> None:
    publish_days(settings, toy, days=1)
    told = wiring.archive_explanations(settings, "toy", as_of="2024-04-20", dry_run=True)
    assert told["dry_run"] and told["archived_days"] == [FIRST] and told["hot_bytes_freed"] > 0
    assert archived_dates(open_store(settings, prefix=toy.prefix)) == {}
    assert kinds(settings) == []


def add_pipeline(settings: Settings, name: str, tenant: str, explanations: str) -> None:
    text = (settings.pipelines_dir / "toy" / "pipeline.yaml").read_text(encoding="utf-8")
    folder = settings.pipelines_dir / name
    folder.mkdir()
    for file in (settings.pipelines_dir / "toy").glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pipeline.yaml").write_text(
        f"{text.replace('name: toy', f'name: {name}')}\ntenant: {tenant}\nexplanations: {explanations}\n"
    )


def test_a_tenants_pipelines_are_retained_together_and_one_failure_stops_no_other(
    settings: Settings, toy: PipelineSpec
) -> None:
    from tasks.core import load_pipeline

    for name in ("one", "two"):
        add_pipeline(settings, name, "acme", "{warm_days: 2}")
        publish_days(settings, load_pipeline(settings, name), days=1)
    publish_days(settings, toy, days=1)
    broken = open_store(settings, prefix="acme/one")
    broken.put("holds/x/placed.json", b"junk")
    done = wiring.archive_tenant(settings, "acme", as_of="2024-03-10")
    assert done["pipelines"]["two"]["archived_days"] == [FIRST]
    assert set(done["pipelines"]) == {"two"}
    assert done["failed"]["one"]["type"] == "DataError"
    assert archived_dates(open_store(settings, prefix=toy.prefix)) == {}
    with pytest.raises(NotFound, match="has no pipeline"):
        wiring.archive_tenant(settings, "nobody")
