"""The report's section on the model itself."""

from __future__ import annotations

from html import escape

from tasks.evaluation.check_records import FolderTests, Footprint, ModelChecks, ProcessLoad


def model_section(checks: ModelChecks | None) -> str:
    """Footprint, signature, tests and dependencies; empty for evidence of earlier releases, which has none."""
    if checks is None:
        return ""
    return "".join(
        [
            "<h2>The model in a clean process</h2>",
            _footprint(checks.footprint),
            _signature(checks),
            _tests(checks.tests),
            _dependencies(checks),
        ]
    )


def _footprint(found: Footprint) -> str:
    def row(name: str, load: ProcessLoad | None, error: str | None) -> str:
        if load is None:
            return f'<tr><td>{name}</td><td colspan="6">{escape(error)}</td></tr>' if error else ""
        cells = (
            f"{load.p50_ms:.2f}",
            f"{load.p99_ms:.2f}",
            f"{load.cpu_ms_one_row:.2f}",
            f"{load.rows_per_cpu_s:,.0f}",
            f"{load.peak_memory_mb:,.0f}",
            f"{load.growth_mb:,.0f}",
        )
        return f"<tr><td>{name}</td>" + "".join(f'<td class="num">{cell}</td>' for cell in cells) + "</tr>"

    heads = (
        "One row, p50 ms",
        "p99 ms",
        "CPU ms",
        "Rows per CPU s",
        "Peak memory, MiB",
        "Growth under load, MiB",
    )
    load = found.candidate or found.champion
    how = (
        f'<p class="note">Medians of {load.rounds} rounds; batches of {load.batch_rows:,} rows. Candidate and '
        "champion were measured in turns.</p>"
        if load
        else ""
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Model</th>'
        + "".join(f'<th class="num">{head}</th>' for head in heads)
        + "</tr></thead><tbody>"
        + row("Candidate", found.candidate, found.candidate_error)
        + row("Champion", found.champion, found.champion_error)
        + f"</tbody></table></div>{how}"
    )


def _signature(checks: ModelChecks) -> str:
    found = checks.signature
    if found is None:
        return f"<p>Signature: {escape(checks.signature_error or 'not known')}</p>"
    facts = {
        "Reads": ", ".join(f"{name} ({kind})" for name, kind in found.inputs.items()),
        "Features": ", ".join(found.features),
        "Gives": ", ".join(f"{name} ({kind})" for name, kind in found.outputs.items()),
    }
    return f'<dl class="facts">{"".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())}</dl>'


def _tests(tests: FolderTests) -> str:
    if not tests.found:
        return '<p class="note">The pipeline\'s folder has no tests.</p>'
    failed = "".join(f"<li>{escape(item.name)}: {escape(item.reason)}</li>" for item in tests.failures)
    error = f" {escape(tests.error)}." if tests.error else ""
    return (
        f"<p>Tests of the folder: {tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped.{error}</p>"
        + (f"<ul>{failed}</ul>" if failed else "")
        + f"<details><summary>What pytest printed</summary><pre>{escape(tests.output)}</pre></details>"
    )


def _dependencies(checks: ModelChecks) -> str:
    rows = "".join(
        f"<tr><td>{escape(item.name)}</td><td>{escape(item.version)}</td><td>{escape(item.licence or 'not stated')}</td></tr>"
        for item in checks.dependencies
    )
    return (
        f"<details><summary>Python {escape(checks.python_version)} and {len(checks.dependencies)} distributions that "
        'its process imports</summary><div class="scroll"><table><thead><tr><th>Distribution</th><th>Version</th>'
        f"<th>Licence</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
