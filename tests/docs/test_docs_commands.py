"""What the pages say about the command line is what the command line does."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

import pytest
import typer
from docs_support import ROOT, names, pages, penstock_lines

from tasks.cli.app import app

PAGES = pages()
GROUPS_SHOWN_ALONE = {"--help", "-v", "--verbose"}


@functools.cache
def generator() -> ModuleType:
    path = ROOT / "scripts" / "command_docs.py"
    spec = importlib.util.spec_from_file_location("command_docs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_command_and_option_is_documented_as_it_is(page: str) -> None:
    expected = generator().documents()[ROOT / page]
    assert (ROOT / page).read_text() == expected, "run .penstock/venv/bin/python scripts/command_docs.py"


def test_every_command_argument_and_option_has_a_help_text() -> None:
    silent = [
        f"{path} {parameter.name}"
        for path, command in generator().commands()
        for parameter in command.params
        if "--help" not in parameter.opts and not parameter.help
    ]
    assert silent == []
    assert [path for path, command in generator().commands() if not command.help] == []


@functools.cache
def root() -> Any:
    """The real command line."""
    return typer.main.get_command(app)


@functools.cache
def command_paths() -> frozenset[str]:
    return frozenset(path for path, _ in generator().commands())


def parse(arguments: list[str]) -> None:
    """Let the real command line read the arguments, and stop before anything runs."""
    command = root()
    path = "penstock"
    while hasattr(command, "commands"):
        arguments = [one for one in arguments if one not in GROUPS_SHOWN_ALONE]
        if not arguments:
            return
        path, name, arguments = f"{path} {arguments[0]}", arguments[0], arguments[1:]
        assert name in command.commands, f"there is no `{path}`"
        command = command.commands[name]
    command.make_context(path, [_example(one) for one in arguments])


def _example(argument: str) -> str:
    """A placeholder of the pages as a value that a number or a day may have."""
    return "3" if argument in ("VERSION", "N") else argument


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_line_on_a_page_is_one_that_parses(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody")
    for arguments in penstock_lines(page.read_text()):
        if len(arguments) == 1 and not arguments[0].startswith("-") and arguments[0] in _groups():
            continue  # a page speaks of the group as a whole
        if _names_only(arguments):
            continue
        parse(arguments)


def _groups() -> set[str]:
    return {name for name, command in root().commands.items() if hasattr(command, "commands")}


def _names_only(arguments: list[str]) -> bool:
    """`penstock inference sweep` in a sentence names a command; it must exist, and needs no arguments."""
    return f"penstock {' '.join(arguments)}" in command_paths()


def test_the_check_refuses_commands_and_options_that_do_not_exist() -> None:
    with pytest.raises(AssertionError, match="there is no `penstock data snapshots`"):
        parse(["data", "snapshots", "churn"])
    for wrong in (["data", "snapshot", "churn", "--week", "3"], ["new", "churn"]):
        with pytest.raises(Exception, match=r"(?i)no such option: --week|missing (option|parameter)"):
            parse(wrong)
