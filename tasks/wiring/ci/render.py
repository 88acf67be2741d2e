"""The result of `run_ci` for machines and people: JUnit XML and Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as Xml

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SIGNS = {"pass": "pass", "fail": "**FAIL**", "skipped": "skipped"}
_WORDS = {"pass": "ok", "fail": "blocks", "inform": "for information"}
_TITLES = {"auc": "AUC", "brier": "Brier score", "ece": "calibration error (ECE)"}


def junit(result: Mapping[str, Any]) -> str:
    """One test case a check; a failure has what, which and fix, an error nobody expected its traceback."""
    checks = result["checks"]
    failed = [item for item in checks if item["status"] == "fail"]
    unexpected = [item for item in failed if item["kind"] == "unexpected"]
    counts = {
        "tests": len(checks),
        "failures": len(failed) - len(unexpected),
        "errors": len(unexpected),
        "skipped": sum(item["status"] == "skipped" for item in checks),
    }
    totals = {name: str(count) for name, count in counts.items()} | {"time": f"{result['wall_s']:.3f}"}
    root = Xml.Element("testsuites", totals)
    name = f"penstock ci {result['pipeline']}"
    group = Xml.SubElement(root, "testsuite", {"name": name, **totals})
    for item in checks:
        case = Xml.SubElement(
            group,
            "testcase",
            {
                "classname": f"penstock.ci.{result['pipeline']}",
                "name": item["name"],
                "time": f"{item['wall_s']:.3f}",
            },
        )
        if item["status"] == "skipped":
            Xml.SubElement(case, "skipped", {"message": _xml(item["detail"])})
        elif item["status"] == "fail":
            error = item["error"]
            tag = "error" if item["kind"] == "unexpected" else "failure"
            message = _xml(item["detail"].splitlines()[0] if item["detail"] else error["type"])
            element = Xml.SubElement(case, tag, {"type": error["type"], "message": message})
            element.text = _xml(f"{error['which']}: {error['what']}\nFix: {error['fix']}")
        lines = [item["detail"], *(f"[{note['status']}] {note['text']}" for note in item["notes"])]
        Xml.SubElement(case, "system-out").text = _xml("\n".join(lines))
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def markdown(result: Mapping[str, Any]) -> str:
    """A summary for a pull request: the checks, what failed and how to fix it, metrics with intervals, reports."""
    lines = [
        f"## penstock ci {result['pipeline']}: {result['outcome']}",
        "",
        "| | check | time | |",
        "|---|---|---|---|",
    ]
    for item in result["checks"]:
        detail = _cell(item["detail"].splitlines()[0] if item["detail"] else "")
        lines.append(f"| {_SIGNS[item['status']]} | {item['name']} | {item['wall_s']:.1f} s | {detail} |")
    for item in (item for item in result["checks"] if item["status"] == "fail"):
        error = item["error"]
        lines += ["", f"### {item['name']}", "", f"**{error['type']}** in `{error['which']}`", ""]
        lines += [
            "```text",
            error["what"].replace("```", "'''"),
            "```",
            "",
            f"**Fix:** {_plain(error['fix'])}",
        ]
    notes = [(item["name"], note) for item in result["checks"] for note in item["notes"]]
    if notes:
        lines += ["", "<details><summary>Findings</summary>", "", "| check | | finding |", "|---|---|---|"]
        lines += [f"| {name} | {_WORDS[note['status']]} | {_cell(note['text'])} |" for name, note in notes]
        lines += ["", "</details>"]
    if result["metrics"]:
        lines += ["", *_metrics(result["metrics"])]
    if result["reports"]:
        lines += ["", "Reports: " + ", ".join(f"[{_file(path)}]({path})" for path in result["reports"])]
    return "\n".join([*lines, ""])


def _metrics(rows: list[dict[str, str]]) -> list[str]:
    models = list(dict.fromkeys(name for row in rows for name in row if name != "metric"))
    lines = [
        "Of the sample, with 95 % intervals over days; not what the full training will reach.",
        "",
        f"| metric | {' | '.join(models)} |",
        "|---|" + "---|" * len(models),
    ]
    for row in rows:
        title = _TITLES.get(row["metric"], row["metric"])
        lines.append(f"| {title} | {' | '.join(row.get(model, '') for model in models)} |")
    return lines


def _file(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)
