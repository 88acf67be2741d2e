"""What the Airflow UI says about DAGs, tasks and form fields."""

from __future__ import annotations

from tasks.core.report_style import percent
from tasks.core.spec import PipelineSpec

STEPS: dict[str, str] = {
    "snapshot_training": "Reads the source day by day and freezes training and validation rows as an immutable, "
    "digested snapshot. Equal rows give the same snapshot id; nothing is written twice. Says at once when the suite is not there, or "
    "features.py returns other names than pipeline.yaml lists.",
    "validate_snapshot": "Runs the pipeline's Great Expectations suite on every partition. Rows that fail row-level "
    "expectations go to quarantine with the reason; a critical failure ends the run here. The report is linked.",
    "train_model": "Trains the network on Ray, in a job of its own. A retry attaches to the job while it lives and "
    "goes on from its checkpoint when it does not. The MLflow run is linked.",
    "training_due": "Asks whether a training is due: days that none has begun with, changed code, or drift that the monitor "
    "alerts about. If so it updates the asset that starts training; if not it is skipped, with the reason.",
    "evaluate_model": "Scores the validation days with the candidate, the champion and a logistic regression, with "
    "bootstrap intervals, by slice, with calibration. The report is linked.",
    "gate_model": "Judges the evidence against the pipeline's gates. A refusal ends the run with its reasons; the "
    "champion stays.",
    "register_model": "Registers the model in MLflow as challenger, with its snapshot, feature version and verdict.",
    "canary_model": "Compares challenger and champion on labelled days after the validation window, on the same "
    "rows. `fail` ends the run; `inconclusive` keeps the champion and skips the promotion.",
    "begin_ramp": "Gives the first share of `canary.ramp` of the entities the challenger's predictions; the monitor goes on "
    "from there. Skipped without a champion to stand beside; the promotion is then not put off.",
    "advance_ramp": "Looks at the exposed challenger: withdraws and bars it when it does harm, holds it while too little is "
    "known, gives it the next share, and after the last one lets it be promoted. Skipped when nothing is exposed.",
    "approve": "Waits for a person to approve the promotion, with the evidence in the question (Required Actions). "
    "No answer in time counts as Reject.",
    "promote_model": "Loads the challenger, scores its golden rows, and moves the champion by compare-and-swap on "
    "the deployment log. Starts scoring through the champion asset.",
    "rollback_model": "Loads an earlier champion, scores its golden rows, moves the champion back to it and bars the version "
    "left. Says which published predictions came from that version. Repeating is safe.",
    "plan_rescoring": "Plans the rows that the version left still shows for the version that is live now, on the same "
    "snapshots. Skipped when re-scoring was not asked for or nothing is to do.",
    "rescore_version": "Scores them on Ray, in a job of its own, and puts each run in its place in one transaction; verified.",
    "snapshot_scoring": "Freezes the oldest days that are not published yet (or the days of the form), without "
    "labels. With nothing to score the run is skipped.",
    "plan_scoring": "Pins champion, features and snapshot under one run id and cuts the rows into shards. Equal "
    "work has the same run id.",
    "score_run": "Scores the shards on Ray, in a job of its own, and explains the predictions. Committed shards are "
    "skipped, so a retry does only what is missing.",
    "publish_run": "Adds all files of the run to the predictions table in one Delta transaction. A second publish "
    "does nothing, unless the run was planned anew because its days came again as they had been. Starts monitoring through the predictions asset.",
    "verify_run": "Reads the published run back and compares counts and digests with the shards' records.",
    "measure_window": "Merges the profiles written at scoring time and measures contract, drift and volume by day.",
    "join_labels": "Joins labels that have become known to predictions and measures realised performance.",
    "decide_window": "Applies the decision policy to signals and performance: nothing, alert, hold or retrain.",
    "mitigate_window": "Acts on the decision: a data fault holds scoring and promotions; a damaged champion is rolled back when the version "
    "before it is shown to be better on the same rows, within the limits of docs/playbook.md; else a person is asked. It fails when "
    "somebody has to know.",
    "start_case": "Starts the run of the case DAG that asks a person, once for each case; skipped when nobody needs to be asked. It "
    "runs also when `mitigate` has failed to call somebody.",
    "show_case": "Reads the case with its evidence. Skipped when it is over.",
    "ask": "Waits for a person to say what is to be done (Required Actions). An answer on the command line ends the wait too.",
    "answer_case": "Keeps the answer in the log of the case, and releases the hold of a data fault where the answer says so.",
    "roll_back_case": "Goes back to the version before, load-verified, when that was the answer. Repeating is safe.",
    "begin_retraining": "Starts the train DAG when that was the answer, once for each case.",
    "report_window": "Renders the drift and performance report. It is linked.",
    "archive_explanations": "Moves explanation data past its hot age to the archive and deletes what has expired. "
    "Days under a legal hold are kept.",
    "maintain": "Sweeps files that no commit names, vacuums the tables, puts MLflow's aliases right, folds online "
    "predictions, adds up what is stored and merges the tables' small files. Days under a legal hold stay as they are.",
}
"""One paragraph per step."""

PURPOSES: dict[str, str] = {
    "train": "Trains, gates and releases the model.",
    "score": "Scores days with the champion, exactly once.",
    "monitor": "Measures drift and realised performance, and decides.",
    "case": "Asks a person about a case of the monitor, and does what the answer says.",
    "watch": "Starts a training when there is new data or changed code.",
    "rollback": "Goes back to an earlier model, and re-scores what the bad one published.",
}
"""What each kind of DAG is for; the pipeline's own description follows it."""

