"""`penstock monitoring cases|case|answer`: what the monitor put before a person."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.options import Actor, Json, Pipeline, Reason, call, run
from tasks.cli.output import show

CaseId = Annotated[
    str, typer.Argument(metavar="CASE", help="As `penstock monitoring cases` shows it.", show_default=False)
]


def add_case_commands(monitoring: typer.Typer) -> None:
    """Put the commands into the group."""
    monitoring.command("cases")(monitoring_cases)
    monitoring.command("case")(monitoring_case)
    monitoring.command("answer")(monitoring_answer)
    monitoring.command("revoke")(monitoring_revoke)
    monitoring.command("act")(monitoring_act)


def monitoring_cases(pipeline: Pipeline, as_json: Json = False) -> None:
    """Every case of a pipeline, newest first: what it is about, since when, and what was answered."""
    found = call("list_cases", pipeline)
    show(found if as_json else found["cases"], as_json=as_json, title=f"{pipeline}: cases, newest first")


def monitoring_case(pipeline: Pipeline, case: CaseId, as_json: Json = False) -> None:
    """One case: verdict, likely cause, reasons, the playbook's steps, what each answer does, and its log."""
    run("show_case", pipeline, as_json, case_id=case)


def monitoring_answer(
    pipeline: Pipeline,
    case: CaseId,
    answer: Annotated[
        str,
        typer.Argument(
            help="accept, roll-back, retrain, mute, new-normal or incident; `case` says what each does.",
            show_default=False,
        ),
    ],
    actor: Actor,
    reason: Reason,
    until: Annotated[
        str | None,
        typer.Option(
            help="Of mute: last day of data that it covers, YYYY-MM-DD; default: a week.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a case, as its buttons in Airflow do.

    The run of `<pipeline>.case` that waits for it rolls back or retrains within seconds, where that is the answer.
    """
    run(
        "answer_case", pipeline, as_json, case_id=case, answer=answer, actor=actor, reason=reason, until=until
    )


def monitoring_revoke(
    pipeline: Pipeline, case: CaseId, actor: Actor, reason: Reason, as_json: Json = False
) -> None:
    """Take an answer back: mute, new normal or acknowledgement count no more. What it has done is not undone."""
    run("revoke_case_answer", pipeline, as_json, case_id=case, actor=actor, reason=reason)


def monitoring_act(pipeline: Pipeline, case: CaseId, as_json: Json = False) -> None:
    """Roll back because a case was answered so, where no run of `<pipeline>.case` does it; once, however often it is called."""
    run("roll_back_case", pipeline, as_json, case_id=case)
