"""Mail by Airflow's SMTP provider with an Airflow connection, to a real SMTP server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from plugins.alerts import airflow_connections, send_email_by_provider
from tasks.core import Settings
from tasks.core.errors import ServiceUnavailable
from tasks.monitoring.alert_rules import Channel
from tasks.monitoring.alert_text import Message

MAIL = Channel.model_validate(
    {"kind": "email", "connection": "mailer", "to": ["ada@example.com"], "from": "penstock@example.com"}
)
MESSAGE = Message("m1", "[Penstock] toy: drift", "text", "<p>It moved.</p>", "slack", {})


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """(port, what clients said): takes one mail."""
    listening, said = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as stream:
            stream.write(b"220 test\r\n")
            stream.flush()
            in_data = False
            for line in stream:
                said.append(line.decode().rstrip())
                if in_data and line != b".\r\n":
                    continue
                in_data = line.upper().startswith(b"DATA")
                stream.write(b"354 go on\r\n" if in_data else b"250 ok\r\n")
                stream.flush()

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()[1], said
    listening.close()


def test_a_mail_goes_by_the_provider_with_the_connection_of_airflow(
    settings: Settings, server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, said = server
    extra = {"disable_ssl": True, "disable_tls": True, "retry_limit": 0, "timeout": 10}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MAILER", json.dumps(connection))
    find = airflow_connections(settings)
    send_email_by_provider("mail", MAIL, find("mailer"), MESSAGE)
    text = "\n".join(said)
    assert "RCPT TO:<ada@example.com>" in text.upper().replace("ADA@EXAMPLE.COM", "ada@example.com")
    assert "Subject: [Penstock] toy: drift" in text and "Message-ID: <m1@penstock>" in text


def test_a_mail_server_that_is_down_is_a_reason_to_try_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    extra = {"disable_ssl": True, "disable_tls": True, "retry_limit": 0}
    connection = {
        "conn_type": "smtp",
        "host": "127.0.0.1",
        "port": port,
        "password": "S3CRET",
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_MAILER", json.dumps(connection))
    with pytest.raises(ServiceUnavailable, match="channel mail") as failed:
        send_email_by_provider("mail", MAIL, airflow_connections(settings)("mailer"), MESSAGE)
    assert "S3CRET" not in str(failed.value)
