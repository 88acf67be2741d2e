"""Alerts over a real SMTP server and a real HTTP server: once, later when a channel is down, and never a secret in a log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store, utc_now
from tasks.core.errors import ConfigError, NotFound
from tasks.metadata import MetadataStore
from tasks.metadata.deployments import NewEvent
from tasks.monitoring.cases import Case, open_case

SECRET = "T0PSECRET-token-9f3a"


class Receiver:
    """An HTTP server that keeps what it gets and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status == 200:
                    receiver.got.append((self.path, dict(self.headers), body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[bytes]]]:
    """(port, mails): a small SMTP server."""
    mails: list[bytes] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        while line := (await reader.readline()).strip():
            if line.upper() == b"DATA":
                writer.write(b"354 go on\r\n")
                mails.append(await reader.readuntil(b"\r\n.\r\n"))
            writer.write(b"221 bye\r\n" if line.upper() == b"QUIT" else b"250 ok\r\n")
            await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        ready.set()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    threading.Thread(target=work, daemon=True).start()
    assert ready.wait(20)
    yield port[0], mails
    loop.call_soon_threadsafe(loop.stop)


@pytest.fixture
def site(settings: Settings, receiver: Receiver, mailbox: tuple[int, list[bytes]]) -> Settings:
    (settings.pipelines_dir / "alerts.yaml").write_text(
        """
channels:
  hook: {kind: webhook, connection: hook}
  team: {kind: slack, connection: team}
  mail: {kind: email, connection: mail, to: [ada@example.com], from: penstock@example.com}
routes: {page: [hook, team, mail], warn: [hook]}
"""
    )
    known = {
        "hook": {"host": receiver.url, "password": SECRET, "extra": {"endpoint": "/hook"}},
        "team": {"password": f"{receiver.url}/services/{SECRET}"},
        "mail": {
            "host": "127.0.0.1",
            "port": mailbox[0],
            "extra": {"disable_ssl": True, "disable_tls": True},
        },
    }
    settings.home.mkdir(parents=True, exist_ok=True)
    path = settings.home / "connections.json"
    path.write_text(json.dumps(known))
    path.chmod(0o600)
    return settings


def decide(settings: Settings, action: str, verdict: str, day: int = 5) -> None:
    spec, store = load_pipeline(settings, "toy"), MetadataStore.open(settings)
    on = datetime(2024, 2, day).date()
    store.record_decision(
        spec,
        action=action,
        verdict=verdict,
        reasons=["nulls of amount 9 %"],
        first_day=on,
        last_day=on,
        dag_run=f"toy.monitor/manual__{utc_now().isoformat()}",
        record={"headline": "The data breaks the contract.", "next_steps": ["Ask the owner of the feed."]},
    )


def send(settings: Settings, *, after_minutes: float = 0) -> dict[str, Any]:
    now = utc_now() + timedelta(minutes=after_minutes)
    found: dict[str, Any] = wiring.send_alerts(settings, now=now)
    return found


def test_an_incident_reaches_every_channel_once_and_again_when_it_is_over(
    site: Settings, receiver: Receiver, mailbox: tuple[int, list[bytes]]
) -> None:
    decide(site, "hold_scoring", "data fault")
    send(site)
    send(site)
    send(site, after_minutes=10)
    (hook_path, headers, body), (slack_path, _, slack) = sorted(receiver.got, key=lambda item: item[0])
    assert hook_path == "/hook" and slack_path == f"/services/{SECRET}"
    [alert] = json.loads(body)["alerts"]
    assert (alert["kind"], alert["phase"], alert["since"]) == ("data fault", "opened", "2024-02-05")
    assert alert["links"]["report"].endswith("/report/toy/monitoring/2024-02-05_2024-02-05/report.html")
    assert "Ask the owner of the feed." in json.loads(slack)["text"]
    stamp, _, code = headers["X-Penstock-Signature"].removeprefix("t=").partition(",v1=")
    assert code == hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    [mail] = mailbox[1]
    assert message_from_bytes(mail, policy=default)["Subject"] == "[Penstock] toy: data fault"
    decide(site, "nothing", "healthy", 6)
    send(site, after_minutes=20)
    phases = [json.loads(body)["alerts"][0]["phase"] for path, _, body in receiver.got if path == "/hook"]
    assert phases == ["opened", "resolved"]
    assert len(receiver.got) == 4 and len(mailbox[1]) == 2
    [kept] = wiring.step("list_alerts")(site, "toy")["alerts"]
    assert kept["status"] == "resolved"
    assert {item["status"] for item in kept["deliveries"]} == {"sent"} and len(kept["deliveries"]) == 6


