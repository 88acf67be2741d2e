"""Write what the command line says of itself into docs/cli.md and README.md.

Run it after changing a command: `.penstock/venv/bin/python scripts/command_docs.py`. A test fails until it was run.
Only the text between the markers is replaced; everything around them is written by hand.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tasks.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- commands: made by scripts/command_docs.py -->", "<!-- end of commands -->"


def commands() -> Iterator[tuple[str, Any]]:
    """(`penstock data snapshot`, its command object) of every command, groups opened, in the order of the help."""
    pending = [("penstock", typer.main.get_command(app))]
    while pending:
        path, command = pending.pop(0)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path, command
        else:
            pending[:0] = [(f"{path} {name}", found) for name, found in inner.items()]


def reference() -> str:
    """Every command with its help, arguments and options, as Markdown."""
    return "\n".join(_section(path, command) for path, command in commands())


def every_command() -> str:
    """One table row for each command, leading to its section."""
    rows = [
        f"| [`{path}`](#{path.replace(' ', '-')}) | {_paragraphs(command)[0]} |"
        for path, command in commands()
    ]
    return "\n".join(["| command | does |", "|---|---|", *rows, ""])


def overview() -> str:
    """One table row for each group and for each command that is in none."""
    rows = []
    for name, command in getattr(typer.main.get_command(app), "commands", {}).items():
        inner = ", ".join(f"`{one}`" for one in getattr(command, "commands", {}))
        rows.append(f"| `penstock {name}` | {_paragraphs(command)[0]}{' ' if inner else ''}{inner} |")
    return "\n".join(["| command | does |", "|---|---|", *rows, ""])


def placed(text: str, generated: str) -> str:
    """`text` with what lies between the markers replaced."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{generated}\n{END}{after}"


def documents() -> dict[Path, str]:
    """What each page should be."""
    pages = {ROOT / "docs" / "cli.md": f"{every_command()}\n{reference()}", ROOT / "README.md": overview()}
    return {path: placed(path.read_text(encoding="utf-8"), text) for path, text in pages.items()}


def _section(path: str, command: Any) -> str:
    lines = [f"### `{path}`", "", "\n\n".join(_paragraphs(command)), ""]
    rows = [_row(one) for one in command.params if "--help" not in one.opts]
    if rows:
        lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _paragraphs(command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    return [re.sub(r"\s+", " ", part) for part in text.split("\n\n")]


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    if parameter.required:
        default = "required"
    elif parameter.default in (None, False, ""):
        default = ""
    else:
        default = f"`{parameter.default}`"
    if variable := getattr(parameter, "envvar", None):
        default = f"`${variable}`"
    return f"| `{name}` | {default} | {parameter.help or ''} |".replace("|  |", "| |")


if __name__ == "__main__":
    for page, content in documents().items():
        page.write_text(content, encoding="utf-8")
