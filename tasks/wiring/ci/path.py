"""The whole pre-merge path of one pipeline, in order, each check once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core import PipelineSpec, Settings, load_pipeline
from tasks.core.errors import ConfigError
from tasks.core.records import Snapshot
from tasks.core.spec import pipeline_folder
from tasks.wiring.ci import folder, production, suite
from tasks.wiring.ci.model import evaluate_sample, judge_sample, rehearse, train_sample
from tasks.wiring.ci.production import Champion
from tasks.wiring.ci.records import INFORM, Checks, Skip, exit_code
from tasks.wiring.ci.sample import DEFAULT_DAYS, FEWEST_DAYS, Sample, choose_days, days_for_rows
from tasks.wiring.context import Context, window
from tasks.wiring.train import split_windows, try_features

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation
    from tasks.training import TrainedModel


def run_ci(
    settings: Settings,
    pipeline: str,
    *,
    sample_days: int | None = None,
    sample_rows: int | None = None,
    keep: bool = False,
    reports: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Try a pipeline as it is on disk: code, suite, a sample through both gates, and its promotion without promoting.

    Args:
        settings: The installation; read, never written.
        sample_days: Whole days to try, training and validation together; default 21.
        sample_rows: Instead: as many days as hold about so many rows.
        keep: Leave the sandbox, with its reports, where the result says.
        reports: Path to copy the HTML reports to.
        say: Called with one line as each check ends.

    Returns:
        `outcome`, `exit_code`, `checks`, `metrics`, `sample`, `reports`, and `sandbox` when it was kept.

    Raises:
        NotFound: There is no such pipeline.
        ConfigError: The sample is too small.
    """
    pipeline_folder(settings, pipeline)
    for name, value, least in (("sample_days", sample_days, FEWEST_DAYS), ("sample_rows", sample_rows, 1)):
        if value is not None and value < least:
            raise ConfigError(f"is {value}", which=name, fix=f"give at least {least}, or leave it out")
    home = Path(tempfile.mkdtemp(prefix="penstock-ci-"))
    try:
        copies = Path(reports) if reports else None
        trial = _Trial(
            settings, pipeline, home, Checks(say), sample_days, sample_rows, keep=keep, reports=copies
        )
        trial.run()
        return trial.result()
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


