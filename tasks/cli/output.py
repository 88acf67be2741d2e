"""How the terminal speaks: tables for people, `--json` for programs, and errors without tracebacks."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.core.errors import PenstockError

_UNFOLDED = 10_000
_WIDE = None if sys.stdout.isatty() else 200  # a pipe or a log file has no width to wrap at
console = Console(highlight=False, width=_WIDE)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def show(result: Any, *, as_json: bool, title: str = "", whole: str = "") -> None:
    """Print one result: JSON on request, else a table of its fields, or of its rows when it is a list.

    The column `whole` of such rows is not folded, however narrow the terminal: what stands in it is copied.
    """
    if as_json:
        sys.stdout.write(json.dumps(_strict(result), indent=2, default=str, allow_nan=False) + "\n")
    elif isinstance(result, Mapping):
        _print(_fields(result), title)
    elif isinstance(result, Sequence) and not isinstance(result, str):
        if result:
            _print(_rows(result, whole), title)
        else:
            console.print(f"{title or 'Nothing'}: none")
    else:
        console.print(str(result))


def _print(table: Table, title: str) -> None:
    """In a pipe or a log every row is one line: nothing is folded, and no blanks fill it up.

    The title stands above the table and not in it: a table folds its title at its own width.
    """
    if console.is_terminal:
        if title:
            console.print(title, style="italic", markup=False)
        console.print(table)
        return
    text = io.StringIO()
    paper = Console(file=text, highlight=False, width=_UNFOLDED)
    if title:
        paper.print(title, markup=False)
    paper.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


@contextmanager
def plain_errors() -> Iterator[None]:
    """End with the error's own exit code and its what, which and fix: no traceback for an expected error."""
    try:
        yield
    except PenstockError as error:
        errors.print(f"[bold red]{type(error).__name__}[/] ", end="")
        errors.print(str(error), markup=False)
        raise SystemExit(error.exit_code) from error


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _fields(result: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), _text(value))
    return table


def _rows(rows: Sequence[Any], whole: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    if not isinstance(rows[0], Mapping):
        table.show_header = False
        table.add_column(overflow="fold")
        for value in rows:
            table.add_row(_text(value))
        return table
    for key in rows[0]:
        table.add_column(str(key).replace("_", " "), overflow="fold", no_wrap=key == whole)
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in rows[0]))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "\n".join(_text(item) for item in value) or "-"
    return str(value)
