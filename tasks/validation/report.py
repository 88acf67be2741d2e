"""The data gate's report: one static page from the evidence, worth showing to whoever asks whether data is fit."""

from __future__ import annotations

from datetime import date
from html import escape
from typing import Any

from tasks.core.day_span import day_span
from tasks.core.report_style import page
from tasks.validation.suite import SEVERITIES
from tasks.validation.wording import number, percent

_WORDS = {"pass": "passed", "warn": "warning", "fail": "failed"}
_ORDER = {"fail": 0, "warn": 1, "pass": 2}
_HEADS = {
    "critical": "Critical expectations",
    "warning": "Warning expectations",
    "info": "Informative expectations",
}
_MEANING = {
    "critical": "A failure stops the chain before training or scoring.",
    "warning": "A failure is reported and the chain goes on.",
    "info": "Worth knowing; never in the way.",
}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 1000, 210, 52, 26, 10


def render(evidence: dict[str, Any]) -> str:
    """HTML of `evidence.json`'s content: self-contained, without script or outside request."""
    snapshot = evidence["snapshot"]
    body = [
        _verdict(evidence),
        _cards(evidence),
        _problems(evidence),
        _days(evidence),
        *(_severity_table(evidence, severity) for severity in SEVERITIES),
        _always_table(evidence),
        _not_applicable(evidence),
        _quarantine(evidence),
        _provenance(evidence),
    ]
    days = day_span(snapshot["first_day"], snapshot["last_day"]) if snapshot["first_day"] else "no days"
    return page(
        f"Data validation of {evidence['pipeline']}",
        "\n".join(part for part in body if part),
        f"{snapshot['kind'].capitalize()} snapshot {snapshot['snapshot_id']}, {days}",
    )


def _verdict(evidence: dict[str, Any]) -> str:
    findings = evidence["result"]["verdict"]["findings"]
    failed = [item for item in findings if item["status"] == "fail"]
    warned = [item for item in findings if item["status"] == "warn"]
    kind = "scoring" if evidence["snapshot"]["kind"] == "scoring" else "training"
    if evidence["result"]["verdict"]["outcome"] != "pass":
        head = f"This data must not be used: {_count(len(failed), 'check')} failed"
        text = f"<p>The chain stopped here, before {kind}. Earlier results are as they were.</p>"
        return f'<section class="verdict fail"><h2>{head}</h2>{text}{_reasons(failed)}</section>'
    quarantined = evidence["result"]["quarantined_rows"]
    aside = f" {_count(quarantined, 'row')} went to quarantine and will not be used." if quarantined else ""
    if warned:
        head = f"Fit for {kind}, with {_count(len(warned), 'warning')}"
        return (
            f'<section class="verdict warn"><h2>{head}</h2>'
            f"<p>No critical expectation failed.{aside}</p>{_reasons(warned)}</section>"
        )
    head = f"Fit for {kind}: every check passed"
    return f'<section class="verdict pass"><h2>{head}</h2><p>{_extent(evidence)}{aside}</p></section>'


def _extent(evidence: dict[str, Any]) -> str:
    rows = sum(day["rows"] for day in evidence["days"])
    return (
        f"{_count(rows, 'row')} of {_count(len(evidence['days']), 'day')} meet "
        f"{_count(len(evidence['checks']), 'expectation')} and {_count(len(evidence['always']), 'built-in check')}."
    )


def _reasons(findings: list[dict[str, Any]]) -> str:
    items = "".join(f"<li>{_lead(item)}{escape(_cut(item['detail'], 260))}</li>" for item in findings[:6])
    more = f"<li>and {len(findings) - 6} more below</li>" if len(findings) > 6 else ""
    return f"<ul>{items}{more}</ul>"


def _lead(finding: dict[str, Any]) -> str:
    """The name, unless the detail begins with what it is about."""
    about = finding["name"].partition(":")[0]
    return (
        ""
        if finding["detail"].startswith(about)
        else f"<strong>{escape(finding['name'].capitalize())}</strong>: "
    )


