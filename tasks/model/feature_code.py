"""`features.py`, pinned: its source travels with the model, and its version is derived from the text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.core.errors import PipelineCodeError, TerminalError
from tasks.core.ids import digest_bytes
from tasks.core.near_names import or_near
from tasks.core.spec import FeatureSpec
from tasks.model.user_code import blaming, execute

log = logging.getLogger(__name__)

_EXAMPLE = 'FEATURE_VERSION = "1" and def features(rows: pa.Table) -> pa.Table'


class FeatureCode:
    """The feature functions of one pipeline at one version.

    `features(rows)` must compute each row from that row alone: a shard may hold any subset of a day.
    """

    def __init__(self, source: str, *, origin: str) -> None:
        """Run `source`; `origin` names the file in errors. Raises `PipelineCodeError`."""
        self.source = source.replace("\r\n", "\n").replace("\r", "\n")
        self.origin = origin
        module = execute(self.source, origin)
        declared = getattr(module, "FEATURE_VERSION", None)
        if not isinstance(declared, str) or not declared:
            raise PipelineCodeError(
                "must set FEATURE_VERSION to a non-empty string", which=origin, fix=f"write {_EXAMPLE}"
            )
        self._function: Any = getattr(module, "features", None)
        if not callable(self._function):
            raise PipelineCodeError(
                "must define the function features(rows)", which=origin, fix=f"write {_EXAMPLE}"
            )
        self.version = f"{declared}+{digest_bytes(self.source.encode())[:12]}"
        """Declared version, `+`, 12 hex digits of the source's SHA-256 (line ends normalised)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.source, self.origin)

    @classmethod
    def from_file(cls, path: Path) -> FeatureCode:
        """Read and run a `features.py`.

        Raises:
            PipelineCodeError: No such file, it does not import, or it lacks `FEATURE_VERSION` or `features`.
        """
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineCodeError(
                f"cannot be read: {error}", which=str(path), fix=f"create it with {_EXAMPLE}"
            ) from error
        return cls(source, origin=str(path))

    def compute(self, rows: pa.Table, spec: FeatureSpec) -> pa.Table:
        """Features of `rows`: columns `spec.names` in that order, numeric as float64, categorical as string.

        Args:
            rows: Source rows without label and outcome columns.
            spec: The features that `pipeline.yaml` declares.

        Raises:
            PipelineCodeError: `features` raised (file and line named), returned something else than a table of
                as many rows, left out or added a column, or a column has a type that cannot be used.
        """
        with blaming(self.origin, "features(rows)"):
            table = self._function(rows)
        if not isinstance(table, pa.Table):
            raise self._broken(f"features(rows) returned {type(table).__name__}", "return a pyarrow.Table")
        if table.num_rows != rows.num_rows:
            raise self._broken(
                f"features(rows) returned {table.num_rows} rows for {rows.num_rows}",
                "return one row for each input row, in the same order",
            )
        self._check_columns(table.column_names, spec)
        columns = [self._numeric(name, table[name]) for name in spec.numeric]
        columns += [self._categorical(name, table[name]) for name in spec.categorical]
        return pa.table(columns, names=list(spec.names))

    def error_on(self, rows: pa.Table, spec: FeatureSpec) -> str:
        """What features(rows) raises on rows that no gate has seen, and where; empty when it raises nothing, and its columns are right.

        The rows may be at fault: then nothing is known of its columns yet, and `compute` will say it of rows that passed.

        Raises:
            PipelineCodeError: A column is left out or added; the closest name is said.
        """
        try:
            with blaming(self.origin, "features(rows)"):
                table = self._function(rows)
        except TerminalError as error:
            said = f"{error.which}: {error.what}; correct that line, unless the data gate takes such rows out"
            log.warning("features.py cannot be tried before the data gate: %s", said)
            return said
        if isinstance(table, pa.Table):
            self._check_columns(table.column_names, spec)
        return ""

    def _check_columns(self, found: list[str], spec: FeatureSpec) -> None:
        missing = [name for name in spec.names if name not in found]
        if missing:
            unlisted = [name for name in found if name not in spec.names]
            raise self._broken(
                f"features(rows) does not return {', '.join(or_near(name, unlisted) for name in missing)}",
                "correct the name under features: in pipeline.yaml, or return it",
            )
        if len(set(found)) != len(found):
            twice = sorted({name for name in found if found.count(name) > 1})
            raise self._broken(
                f"features(rows) returns {', '.join(twice)} more than once", "return each feature once"
            )
        extra = sorted(set(found) - set(spec.names))
        if extra:
            raise self._broken(
                f"features(rows) returns {', '.join(extra)}, which pipeline.yaml does not list",
                "add to features: in pipeline.yaml, or leave out",
            )

    def _numeric(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        kind = column.type
        usable = (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_null(kind)
        )
        if not usable:
            raise self._broken(
                f"feature {name!r} is numeric in pipeline.yaml but has type {kind}",
                "return numbers, or list it under categorical",
            )
        return column.cast(pa.float64(), safe=False)

    def _categorical(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        try:
            return column.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise self._broken(
                f"feature {name!r} is categorical in pipeline.yaml but has type {column.type}",
                "return strings, integers or booleans",
            ) from error

    def _broken(self, what: str, fix: str) -> PipelineCodeError:
        return PipelineCodeError(what, which=self.origin, fix=fix)


def _rebuild(source: str, origin: str) -> FeatureCode:
    return FeatureCode(source, origin=origin)
