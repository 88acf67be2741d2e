"""What the command line's tests call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.core import PipelineSpec, Settings, open_store
from tasks.model.user_code import execute


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(name: str) -> None:
            raise ValueError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


Penstock = Callable[..., Outcome]


def fit_here(
    settings: Settings,
    spec: PipelineSpec,
    data: Any,
    *,
    training_id: str,
    model_source: str,
    model_origin: str,
) -> Any:
    """`fit_on_ray` without Ray: the same loop in this process."""
    from tasks.model import build_network
    from tasks.training.fit import Checkpoints, fit_network

    network = build_network(model_source, data.network, origin=model_origin)
    checkpoints = Checkpoints(open_store(settings, prefix=spec.prefix), training_id)
    return fit_network(network, data.fit, data.tuning, spec.training, checkpoints)


def toy_folder(settings: Settings) -> Path:
    return settings.pipelines_dir / "toy"


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text of a file that must be there."""
    content = path.read_text()
    assert old in content, f"{old!r} is not in {path}"
    path.write_text(content.replace(old, new))


def as_files(settings: Settings) -> Path:
    """Make the toy pipeline read one Parquet file a day; returns their folder."""
    folder = toy_folder(settings)
    source = execute((folder / "source.py").read_text(), str(folder / "source.py"))
    rows = folder / "rows"
    rows.mkdir()
    for index in range(35):
        day = date(2024, 1, 1) + timedelta(days=index)
        pq.write_table(source.load(day, day), rows / f"{day}.parquet")
    edit(folder / "pipeline.yaml", "kind: python, uri: source.py", "kind: parquet, uri: rows")
    return rows


def kept(settings: Settings) -> dict[str, bytes]:
    """Every object of the store: what a failing command must leave as it is."""
    root = settings.home / "store"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "/training/" not in str(path)
    }
