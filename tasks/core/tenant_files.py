"""Reading a file of the folder `tenants/` into its record."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tasks.core.errors import ConfigError
from tasks.core.yaml_text import read_yaml

Record = TypeVar("Record", bound=BaseModel)

_SETTLED_NS = 2_000_000_000
"""A file that has changed just now may change again within the same tick of its clock: it is read each time until then."""
_KNOWN: dict[tuple[Path, type[BaseModel]], tuple[tuple[int, ...], BaseModel]] = {}
"""What files said that have not changed since: a driver asks for all of them every few seconds."""


def read_record(path: Path, kind: type[Record], *, fix: str, empty: Any = None) -> Record | None:
    """The record that the YAML file holds; None where there is no such file.

    Args:
        path: The file.
        kind: Its record.
        fix: What to do when a field is wrong.
        empty: What a file without content says.

    Raises:
        ConfigError: The file is not YAML, or a field is missing, unknown or wrong.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    said = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _KNOWN.get((path, kind))
    if known is not None and known[0] == said:
        return known[1]  # type: ignore[return-value]  # by its kind
    record = _read(path, kind, fix, empty)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _KNOWN[path, kind] = said, record
    return record


def _read(path: Path, kind: type[Record], fix: str, empty: Any) -> Record:
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
        return kind.model_validate(empty if raw is None else raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", which=str(path), fix="correct that line") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigError("; ".join(problems), which=str(path), fix=fix) from error
