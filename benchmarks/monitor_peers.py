"""Other monitors on the days of `monitor_decisions.py`, which starts this with the Python that has them: FOLDER FIRST_VALIDATION_DAY ASKED RESULT.

Every one has its default settings. The reference is every eighth row of the half that the model was trained on for the tests of two samples (KS,
PSI, Evidently), and every row by day for NannyML, whose thresholds come from its reference days; realised AUC has its last month, which the
model was not trained on. A column that a fault does not touch is equal to the clean day's, and so is its result.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CATEGORICAL = ("carrier", "origin", "dest", "weekday")
NOT_COLUMNS = ("label", "day", "case")
EVERY = 8
P_VALUE, PSI = 0.05, 0.2
Alarms = dict[str, list[str]]
"""By tool: the columns in alarm."""


class Tests:
    """KS (chi-square for categories), PSI and Evidently's default tests, column by column."""

    def __init__(self, reference: pd.DataFrame, columns: list[str]) -> None:
        from evidently import DataDefinition, Dataset

        self.columns = columns
        self.cpu_s = {"ks": 0.0, "psi": 0.0, "evidently": 0.0}
        self.reference = reference[columns]
        self._sorted = {c: np.sort(reference[c].dropna().to_numpy()) for c in columns if c not in CATEGORICAL}
        self._definition = DataDefinition(
            numerical_columns=[c for c in columns if c not in CATEGORICAL],
            categorical_columns=[c for c in columns if c in CATEGORICAL],
        )
        self._dataset = Dataset.from_pandas(self.reference, data_definition=self._definition)

    def day(self, rows: pd.DataFrame, columns: list[str]) -> Alarms:
        """The columns of these in alarm."""
        found: Alarms = {}
        for tool, test in (("ks", self._ks), ("psi", self._psi)):
            began = time.process_time()
            found[tool] = [column for column in columns if test(rows[column], column)]
            self.cpu_s[tool] += time.process_time() - began
        began = time.process_time()
        found["evidently"] = self._evidently(rows, columns)
        self.cpu_s["evidently"] += time.process_time() - began
        return found

    def _ks(self, values: pd.Series, column: str) -> bool:
        values = values.dropna()
        if not len(values):
            return True
        if column not in CATEGORICAL:
            return bool(stats.ks_2samp(self._sorted[column], values.to_numpy()).pvalue < P_VALUE)
        counts = pd.concat([self.reference[column].value_counts(), values.value_counts()], axis=1).fillna(0)
        return bool(stats.chi2_contingency(counts.to_numpy()).pvalue < P_VALUE)

    def _psi(self, values: pd.Series, column: str) -> bool:
        one, other = self.reference[column], values
        if column not in CATEGORICAL:
            edges = np.unique(np.nanquantile(self._sorted[column], np.linspace(0, 1, 11)[1:-1]))
            one, other = (
                pd.Series(np.where(v.isna(), -1, np.searchsorted(edges, v.to_numpy(), "right")))
                for v in (one, other)
            )
        shares = pd.concat([v.value_counts(normalize=True, dropna=False) for v in (one, other)], axis=1)
        p, q = np.maximum(shares.fillna(0).to_numpy().T, 1e-4)
        return bool(((q - p) * np.log(q / p)).sum() > PSI)

    def _evidently(self, rows: pd.DataFrame, columns: list[str]) -> list[str]:
        from evidently import Dataset, Report
        from evidently.metrics import ValueDrift

        alarms = [column for column in columns if rows[column].isna().all()]  # it refuses an empty column
        asked = [column for column in columns if column not in alarms]
        current = Dataset.from_pandas(rows[self.columns], data_definition=self._definition)
        report = Report([ValueDrift(column=column) for column in asked]).run(current, self._dataset)
        for metric in report.dict()["metrics"]:
            config = metric["config"]
            if "distance" not in config["method"].lower():
                raise RuntimeError(f"a p-value where a distance is expected: {config}")
            if float(metric["value"]) >= config["threshold"]:
                alarms.append(config["column"])
        return alarms