class _Trial:
    """What one check leaves for the next."""

    context: Context
    sample: Sample
    snapshot: Snapshot
    clean: Snapshot
    trained: TrainedModel
    evaluation: Evaluation | None = None
    champion: Champion | None = None
    data_report: str | None = None

    def __init__(
        self,
        settings: Settings,
        pipeline: str,
        home: Path,
        checks: Checks,
        sample_days: int | None,
        sample_rows: int | None,
        *,
        keep: bool,
        reports: Path | None,
    ) -> None:
        self.production = settings
        self.pipeline = pipeline
        self.checks = checks
        self.sample_days, self.sample_rows = sample_days, sample_rows
        self.keep, self.reports = keep, reports
        own = Settings.at_home(home, project=settings.project)
        self.sandbox = replace(
            own, s3_endpoint=settings.s3_endpoint, s3_region=settings.s3_region, mlflow_url=""
        )

    def run(self) -> None:
        check = self.checks.check
        check("pipeline.yaml", self._load)
        check("lint", lambda: folder.lint(self.sandbox, self.pipeline))
        check("code", lambda: folder.load_code(self.sandbox, self.spec), needs=["pipeline.yaml"])
        check("unit tests", lambda: folder.unit_tests(self.sandbox, self.spec), needs=["code"])
        check("suite", lambda: suite.suite_file(self.context), needs=["pipeline.yaml"])
        check("sample", self._snapshot, needs=["code"])
        check("data gate", self._validate, needs=["suite", "sample"])
        check(
            "planted bad rows",
            lambda: suite.planted_rows(self.checks, self.context, self.clean),
            needs=["data gate"],
        )
        check("train", self._train, needs=["data gate"])
        check("production", self._production, needs=["pipeline.yaml"])
        check("evaluate", self._evaluate, needs=["train"])
        check("evaluation gate", self._judge, needs=["evaluate"])
        check("promotion rehearsal", self._rehearse, needs=["evaluation gate"])

    @property
    def spec(self) -> PipelineSpec:
        return self.context.spec

    def _load(self) -> str:
        self.context = Context(self.sandbox, load_pipeline(self.sandbox, self.pipeline))
        return f"{len(self.spec.features.names)} features, label {self.spec.label.column}, owner {self.spec.owner}"

    def _snapshot(self) -> str:
        from tasks.data import source_days, take_snapshot

        days, windows = source_days(self.sandbox, self.spec), split_windows(self.context)
        count = self.sample_days or DEFAULT_DAYS
        if self.sample_rows is not None:
            newest = choose_days(days, windows, FEWEST_DAYS)
            probe = take_snapshot(
                self.sandbox,
                self.spec,
                kind="training",
                window=window(newest.train_first_day, newest.last_day),
            )
            count = days_for_rows(self.sample_rows, probe.rows / len(probe.days))
        self.sample = choose_days(days, windows, count)
        self.snapshot = take_snapshot(
            self.sandbox,
            self.spec,
            kind="training",
            window=window(self.sample.train_first_day, self.sample.last_day),
        )
        try_features(self.context, self.snapshot)
        return (
            f"{self.snapshot.rows:,} rows of {len(self.snapshot.days)} days, {self.sample.train_first_day} to "
            f"{self.sample.last_day}; judged from {self.sample.validation_first_day}"
        )

    def _validate(self) -> str:
        from tasks.validation import require, validate

        found = validate(self.sandbox, self.spec, self.snapshot)
        self.data_report = found.verdict.report_key
        for finding in found.verdict.findings:
            if finding.status == "warn":
                self.checks.note(INFORM, f"{finding.name}: {finding.detail}")
        require(found, look=self._look("validation", found.report_url))
        self.clean = self.context.snapshot(found.clean_snapshot_id)
        return f"{len(found.verdict.findings)} checks; {found.quarantined_rows:,} rows quarantined"

    def _train(self) -> str:
        self.trained = train_sample(self.context, self.clean, self.sample)
        shown = "validation_auc"
        return f"{self.trained.epochs} epochs in {self.trained.train_s:.1f} s, AUC {self.trained.metrics[shown]:.4f}"

    def _production(self) -> str:
        self.champion = production.live_champion(self.production, self.sandbox, self.spec)
        if self.champion is None:
            return "no version is live yet"
        return f"version {self.champion.version} is live; it was read, nothing was written"

    def _evaluate(self) -> str:
        self.evaluation = evaluate_sample(self.context, self.clean, self.trained, self.sample, self.champion)
        models = ", ".join(self.evaluation.models)
        return f"{self.evaluation.rows:,} labelled rows of {self.evaluation.validation_days} days; {models}"

    def _judge(self) -> str:
        if self.evaluation is None:
            raise Skip("there is no evaluation")
        return judge_sample(self.checks, self.spec, self.evaluation)

    def _rehearse(self) -> str:
        asked = next(item for item in self.checks.results if item.name == "production")
        return rehearse(
            self.checks,
            self.context,
            self.trained,
            self.champion,
            unknown=asked.detail if asked.status != "pass" else "",
        )

    def result(self) -> dict[str, Any]:
        results, code = self.checks.results, exit_code(self.checks.results)
        return {
            "pipeline": self.pipeline,
            "outcome": {0: "pass", 75: "try again later"}.get(code, "fail"),
            "exit_code": code,
            "wall_s": round(sum(item.wall_s for item in results), 1),
            "checks": [item.to_json() for item in results],
            "metrics": _metrics(self.evaluation),
            "reports": self._reports(self.reports) if self.keep or self.reports else [],
            "sandbox": str(self.sandbox.home) if self.keep else None,
        }

    def _look(self, kind: str, url: str) -> str:
        """How to see a report after this run: the sandbox goes away unless it is kept."""
        if self.reports:
            return f"open {self._copy(self.reports, kind)}"
        return (
            f"open {url}" if self.keep else "run this again with --reports FOLDER and open the report there"
        )

    def _copy(self, target: Path, kind: str) -> Path:
        return target / f"{self.pipeline}-{kind}.html"

    def _reports(self, target: Path | None) -> list[str]:
        """Where the HTML reports lie: in the kept sandbox, or copied to `target`."""
        keys = [self.data_report, self.evaluation.report_key if self.evaluation else None]
        store = self.sandbox.home / "store" / self.spec.prefix if any(keys) else self.sandbox.home
        found = {key.split("/")[0]: store / key for key in keys if key}
        if target is None:
            return [str(path) for path in found.values()]
        target.mkdir(parents=True, exist_ok=True)
        copies = []
        for kind, path in found.items():
            copies.append(str(self._copy(target, kind)))
            shutil.copyfile(path, copies[-1])
        return copies


def _metrics(evaluation: Evaluation | None) -> list[dict[str, str]]:
    """One line a metric: its interval for each model."""
    if evaluation is None:
        return []
    names = [name for name in ("auc", "brier", "ece") if name in evaluation.models["candidate"]]
    return [
        {
            "metric": name,
            **{who: found[name].text for who, found in evaluation.models.items() if name in found},
        }
        for name in names
    ]