FIELDS: dict[str, tuple[str, str]] = {
    "train_first_day": ("Train from", "First training day. Empty: as pipeline.yaml says."),
    "train_last_day": ("Train to", "Last training day, included. Empty: as pipeline.yaml says."),
    "validation_first_day": (
        "Validate from",
        "First validation day, after the last training day. Empty: as pipeline.yaml says.",
    ),
    "validation_last_day": ("Validate to", "Last validation day, included. Empty: as pipeline.yaml says."),
    "first_day": (
        "First day",
        "First day to work on. Empty: only the last day. Both empty: scoring takes the oldest days that are not "
        "published, the monitor those of the newest publication.",
    ),
    "last_day": ("Last day", "Last day, included. Empty: only the first day."),
    "as_of": ("As of", "Pretend that today is this day: only labels known by then count. Empty: today."),
    "expected": (
        "Version to leave",
        "The version that is live and wrong. Something else live: nothing moves.",
    ),
    "to_version": (
        "Version to go back to",
        "Empty: the last different version that was live and is not barred.",
    ),
    "case_id": ("Case", "As `penstock monitoring cases` or the Cases page shows it."),
    "rescore": ("Re-score", "Score anew what the version left has published and readers still see."),
    "reason": ("Reason", "Why this run is started; kept with the promotion it leads to."),
    "actor": ("On behalf of", "Who asked for it, when that is not the person logged in."),
}
"""Title and help of each form field."""


def train_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.train`."""
    mode = "asks a person before it promotes" if spec.promotion.mode == "approval" else "promotes by itself"
    if spec.canary.ramp:
        shares = ", ".join(map(percent, spec.canary.ramp))
        mode += f", after exposing the challenger to {shares} of the entities"
    return f"""### {spec.name}.train

{spec.description}

snapshot → validate → train (Ray) → evaluate → gate → register as challenger → canary → promote to champion.

Every gate is explicit: a failed one ends the run with its reasons, and the champion stays as it is. The pipeline
{mode}. A promotion updates the asset `{champion_asset_name(spec)}`, which starts `{spec.name}.score`.

**Clearing a task is safe**: each step finds what is already done by content, and does only the rest.
The *Evidence* tab of a run shows every verdict with its reasons. Owner: {spec.owner}. Tenant: {spec.tenant}.
"""


def watch_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.watch`."""
    return f"""### {spec.name}.watch

{spec.description}

Looks every 15 minutes for what `training.triggers` of pipeline.yaml names: {", ".join(spec.training.triggers)}. A change that no training
run has begun with updates an asset, which starts `{spec.name}.train`. Any number of updates while one runs is one run after it.
"""


def score_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.score`."""
    return f"""### {spec.name}.score

{spec.description}

snapshot → validate → plan shards → score on Ray → publish in one transaction → verify.

Runs when a promotion updates `{champion_asset_name(spec)}`{_or_cron(spec.schedule.score)}, or by hand. Without days
in the form it scores the oldest unpublished days, at most {spec.inference.max_days_per_run}. Scoring the same days
with the same champion again is the same run: nothing is scored or published twice. With no day to score the run is
skipped. Publishing updates `{predictions_asset_name(spec)}`, which starts `{spec.name}.monitor`.
"""


def monitor_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.monitor`."""
    return f"""### {spec.name}.monitor

{spec.description}

measure drift → join late labels → decide → mitigate and report, and archive explanation data by age.

Runs when `{predictions_asset_name(spec)}` is updated{_or_cron(spec.schedule.monitor)}, or by hand. Labels of a day are
known {spec.label.delay_days} day(s) after it; days without labels are measured and not judged on performance.
"""


def case_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.case`."""
    return f"""### {spec.name}.case

{spec.description}

read the case → ask → keep the answer → roll back or retrain, where that is the answer.

`{spec.name}.monitor` starts one run for each case, under the case's id. The question, with its evidence and what each answer does, is
under *Required Actions*. A case about drift is closed after {spec.drift.answer_days:g} days without an answer; others wait. Clearing a task is safe.
"""


def rollback_doc(spec: PipelineSpec) -> str:
    """Markdown of `<name>.rollback`."""
    return f"""### {spec.name}.rollback

{spec.description}

roll back → (plan re-scoring → re-score on Ray).

Trigger it with the version to leave. The earlier version is loaded and its golden rows are scored before anything moves;
the version left is barred until somebody unbars it. With *Re-score*, the predictions that it published and that readers
still see are scored anew by the version that is live then, from the same snapshots, and each run is replaced in one
transaction. Clearing a task is safe.
"""


def maintenance_doc() -> str:
    """Markdown of `platform.maintenance`."""
    return """### platform.maintenance

Once a day, for every pipeline: sweeps files that no commit names and that are older than the longest run, vacuums
what left the tables a week ago, and makes MLflow's aliases say what the deployment log says. It never touches what a
commit names. Retention of explanation data is a task of each pipeline's monitor DAG.
"""


def champion_asset_name(spec: PipelineSpec) -> str:
    """Name of the asset that a promotion updates."""
    return f"{spec.model_name}.champion"


def predictions_asset_name(spec: PipelineSpec) -> str:
    """Name of the asset that publishing updates."""
    return f"{spec.model_name}.predictions"


def _or_cron(cron: str | None) -> str:
    return f", at `{cron}` (UTC)" if cron else ""
