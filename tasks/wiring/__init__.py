"""Where the rooms meet: one function a step, called alike by Airflow, Ray jobs, the command line and tests.

Every step is `step(settings, pipeline, **arguments) -> dict` with JSON-ready arguments and result, raises
`PenstockError`, and may be run again at any time: what is done already is found and returned.

The door is lazy, so that `penstock --help` and a DAG's parsing import no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from tasks.core.errors import NotFound

Step = Callable[..., dict[str, Any]]

_STEPS = {
    "snapshot_training": "train",
    "show_snapshot": "train",
    "validate_snapshot": "train",
    "train_model": "train",
    "evaluate_model": "train",
    "gate_model": "train",
    "waive_finding": "waivers",
    "release_waived": "waivers",
    "list_waivers": "waivers",
    "list_verdicts": "waivers",
    "reproduce_training": "reproduce",
    "training_due": "triggers",
    "begin_ramp": "ramp",
    "expose_model": "ramp",
    "withdraw_model": "ramp",
    "ramp_status": "ramp",
    "advance_ramp": "ramp",
    "register_model": "release",
    "canary_model": "release",
    "promote_model": "release",
    "rollback_model": "release",
    "bar_model": "release",
    "unbar_model": "release",
    "blast_radius": "rollback",
    "plan_rescoring": "rollback",
    "rescore_version": "rollback",
    "reject_model": "approval",
    "reconcile_registry": "release",
    "deployment_history": "release",
    "live_model": "release",
    "metric_series": "series",
    "snapshot_scoring": "score",
    "plan_scoring": "score",
    "score_run": "score",
    "publish_run": "score",
    "verify_run": "score",
    "run_status": "score",
    "list_runs": "score",
    "resume_run": "score",
    "replay_run": "score",
    "optimize_tables": "score",
    "vacuum_tables": "score",
    "maintain": "score",
    "measure_window": "monitor",
    "join_labels": "monitor",
    "decide_window": "monitor",
    "report_window": "monitor",
    "mitigate_window": "mitigation",
    "scoring_status": "mitigation",
    "release_held_scoring": "mitigation",
    "monitor_window": "monitor",
    "list_cases": "cases",
    "show_case": "cases",
    "case_status": "cases",
    "answer_case": "cases",
    "close_unanswered": "cases",
    "revoke_case_answer": "cases",
    "roll_back_case": "cases",
    "begin_retraining": "cases",
    "list_alerts": "alerts",
    "trend_report": "trend",
    "test_alert": "alerts",
    "archive_explanations": "audit_upkeep",
    "hold_days": "audit_upkeep",
    "release_days": "audit_upkeep",
    "list_holds": "audit_upkeep",
    "erase_entity": "audit_upkeep",
    "restore_days": "audit_upkeep",
    "cost_report": "audit_upkeep",
    "audit_events": "audit_upkeep",
    "fold_online": "audit_online",
    "hot_online": "audit_online",
    "run_ci": "ci",
    "audit_prediction": "audit",
    "audit_predictions": "audit",
    "reproduce_prediction": "audit",
}
_OTHERS = {
    "all_cases": "cases",
    "deployments": "deployment_pages",
    "deployments_overview": "deployment_pages",
    "delivery_canaries": "delivery",
    "delivery_live": "delivery",
    "delivery_log": "delivery",
    "delivery_overview": "delivery",
    "delivery_verdicts": "delivery",
    "promote_over": "delivery",
    "roll_back_from": "delivery",
    "check_case_answer": "cases",
    "approval_evidence": "approval",
    "archive_tenant": "audit_upkeep",
    "audit_record": "audit_pages",
    "audit_records": "audit_pages",
    "audit_window": "audit_pages",
    "audited_pipelines": "audit_pages",
    "prediction_links": "audit_pages",
    "run_window": "audit_pages",
    "training_distribution": "audit_pages",
    "utc_bounds": "audit_pages",
    "decode_prediction_id": "audit",
    "check_metadata": "metadata",
    "copy_metadata": "metadata",
    "dag_run_evidence": "pages",
    "new_pipeline": "pages",
    "overview": "pages",
    "read_report": "pages",
    "serve": "serving",
    "serve_on_ray": "serving_on_ray",
    "send_alerts": "alerts",
    "cost_ledger": "costs",
    "ledger_csv": "costs",
    "render_tenancy": "rendering",
    "tenancy_status": "tenancy",
    "sync_mlflow": "mlflow_tenants",
    "keep_leases": "keeping",
    "sync_pools": "tenancy",
    "trend_page": "trend",
    "batch_metrics": "exposition",
    "rebuild_metadata": "rebuild",
    "create_backup": "recovery",
    "list_backups": "recovery",
    "remove_backup": "recovery",
    "restore_backup": "recovery",
    "verify_backup": "recovery",
}

__all__ = sorted([*_STEPS, *_OTHERS, "step"])


def step(name: str) -> Step:
    """The step of that name. Raises `NotFound`, listing those there are."""
    if name not in _STEPS:
        raise NotFound("is not a step", which=name, fix=f"use one of: {', '.join(sorted(_STEPS))}")
    from tasks.wiring.observing import observed

    return observed(name, getattr(import_module(f"tasks.wiring.{_STEPS[name]}"), name))


def __getattr__(name: str) -> Any:
    if name in _STEPS:
        return step(name)
    if name not in _OTHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tasks.wiring.{_OTHERS[name]}"), name)
