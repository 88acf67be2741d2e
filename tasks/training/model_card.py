"""The model card: what a stranger should know before using the model, as Markdown."""

from __future__ import annotations

from tasks.core.records import Snapshot
from tasks.core.spec import PipelineSpec
from tasks.model.bundle import BundleManifest
from tasks.training.dataset import TrainingData
from tasks.training.fit import Fitted


def model_card(
    spec: PipelineSpec,
    snapshot: Snapshot,
    manifest: BundleManifest,
    data: TrainingData,
    fitted: Fitted,
    metrics: dict[str, float],
    *,
    bundle_digest: str,
    explainer: str,
) -> str:
    """The card of one trained model."""
    rows = [
        ("AUC", "auc"),
        ("PR-AUC", "pr_auc"),
        ("Log loss", "log_loss"),
        ("Brier score", "brier"),
        ("ECE", "ece"),
        ("Label rate", "label_rate"),
    ]
    table = "\n".join(
        f"| {title} | {metrics[f'validation_{key}']:.4f} | {metrics[f'tuning_{key}']:.4f} |"
        for title, key in rows
    )
    numeric = "\n".join(
        f"| `{column.name}` | numeric | mean {column.mean:.4g}, std {column.std:.4g}"
        + (f", {100 * column.missing_share:.2f} % missing" if column.indicator else "")
        + " |"
        for column in data.encoder.numeric
    )
    categorical = "\n".join(
        f"| `{column.name}` | categorical | {len(column.values)} values, "
        f"{100 * column.frequencies[0]:.2f} % rare or null |"
        for column in data.encoder.categorical
    )
    features = "\n".join(part for part in (numeric, categorical) if part)
    hidden = " → ".join(str(units) for units in spec.training.hidden)
    return f"""### {spec.name}

{spec.description}

**Validation AUC {metrics["validation_auc"]:.3f}, ECE {metrics["validation_ece"]:.3f}** on {len(data.validation.y):,} labelled rows of {data.validation_days[0].day} to {data.validation_days[-1].day}.

Owner: {spec.owner}. Predicts `{spec.label.column}`, known {spec.label.delay_days} day(s) after the day of `{spec.event_time}`.

#### Quality

| | validation | tuning |
|---|---|---|
{table}

Validation days ({data.validation_days[0].day} to {data.validation_days[-1].day}) took no part in training. Tuning days
({data.tuning_first_day} to {data.train_days[-1].day}) chose the epoch and the calibration.

#### Data

| | |
|---|---|
| Snapshot | `{snapshot.snapshot_id}` ({snapshot.rows:,} rows, {len(snapshot.days)} days) |
| Training window | {data.train_days[0].day} to {data.train_days[-1].day} |
| Labelled rows | {len(data.fit.y):,} fit, {len(data.tuning.y):,} tuning, {len(data.validation.y):,} validation |

Rows without a label are scored, and never learnt from.

#### Model

Network of `model.py` with hidden layers {hidden or "none"}, dropout {spec.training.dropout}; {len(fitted.history)} epochs, epoch
{fitted.best_epoch} kept. Probabilities are Platt-scaled: sigmoid({manifest.calibration.slope:.4f} · logit
{manifest.calibration.intercept:+.4f}). Attributions: {explainer}, on the calibrated logit scale, baseline
`{manifest.background_id}`.

| feature | kind | in training |
|---|---|---|
{features}

#### Identity

| | |
|---|---|
| Training | `{manifest.training_id}` |
| Bundle | `{bundle_digest}` |
| Feature version | `{manifest.feature_version}` |
| Trained with | {", ".join(f"{name} {version}" for name, version in manifest.frameworks.items())} |

#### Limits

The model knows the days above and nothing later: watch its monitor. Categories seen fewer than `min_count` times
share one code with unseen ones. A score is a probability for this population, not a cause.
"""
