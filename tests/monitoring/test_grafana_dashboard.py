"""The Grafana dashboard: it asks only for what is written, says what it shows, and is what its generator makes."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.wiring.exposition import METRICS

ROOT = Path(__file__).parents[2] / "monitoring"
BOARD: dict[str, Any] = json.loads((ROOT / "grafana" / "penstock.json").read_text())


def test_the_file_is_what_the_generator_makes() -> None:
    assert runpy.run_path(str(ROOT / "grafana" / "dashboard.py"))["dashboard"]() == BOARD


def test_every_query_names_metrics_and_labels_that_are_written() -> None:
    rules = yaml.safe_load((ROOT / "prometheus" / "penstock.rules.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"(?:pipeline:)?penstock_\w+(?::\w+)?", target["expr"]))
            assert named and named <= set(METRICS) | recorded, panel["title"]
            known = {"tenant", "pipeline"}.union(*(METRICS[name][1] for name in named & set(METRICS)))
            known |= {"objective"} if named & recorded else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, panel["title"]


def test_every_panel_has_a_title_a_description_a_unit_and_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus brings it"
)
def test_promtool_reads_every_query(tmp_path: Path) -> None:
    queries = [target["expr"].replace("$", "") for panel in BOARD["panels"] for target in panel["targets"]]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