def _cards(evidence: dict[str, Any]) -> str:
    checks, days = evidence["checks"], evidence["days"]
    total = sum(day["rows"] for day in days)
    quarantined = evidence["result"]["quarantined_rows"]
    passed = sum(check["status"] == "pass" for check in checks)
    per_day = (
        f"{min(day['rows'] for day in days):,} to {max(day['rows'] for day in days):,} a day" if days else ""
    )
    cards = [
        ("Rows read", f"{total:,}", per_day),
        (
            "Days",
            f"{len(days):,}",
            f"{len(evidence['batches'])} batch{'es' if len(evidence['batches']) != 1 else ''}",
        ),
        ("Expectations passed", f"{passed} of {len(checks)}", f"{evidence['suite']['declared']} declared"),
        ("Rows quarantined", f"{quarantined:,}", f"{percent(quarantined / total)} of rows" if total else ""),
        (
            "Rows to use",
            f"{evidence['result']['rows']:,}" if evidence["result"]["clean_snapshot_id"] else "none",
            "",
        ),
    ]
    inner = "".join(
        f'<div class="card"><span class="label">{label}</span><span class="value">{value}</span>'
        f'<span class="hint">{hint}</span></div>'
        for label, value, hint in cards
    )
    return f'<div class="cards">{inner}</div>'


def _problems(evidence: dict[str, Any]) -> str:
    problems = evidence["suite"]["problems"]
    if not problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return (
        "<h2>The suite could not be run</h2><p>A suite that cannot be run exactly as it is written proves "
        f"nothing, so nothing of it was run.</p><ul>{items}</ul>"
    )


