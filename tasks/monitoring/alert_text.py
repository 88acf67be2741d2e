"""Messages as people and programs read them: a subject, text, HTML, Slack's markup and JSON of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from tasks.monitoring.alerts import GONE, OPENED, OVER, TOLD, Alert, Batch
from tasks.monitoring.decision import once_answered

_SHOWN = 20
"""Alerts written out in a message; of more, only pipeline and headline."""
_REASONS = 4
_SLACK_CHARACTERS = 35_000
"""Slack cuts texts at 40,000."""


@dataclass(frozen=True)
class Message:
    """One message in every form that a channel may want."""

    message_id: str
    subject: str
    text: str
    html: str
    slack: str
    payload: dict[str, Any]


def write_message(batch: Batch, message_id: str) -> Message:
    """The message of a batch; equal batches make equal messages."""
    subject = _subject(batch)
    listed = [_lines(alert, delivery.phase) for alert, delivery in batch.items[:_SHOWN]]
    rest = [f"{alert.pipeline}: {alert.headline}" for alert, _ in batch.items[_SHOWN:]]
    text = "\n\n".join("\n".join([title, *body]) for title, body, _ in listed)
    html = "".join(_html(title, body, links) for title, body, links in listed)
    slack = "\n\n".join("\n".join([f"*{_mrkdwn(title)}*", *map(_mrkdwn, body)]) for title, body, _ in listed)
    if rest:
        text += "\n\nAnd:\n" + "\n".join(rest)
        html += f"<p>And:</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in rest)}</ul>"
        slack += "\n\nAnd:\n" + "\n".join(map(_mrkdwn, rest))
    return Message(
        message_id=message_id,
        subject=subject,
        text=f"{text}\n",
        html=f"<!doctype html><html><body style='font:15px/1.5 sans-serif'>{html}</body></html>",
        slack=f"*{_mrkdwn(subject)}*\n\n{slack}"[:_SLACK_CHARACTERS],
        payload={
            "message_id": message_id,
            "subject": subject,
            "alerts": [
                {
                    "tenant": alert.tenant,
                    "pipeline": alert.pipeline,
                    "kind": alert.kind,
                    "incident": alert.incident,
                    "severity": alert.severity,
                    "phase": delivery.phase,
                    "headline": alert.headline,
                    "since": alert.since,
                    "resolved_at_utc": alert.resolved_at_utc and alert.resolved_at_utc.isoformat(),
                    "reasons": list(alert.record.get("reasons") or ()),
                    "next_steps": list(alert.record.get("next_steps") or ()),
                    "links": dict(alert.record.get("links") or {}),
                    "case": alert.record.get("case") or None,
                }
                for alert, delivery in batch.items
            ],
        },
    )


def _subject(batch: Batch) -> str:
    if len(batch.items) == 1:
        alert, delivery = batch.items[0]
        return _one_line(f"[Penstock] {_title(alert, delivery.phase)}")
    pipelines = sorted({alert.pipeline for alert, _ in batch.items})
    opened = sum(delivery.phase not in (OVER, GONE) for _, delivery in batch.items)
    over = len(batch.items) - opened
    counts = [f"{opened} open" if opened else "", f"{over} over" if over else ""]
    names = ", ".join(pipelines[:3]) + (f" and {len(pipelines) - 3} more" if len(pipelines) > 3 else "")
    return _one_line(f"[Penstock] {', '.join(filter(None, counts))}: {names}")


def _title(alert: Alert, phase: str) -> str:
    state = {OPENED: "", OVER: "over: ", GONE: "was, and is over: "}.get(phase, "still open: ")
    return f"{alert.pipeline}: {state}{alert.kind}"


def _lines(alert: Alert, phase: str) -> tuple[str, list[str], dict[str, str]]:
    """(title, lines below it, links)."""
    record = alert.record
    links = {str(name): str(url) for name, url in (record.get("links") or {}).items() if url}
    over = phase in (OVER, GONE)
    body = [once_answered(alert.headline) if over else alert.headline]
    if alert.resolved_at_utc:
        body.append(f"From {alert.since} to {alert.resolved_at_utc:%Y-%m-%d %H:%M} UTC.")
    elif alert.status == TOLD:
        body.append(f"At {alert.since}.")
    else:
        body.append(f"Since {alert.since}.")
    if not over:
        reasons = list(record.get("reasons") or ())
        body += [f"- {reason}" for reason in reasons[:_REASONS]]
        if len(reasons) > _REASONS:
            body.append(f"- and {len(reasons) - _REASONS} more")
        steps = list(record.get("next_steps") or ())
        body += (
            ["What to do:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))] if steps else []
        )
    if record.get("case") and "case" not in links:
        body.append(f"Case: {record['case']}")
    body += [f"{_label(name)}: {url}" for name, url in links.items()]
    return _title(alert, phase), body, links


def _html(title: str, body: list[str], links: dict[str, str]) -> str:
    shown = {f"{_label(name)}: {url}": (name, url) for name, url in links.items()}
    parts = [f"<h3>{escape(title)}</h3>"]
    for line in body:
        name, url = shown.get(line, ("", ""))
        if url.startswith(("http://", "https://")):
            parts.append(f'<p><a href="{escape(url, quote=True)}">{escape(_label(name))}</a></p>')
        else:
            parts.append(f"<p>{escape(line)}</p>")
    return "".join(parts)


def _label(name: str) -> str:
    return name[:1].upper() + name[1:]


def _mrkdwn(text: str) -> str:
    """Slack's three control characters escaped: a headline cannot mention a channel or hide a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _one_line(text: str) -> str:
    """A subject is a header: a line break would begin another one."""
    return " ".join(text.split())[:200]
