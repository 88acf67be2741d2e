"""Reading a file of the folder `tenants/` into its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tasks.core.errors import ConfigError

Record = TypeVar("Record", bound=BaseModel)


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
    if not path.is_file():
        return None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return kind.model_validate(empty if raw is None else raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", which=str(path), fix="correct that line") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigError("; ".join(problems), which=str(path), fix=fix) from error
