"""Runs a user's source file and says which of its lines went wrong."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from tasks.core.errors import PenstockError, PipelineCodeError
from tasks.core.memory_limit import out_of_memory, ran_out_of_memory


def line_of(error: BaseException, origin: str) -> str:
    """`origin:line` of the deepest frame of `error` inside the file `origin`; `origin` when there is none."""
    if isinstance(error, SyntaxError) and error.filename == origin:
        return f"{origin}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin]
    return f"{origin}:{lines[-1]}" if lines else origin


@contextmanager
def blaming(origin: str, doing: str) -> Iterator[None]:
    """Turns whatever user code raises into a `PipelineCodeError` that names its file and line; want of memory into `OutOfMemory`."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise out_of_memory(error, which=line_of(error, origin), doing=doing) from error
        raise PipelineCodeError(
            f"{doing} raised {type(error).__name__}: {error}",
            which=line_of(error, origin),
            fix="correct that line",
        ) from error


def execute(source: str, origin: str) -> ModuleType:
    """A module made by running `source`; `origin` is the file name that tracebacks show.

    It is not put into `sys.modules`: two versions of one file may live in a process side by side.

    Raises:
        PipelineCodeError: It does not compile, or raises while it is imported.
    """
    module = ModuleType("penstock_pipeline_code")
    module.__file__ = origin
    # The file may have changed on disk since: tracebacks must show the lines that ran.
    linecache.cache[origin] = (len(source), None, source.splitlines(keepends=True), origin)
    with blaming(origin, "importing the file"):
        exec(compile(source, origin, "exec"), module.__dict__)
    return module
