"""`platform.alerts`: sends alerts with Airflow's connections, and mail by Airflow's SMTP provider.

The providers of Slack and HTTP do not come with Airflow; for those the senders of `tasks.wiring.alert_channels` are
used, with the secret from an Airflow connection too.
"""

from __future__ import annotations

import smtplib
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseHook, BaseOperator, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from plugins.errors import as_airflow_errors
from tasks.core.pools import STEP_POOL
from tasks.core.settings import Settings
from tasks.monitoring.alert_rules import FILE, Channel
from tasks.monitoring.alert_text import Message
from tasks.wiring.alert_channels import (
    Connection,
    Connections,
    file_connections,
    mail_error,
    mail_id,
    send_email,
)

EVERY = "*/5 * * * *"
_DOC = """### platform.alerts

Every five minutes, for every pipeline: reads the newest decisions of the monitor, verdicts of the gates and events of the deployment
log, opens and resolves alerts, and sends what is due on the channels of `pipelines/alerts.yaml`: one message a channel for all that is new.
A channel that is down gets its messages later. Running it twice sends nothing twice.
"""


def airflow_connections(settings: Settings) -> Connections:
    """Airflow's connections; those it does not have, from the installation's own file."""
    from_file = file_connections(settings)

    def find(connection_id: str) -> Connection:
        try:
            found = BaseHook.get_connection(connection_id)
        except AirflowNotFoundException:
            return from_file(connection_id)
        return Connection(
            host=found.host or "",
            port=found.port,
            login=found.login or "",
            password=found.password or "",
            schema=found.schema or "",
            extra=found.extra_dejson,
            origin="airflow",
        )

    return find


def send_email_by_provider(name: str, channel: Channel, connection: Connection, message: Message) -> None:
    """By the SMTP provider's hook, which knows OAuth and retries; a connection of the file goes by `smtplib`."""
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    if connection.origin != "airflow":
        send_email(name, channel, connection, message)
        return
    try:
        with SmtpHook(
            smtp_conn_id=channel.connection, auth_type=connection.extra.get("auth_type", "basic")
        ) as hook:
            hook.send_email_smtp(
                to=list(channel.to),
                subject=message.subject,
                html_content=message.html,
                from_email=channel.sender,
                custom_headers={"Message-ID": mail_id(message), "Auto-Submitted": "auto-generated"},
            )
    except (smtplib.SMTPException, OSError, AirflowException) as error:
        raise mail_error(name, error) from None


class SendAlertsOperator(BaseOperator):
    """Run `tasks.wiring.send_alerts`."""

    ui_color = "#fcebe9"

    def execute(self, context: Any) -> dict[str, Any]:
        from tasks.wiring.alerts import send_alerts

        settings = Settings.from_environment()
        with as_airflow_errors(self, context):
            result = send_alerts(
                settings,
                connections=airflow_connections(settings),
                senders={"email": send_email_by_provider},
            )
        for channel, outcome in result["channels"].items():
            self.log.info("%s: %s", channel, outcome["problem"] or f"{outcome['alerts']} alerts sent")
        return result


def alerts_dag(settings: Settings) -> DAG | None:
    """`platform.alerts`; None without `pipelines/alerts.yaml`."""
    if not (settings.pipelines_dir / FILE).is_file():
        return None
    with DAG(
        dag_id="platform.alerts",
        description="Send what the gates, the canary and the monitor of every pipeline have to say",
        doc_md=_DOC,
        schedule=CronTriggerTimetable(EVERY, timezone="UTC", run_immediately=timedelta(0)),
        tags={"penstock", "maintenance"},
        default_args={"owner": "platform", "pool": STEP_POOL, "retries": 0},
        catchup=False,
        max_active_runs=1,
        start_date=None,
    ) as dag:
        SendAlertsOperator(task_id="send", multiple_outputs=False, doc_md=_DOC)
    return dag