def _severity_table(evidence: dict[str, Any], severity: str) -> str:
    checks = [check for check in evidence["checks"] if check["severity"] == severity]
    if not checks:
        return ""
    checks.sort(key=lambda check: _ORDER[check["status"]])
    rows = "".join(
        f'<tr class="{check["status"]}"><td>{escape(_cut(check["sentence"], 240))}{_row_level(check)}'
        f'<span class="note">{escape(check["notes"])}</span></td>'
        f"<td>{_badge(check['status'])}</td>"
        f"<td>{escape(_cut(check['detail'], 320))}{_picture(check)}</td>"
        f'<td class="num">{_limit(check)}</td></tr>'
        for check in checks
    )
    bad = sum(check["status"] != "pass" for check in checks)
    summary = f"{len(checks) - bad} of {len(checks)} passed. {_MEANING[severity]}"
    head = '<tr><th>Expectation</th><th>Result</th><th>Observed</th><th class="num">Limit</th></tr>'
    return (
        f'<h2>{_HEADS[severity]}</h2><p class="muted-text">{summary}</p>'
        f'<div class="scroll"><table style="table-layout:fixed;min-width:660px"><colgroup><col style="width:40%"><col style="width:13%">'
        f'<col style="width:29%"><col style="width:18%"></colgroup><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def _row_level(check: dict[str, Any]) -> str:
    return ' <span class="badge">by row</span>' if check["row_level"] else ""


def _limit(check: dict[str, Any]) -> str:
    low, high = check["low"], check["high"]
    if low is not None and high is not None:
        return f"{number(low)} to {number(high)}"
    if low is not None or high is not None:
        return f"≥ {number(low)}" if low is not None else f"≤ {number(high)}"
    if check["row_level"] and check["limit"] is None:
        return "quarantine"
    if check["limit"] is not None and check["value"] is not None:
        return f"≤ {percent(check['limit'])} of rows" if check["limit"] else "no exception"
    return "as stated"


def _picture(check: dict[str, Any]) -> str:
    """Where a summary lies between its bounds, or how much of the allowed share is used up."""
    value, low, high = check["value"], check["low"], check["high"]
    tone = {"pass": "good", "warn": "warn", "fail": "bad"}[check["status"]]
    if value is None or not check["trusted"]:
        return ""
    if low is not None and high is not None and high > low:
        at = min(max((value - low) / (high - low), 0.0), 1.0)
        x = 4 + at * 112
        mark = {"good": "good", "warn": "caution", "bad": "bad"}[tone]
        return (
            '<svg viewBox="0 0 120 12" width="120" height="12" role="img" '
            f'aria-label="{number(value)} between {number(low)} and {number(high)}" style="display:block;margin-top:4px">'
            '<line class="grid" style="stroke-width:3;stroke-linecap:round" x1="4" y1="6" x2="116" y2="6"/>'
            f'<circle class="{mark}" cx="{x:.1f}" cy="6" r="4.5"/></svg>'
        )
    if low is None and high is None and check["limit"] is not None and check["unexpected"]:
        used = min(value / check["limit"], 1.0) if check["limit"] else 1.0
        return f'<span class="bar {tone}" style="width:120px"><i style="width:{max(used * 100, 2):.0f}%"></i></span>'
    return ""


def _always_table(evidence: dict[str, Any]) -> str:
    if not evidence["always"]:
        return ""
    rows = "".join(
        f'<tr class="{item["status"]}"><td>{escape(item["name"].capitalize())}</td><td>{_badge(item["status"])}</td>'
        f"<td>{escape(item['detail'])}</td></tr>"
        for item in sorted(evidence["always"], key=lambda item: _ORDER[item["status"]])
    )
    return (
        '<h2>Always checked</h2><p class="muted-text">Whatever the suite says, on the rows that are not quarantined.</p>'
        '<div class="scroll"><table><thead><tr><th>Check</th><th>Result</th><th>Observed</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _not_applicable(evidence: dict[str, Any]) -> str:
    skipped = evidence["not_applicable"]
    if not skipped:
        return ""
    rows = "".join(
        f'<tr><td>{escape(item["sentence"])}</td><td><span class="badge">not evaluated</span></td>'
        f"<td>{escape(item['reason'])}</td></tr>"
        for item in skipped
    )
    return (
        f'<h2>Not applicable</h2><p class="muted-text">{_count(len(skipped), "expectation")} about labels or outcomes, '
        "which nobody knows yet when a row is scored. Not counted as passed.</p>"
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    )


def _days(evidence: dict[str, Any]) -> str:
    days = evidence["days"]
    if not days:
        return ""
    floor = max(evidence["limits"]["min_rows"], 1)
    top = 1.06 * float(max(floor, *(day["rows"] for day in days)))
    plot = _HEIGHT - _BOTTOM - _TOP
    step = (_WIDTH - _LEFT - 6) / len(days)
    width = max(min(step - max(1.0, step * 0.18), 46), 0.6)

    def y(value: float) -> float:
        return _TOP + plot * (1 - value / top)

    marks = []
    for tick in _ticks(top):
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        marks.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.0f}</text>')
    every = max(1, -(-len(days) // 10))
    for index, day in enumerate(days):
        x = _LEFT + index * step + (step - width) / 2
        clean = day["rows"] - day["quarantined"]
        tone = "bad" if clean < floor else "s1"
        title = f"{day['day']}: {day['rows']:,} rows, {day['quarantined']:,} quarantined"
        marks.append(
            f'<rect class="{tone}" x="{x:.1f}" y="{y(clean):.1f}" width="{width:.1f}" '
            f'height="{max(y(0) - y(clean), 0):.1f}"><title>{title}</title></rect>'
        )
        if day["quarantined"]:
            height = max(y(clean) - y(day["rows"]), 2.5)
            marks.append(
                f'<rect class="s2" x="{x:.1f}" y="{y(clean) - height:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}"><title>{title}</title></rect>'
            )
        if index % every == 0:
            marks.append(
                f'<text x="{x + width / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{_short_day(day["day"])}</text>'
            )
    marks.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    marks.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>')
    fewest = min(days, key=lambda day: day["rows"])
    legend = '<div class="legend"><span><i></i>clean rows</span><span><i class="s2"></i>quarantined</span>'
    if any(day["rows"] - day["quarantined"] < floor for day in days):
        legend += '<span><i class="bad"></i>below the floor</span>'
    return (
        f"<h2>Rows by day</h2><figure>{legend}</div>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Rows of each day">{"".join(marks)}</svg>'
        f"<figcaption>The fewest rows came on {fewest['day']}: {fewest['rows']:,}. The dashed line is the floor of "
        f"{floor:,} rows a day.</figcaption></figure>"
    )


def _short_day(day: str) -> str:
    """`2013-01-05` as `5 Jan`."""
    found = date.fromisoformat(day)
    return f"{found.day} {found:%b}"


def _ticks(top: float) -> list[float]:
    step = 1.0
    while top / step > 5:
        step *= 2 if str(step)[0] in "15" else 2.5
    return [step * i for i in range(int(top / step) + 1)]


def _quarantine(evidence: dict[str, Any]) -> str:
    quarantine = evidence["quarantine"]
    if not quarantine["rows"]:
        return ""
    most = max(quarantine["by_expectation"].values())
    counts = "".join(
        f'<tr><td>{escape(name)}</td><td class="num">{count:,}</td><td><span class="bar warn">'
        f'<i style="width:{100 * count / most:.0f}%"></i></span></td></tr>'
        for name, count in quarantine["by_expectation"].items()
    )
    examples = quarantine["examples"][:10]
    first = ["quarantine_reason"]
    columns = first + [name for name in examples[0] if name not in (*first, "quarantine_expectations")]
    head = "".join(f"<th>{escape(name.removeprefix('quarantine_'))}</th>" for name in columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="white-space:{"normal" if name in first else "nowrap"}">{_cell(row.get(name), name in first)}</td>'
            for name in columns
        )
        + "</tr>"
        for row in examples
    )
    return (
        f"<h2>Quarantined rows</h2><p>{_count(quarantine['rows'], 'row')}, kept whole with their reasons in "
        '<a href="quarantine.parquet">quarantine.parquet</a> beside this page.</p>'
        '<div class="scroll"><table><thead><tr><th>Expectation</th><th class="num">Rows</th>'
        f'<th style="width:40%"></th></tr></thead><tbody>{counts}</tbody></table></div>'
        f"<h3>The first {len(examples)}</h3>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(value: Any, wide: bool) -> str:
    if value is None:
        return '<span class="muted-text">null</span>'
    text = number(value) if isinstance(value, float) else str(value)
    return f'<div style="min-width:22em">{escape(text)}</div>' if wide else escape(_cut(text, 60))


def _provenance(evidence: dict[str, Any]) -> str:
    snapshot, suite, result = evidence["snapshot"], evidence["suite"], evidence["result"]
    versions = ", ".join(f"{name} {text}" for name, text in evidence["versions"].items())
    facts = {
        "Snapshot": f"<code>{snapshot['snapshot_id']}</code>, taken {snapshot['created_at_utc']}",
        "Snapshot for what follows": f"<code>{result['clean_snapshot_id'] or 'none'}</code>",
        "Suite": f"{escape(suite['name'])}, SHA-256 <code>{suite['digest']}</code>",
        "Declared, evaluated": f"{suite['declared']}, {suite['evaluated']}",
        "Validated": f"{evidence['validated_at_utc']} in {evidence['cost']['cpu_s']:.1f} CPU-s",
        "Versions": escape(versions),
        "All results": '<a href="evidence.json">evidence.json</a>',
    }
    inner = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f'<h2>Where this comes from</h2><dl class="facts">{inner}</dl>'


def _badge(status: str) -> str:
    return f'<span class="badge {status}">{_WORDS[status]}</span>'


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
