"""`penstock alerts`: what is open, what was sent, and whether a channel works."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.options import Json, Pipeline, call, run
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings

alerts = typer.Typer(
    help="Alerts: what is open, what was sent, whether a channel works.", no_args_is_help=True
)


@alerts.command("list")
def alerts_list(
    pipeline: Pipeline,
    days: Annotated[int, typer.Option(min=1, help="Also what was over in the last days.")] = 30,
    as_json: Json = False,
) -> None:
    """Alerts that are open or were seen lately, newest first, with what was sent of each."""
    found = call("list_alerts", pipeline, days=days)
    if as_json:
        show(found, as_json=True)
        return
    lines = [
        {
            "kind": item["kind"],
            "severity": item["severity"],
            "status": item["status"],
            "since": item["since"],
            "headline": item["headline"],
            "sent": ", ".join(
                f"{one['channel']} {one['phase']}: {one['status']}" for one in item["deliveries"]
            ),
        }
        for item in found["alerts"]
    ]
    show(lines, as_json=False, title=f"Alerts of {pipeline}")


@alerts.command("test")
def alerts_test(
    pipeline: Pipeline,
    channel: Annotated[str, typer.Option(help="A channel of pipelines/alerts.yaml.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Send a test message on one channel, with the secrets of connections.json in the home folder."""
    run("test_alert", pipeline, as_json, channel=channel)


@alerts.command("send")
def alerts_send(as_json: Json = False) -> None:
    """Look at every pipeline and send what is due: what the DAG platform.alerts does every five minutes."""
    from tasks import wiring

    found = wiring.send_alerts(cli_settings())
    if as_json:
        show(found, as_json=True)
        return
    console.print(f"{found['changed']} alerts opened or went on, {found['resolved']} are over")
    lines = [{"channel": name, **outcome} for name, outcome in found["channels"].items()]
    show(lines, as_json=False, title="Messages")
