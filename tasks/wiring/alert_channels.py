"""Sending a message: email over SMTP, Slack's incoming webhook, and any other webhook with a signature.

Secrets come as a `Connection`, which never prints them, and no error or log line of this module shows a URL: Slack's is a
secret itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from tasks.core import Settings
from tasks.core.errors import ConfigError, NotFound, PenstockError, ServiceUnavailable
from tasks.monitoring.alert_rules import Channel
from tasks.monitoring.alert_text import Message

CONNECTIONS_FILE = "connections.json"
TIMEOUT_S = 15.0
SIGNATURE = "X-Penstock-Signature"
"""`t=<unix seconds>,v1=<hex>`: HMAC-SHA256 of `<t>.<body>` with the connection's password."""


@dataclass(frozen=True)
class Connection:
    """The fields of an Airflow connection that a channel needs."""

    host: str = field(default="", repr=False)
    port: int | None = None
    login: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    schema: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    origin: str = "file"
    """`file` or `airflow`."""

    @property
    def url(self) -> str:
        """Of a webhook: `host` when it is a URL, else made of schema, host and port; `endpoint` of extra follows."""
        whole = self.host.startswith(("http://", "https://"))
        base = self.host if whole else f"{self.schema or 'https'}://{self.host}"
        if not whole and self.port:
            base += f":{self.port}"
        endpoint = str(self.extra.get("endpoint") or "")
        return f"{base.rstrip('/')}/{endpoint.lstrip('/')}" if endpoint else base


Connections = Callable[[str], Connection]
"""A connection by its id; raises `NotFound`."""
Sender = Callable[[str, Channel, Connection, Message], None]
"""Sends on the channel of that name.

Raises `ServiceUnavailable` when it may work later, `ConfigError` when it will not until something is changed.
"""


def file_connections(settings: Settings) -> Connections:
    """Connections of `<home>/connections.json`, in the form that `airflow connections import` reads.

    Raises when asked:
        NotFound: No such connection; those there are, are named.
        ConfigError: The file is not JSON, or others than its owner may read it.
    """
    path = settings.home / CONNECTIONS_FILE

    def find(connection_id: str) -> Connection:
        where = f"connection {connection_id}"
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFound(
                "is not there",
                which=where,
                fix=f"add it in Airflow (Admin, Connections), or to {path}",
            ) from None
        if mode & 0o077:
            raise ConfigError(
                "holds secrets and may be read by others", which=str(path), fix=f"chmod 600 {path}"
            )
        try:
            known = json.loads(text)
            raw = known.get(connection_id)
        except (ValueError, AttributeError):
            raise ConfigError(
                "is not a JSON object of connections", which=str(path), fix="docs/alerts.md has an example"
            ) from None  # the cause would show its text
        if not isinstance(raw, dict):
            raise NotFound(
                "is not there", which=where, fix=f"{path} has: {', '.join(sorted(known)) or 'none'}"
            )
        extra = raw.get("extra") or {}
        return Connection(
            host=str(raw.get("host") or ""),
            port=int(raw["port"]) if raw.get("port") else None,
            login=str(raw.get("login") or ""),
            password=str(raw.get("password") or ""),
            schema=str(raw.get("schema") or ""),
            extra=json.loads(extra) if isinstance(extra, str) else dict(extra),
        )

    return find


def send_email(name: str, channel: Channel, connection: Connection, message: Message) -> None:
    """By SMTP, over TLS unless the connection's extra says `disable_ssl`, then with STARTTLS unless `disable_tls`."""
    sender = channel.sender or str(connection.extra.get("from_email") or "")
    if not sender:
        raise ConfigError("has no sender", which=f"channel {name}", fix="give it `from:` in alerts.yaml")
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.subject, sender, ", ".join(channel.to)
    mail["Message-ID"] = mail_id(message)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    mail.add_alternative(message.html, subtype="html")
    plain = bool(connection.extra.get("disable_ssl"))
    try:
        if plain:
            client = smtplib.SMTP(connection.host, connection.port or 587, timeout=TIMEOUT_S)
        else:
            client = smtplib.SMTP_SSL(
                connection.host,
                connection.port or 465,
                timeout=TIMEOUT_S,
                context=ssl.create_default_context(),
            )
        with client:
            if plain and not connection.extra.get("disable_tls"):
                client.starttls(context=ssl.create_default_context())
            if connection.login and connection.password:
                client.login(connection.login, connection.password)
            client.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        raise mail_error(name, error) from None


def mail_id(message: Message) -> str:
    """Equal for equal batches: a mail that was sent twice is one to a mail program."""
    return f"<{message.message_id}@penstock>"


def mail_error(name: str, error: Exception) -> PenstockError:
    """What went wrong with the mail server, without what was said to it."""
    code = getattr(error, "smtp_code", None)
    refused = isinstance(error, smtplib.SMTPAuthenticationError | smtplib.SMTPRecipientsRefused)
    said = f"{type(error).__name__}{f' {code}' if code else ''}"
    if refused or (isinstance(code, int) and 500 <= code < 600):
        return ConfigError(
            f"the mail server refused: {said}",
            which=f"channel {name}",
            fix="check login, password, sender and recipients, then `penstock alerts test`",
        )
    return ServiceUnavailable(
        f"the mail server does not take mail: {said}",
        which=f"channel {name}",
        fix="it is tried again; check host, port and TLS of the connection",
    )


def send_slack(name: str, _channel: Channel, connection: Connection, message: Message) -> None:
    """To an incoming webhook: the connection's password is its URL, or the part after its host."""
    url = connection.password
    if not url.startswith(("http://", "https://")):
        url = f"{(connection.host or 'https://hooks.slack.com/services').rstrip('/')}/{url.lstrip('/')}"
    _post(name, url, json.dumps({"text": message.slack}).encode(), {})


def send_webhook(name: str, _channel: Channel, connection: Connection, message: Message) -> None:
    """JSON to any address, with an idempotency key, and signed when the connection has a password."""
    body = json.dumps(message.payload, sort_keys=True).encode()
    headers = {"Idempotency-Key": message.message_id}
    if connection.password:
        headers[SIGNATURE] = signature(connection.password, body, at=int(time.time()))
    _post(name, connection.url, body, headers)


def signature(secret: str, body: bytes, *, at: int) -> str:
    """The value of the signature header."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


SENDERS: Mapping[str, Sender] = {"email": send_email, "slack": send_slack, "webhook": send_webhook}


def _post(name: str, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    import httpx

    where = f"channel {name}"
    try:
        request = httpx.Request(
            "POST",
            url,
            content=body,
            headers={"Content-Type": "application/json", "User-Agent": "penstock", **headers},
            extensions={"timeout": httpx.Timeout(TIMEOUT_S).as_dict()},
        )
        # not a client: that logs the URL of each request, and follows redirects with the body
        with httpx.HTTPTransport() as transport:
            response = transport.handle_request(request)
            response.read()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
        raise ConfigError(
            "its connection has no usable URL",
            which=where,
            fix="correct the connection; docs/alerts.md says how",
        ) from None
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"does not answer: {type(error).__name__}",
            which=where,
            fix="it is tried again; check the receiver",
        ) from None
    if response.status_code == 429 or response.status_code >= 500:
        raise ServiceUnavailable(
            f"answered {response.status_code}", which=where, fix="it is tried again; check the receiver"
        )
    if not response.is_success:
        raise ConfigError(
            f"refused with {response.status_code}",
            which=where,
            fix="check address and secret of the connection, then `penstock alerts test`",
        )