class NannyML:
    """Univariate Jensen-Shannon distance, realised and estimated AUC, by day, with the default thresholds."""

    def __init__(self, reference: pd.DataFrame, columns: list[str], test: pd.DataFrame) -> None:
        import nannyml as nml

        self.cpu_s = {"nannyml": 0.0}
        common: dict[str, Any] = {"timestamp_column_name": "day", "chunk_period": "D"}
        self._drift = nml.UnivariateDriftCalculator(
            column_names=columns,
            treat_as_categorical=list(CATEGORICAL),
            continuous_methods=["jensen_shannon"],
            categorical_methods=["jensen_shannon"],
            **common,
        ).fit(self._ready(reference))
        model: dict[str, Any] = {
            "y_pred_proba": "score",
            "y_pred": "predicted",
            "y_true": "label",
            "metrics": ["roc_auc"],
            "problem_type": "classification_binary",
            **common,
        }
        self._realised = nml.PerformanceCalculator(**model).fit(self._ready(test.dropna(subset="label")))
        self._estimated = nml.CBPE(**model).fit(self._ready(test.dropna(subset="label")))
        self._columns = columns

    def days(self, rows: pd.DataFrame) -> dict[str, Alarms]:
        """By day."""
        began = time.process_time()
        rows = self._ready(rows)
        drift = self._drift.calculate(rows).filter(period="analysis").to_df()
        days = [str(key) for key in drift[("chunk", "chunk", "key")]]
        found: dict[str, Alarms] = {
            day: {
                "nannyml": [
                    column
                    for column in self._columns
                    if bool(drift.loc[at, (column, "jensen_shannon", "alert")])
                ]
            }
            for at, day in zip(drift.index, days, strict=True)
        }
        self.cpu_s["nannyml"] += time.process_time() - began
        for tool, frame in (
            ("nannyml realised", self._realised.calculate(rows.dropna(subset="label"))),
            ("nannyml estimated", self._estimated.estimate(rows)),
        ):
            table = frame.filter(period="analysis").to_df()
            for _, row in table.iterrows():
                found[str(row[("chunk", "key")])][tool] = [tool] if bool(row[("roc_auc", "alert")]) else []
        return found

    @staticmethod
    def _ready(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.assign(day=pd.to_datetime(rows["day"]), predicted=(rows["score"] >= 0.5).astype(int))
        return rows.astype(dict.fromkeys(CATEGORICAL, object)).reset_index(drop=True)


def main() -> None:
    os.environ |= {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}  # they would report their use
    warnings.filterwarnings("ignore")
    folder, said = Path(sys.argv[1]), Path(sys.argv[4])
    reference, clean = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "clean"))
    columns = [column for column in reference.columns if column not in NOT_COLUMNS]
    tests = Tests(reference.iloc[::EVERY], columns)
    nannyml = NannyML(reference, columns, reference[reference["day"] >= sys.argv[2]])
    result: dict[str, Any] = json.loads(said.read_text()) if said.exists() else {}
    if result.get("asked") != sys.argv[3]:
        usual = nannyml.days(clean)
        for day, rows in clean.groupby("day"):
            usual[day] |= tests.day(rows, columns)
        cost = tests.cpu_s | nannyml.cpu_s
        result = {"asked": sys.argv[3], "columns": columns, "clean": usual, "clean_cpu_s": cost, "cases": {}}
        said.write_text(json.dumps(result))
        print("clean days done", flush=True)
    for case in json.loads((folder / "cases.json").read_text()):
        if case["name"] in result["cases"]:  # of a run that was ended: the whole takes an hour
            continue
        rows = pd.read_parquet(folder / case["file"], filters=[("case", "==", case["case"])])
        touched = columns if case["channels"] is None else [c for c in columns if c in case["channels"]]
        result["cases"][case["name"]] = _case(tests, nannyml, rows, touched, columns, result["clean"])
        said.write_text(json.dumps(result))
        print(case["name"], flush=True)


def _case(
    tests: Tests,
    nannyml: NannyML,
    rows: pd.DataFrame,
    touched: list[str],
    columns: list[str],
    usual: dict[str, Alarms],
) -> dict[str, Alarms]:
    """By day. A tool that has said something new has decided the case, and is not asked about later days."""
    found = nannyml.days(rows)
    open_tools = {"ks", "psi", "evidently"} if touched else set()
    for day, of_day in rows.groupby("day"):
        found[day] |= {tool: [c for c in usual[day][tool] if c not in touched] for tool in tests.cpu_s}
        if open_tools:
            for tool, alarms in tests.day(of_day, touched).items():
                found[day][tool] += alarms
                if set(alarms) - set(usual[day][tool]) and (
                    tool != "evidently" or _half(found[day][tool], columns)
                ):
                    open_tools.discard(tool)
    return found


def _half(alarms: list[str], columns: list[str]) -> bool:
    """Evidently's own rule for a drifted data set."""
    return len(alarms) >= 0.5 * len(columns)


if __name__ == "__main__":
    main()