def test_an_alert_leads_to_the_case_that_asks_about_it(site: Settings, receiver: Receiver) -> None:
    decide(site, "hold_scoring", "data fault")
    spec = load_pipeline(site, "toy")
    day = date(2024, 2, 5)
    case = Case(
        case_id="",
        kind="data fault",
        days=(day,),
        signals=("nulls:price",),
        first_day=day,
        last_day=day,
        headline="",
        reasons=(),
        next_steps=(),
        causes=(),
        options=("accept",),
        suggestion="",
        because="",
        model_version=1,
        outcome="nothing",
    )
    case_id = open_case(open_store(site, prefix=spec.prefix), case, taken=[]).case_id
    send(site)
    body = next(body for path, _, body in receiver.got if path == "/hook")
    (alert,) = json.loads(body)["alerts"]
    assert alert["case"] == case_id and alert["links"]["case"].endswith(f"/penstock/cases/toy/{case_id}")


def test_a_channel_that_is_down_stops_no_other_and_gets_its_message_later(
    site: Settings, receiver: Receiver, mailbox: tuple[int, list[bytes]]
) -> None:
    decide(site, "hold_scoring", "data fault")
    receiver.status = 503
    found = send(site)
    assert "503" in found["channels"]["hook"]["problem"] and found["channels"]["mail"]["problem"] is None
    assert len(mailbox[1]) == 1
    receiver.status = 200
    send(site, after_minutes=30)
    assert len(receiver.got) == 2 and len(mailbox[1]) == 1


def test_what_a_sender_that_died_has_left_is_sent_again_under_the_same_id(
    site: Settings, receiver: Receiver
) -> None:
    decide(site, "alert", "drift, no damage seen")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wiring.send_alerts(site, senders={"webhook": die})
    send(site, after_minutes=5)
    assert receiver.got == []
    [row] = MetadataStore.open(site).delivery_rows("default")
    send(site, after_minutes=20)
    [(_, headers, _)] = receiver.got
    assert headers["Idempotency-Key"] == row["message_id"]


def test_a_rollback_and_a_withdrawal_are_told_with_who_and_why(site: Settings, receiver: Receiver) -> None:
    spec, store = load_pipeline(site, "toy"), MetadataStore.open(site)
    for version, kind in ((1, "promote"), (2, "promote"), (1, "rollback"), (3, "withdraw")):
        event = NewEvent(kind, version, f"{version:064x}", "1", None, "ada", "it did harm")
        store.append_events(spec, lambda _, event=event: [event])  # type: ignore[misc]
    send(site)
    [(_, _, body)] = receiver.got
    headlines = {item["kind"]: item["headline"] for item in json.loads(body)["alerts"]}
    assert headlines["rollback"] == "Rolled back from version 2 to version 1, by ada."
    assert "version 3" in headlines["canary withdrew"]


def test_no_secret_is_in_a_log_an_error_or_a_record(
    site: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    decide(site, "hold_scoring", "data fault")
    for status, minutes in ((403, 0), (503, 90), (200, 300)):
        receiver.status = status
        send(site, after_minutes=minutes)
    receiver.server.shutdown()
    receiver.server.server_close()
    for channel in ("team", "hook"):
        with pytest.raises(Exception, match=channel) as failed:
            wiring.step("test_alert")(site, "toy", channel=channel)
        assert SECRET not in f"{failed.value!r}{failed.value}"
    rows = MetadataStore.open(site).delivery_rows("default")
    assert rows and SECRET not in f"{rows}{caplog.text}{capsys.readouterr()}"
    from tasks.wiring.alert_channels import file_connections

    assert SECRET not in repr(file_connections(site)("team"))


def test_a_channel_can_be_tried_and_what_is_missing_is_named(site: Settings, receiver: Receiver) -> None:
    assert wiring.step("test_alert")(site, "toy", channel="team") == {
        "channel": "team",
        "kind": "slack",
        "sent": True,
    }
    assert "This is a test" in json.loads(receiver.got[0][2])["text"]
    with pytest.raises(NotFound, match="hook, mail, team"):
        wiring.step("test_alert")(site, "toy", channel="nobody")
    (site.home / "connections.json").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        wiring.step("test_alert")(site, "toy", channel="team")


def test_two_senders_at_once_send_one_message(site: Settings, receiver: Receiver) -> None:
    decide(site, "alert", "drift, no damage seen")
    send(site, after_minutes=0)
    store = MetadataStore.open(site)
    [row] = store.delivery_rows("default")
    assert row["status"] == "sent" and not store.claim_deliveries([row], "other")
    assert len(receiver.got) == 1
