"""Where rows come from: Parquet and CSV files (local or S3), or a pipeline's own `source.py`.

A source answers two questions: which days it has, and the rows of some days. What it returns is raw; the
checks of `tasks.data.checks` follow.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa

from tasks.core.clock import Clock, utc_now
from tasks.core.day_span import every_day
from tasks.core.errors import ConfigError, DataError, PipelineCodeError, StoreUnavailable
from tasks.core.ids import digest_file
from tasks.core.rows import local_days
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, pipeline_folder
from tasks.data.checks import require_columns, with_event_time
from tasks.model.user_code import blaming, execute

log = logging.getLogger(__name__)

NULL_TEXTS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
_CSV_BLOCK_BYTES = 1 << 24  # types are inferred from the first block: a large one sees rare values


class Source(Protocol):
    """Rows by local day."""

    def days(self) -> list[date]:
        """Days that have rows, in order."""
        ...

    def load(self, first_day: date, last_day: date) -> pa.Table:
        """Rows of these days, both included; rows outside of them may come along."""
        ...

    def load_with_day_before(self, first_day: date, last_day: date) -> pa.Table:
        """As `load`, with the day before when the source has it: for comparing deliveries."""
        ...


def open_source(settings: Settings, spec: PipelineSpec, *, clock: Clock = utc_now) -> Source:
    """The source that `pipeline.yaml` names.

    Raises:
        ConfigError: `source.time_zone` is not an IANA zone, or `source.uri` names nothing.
        PipelineCodeError: `source.py` does not load.
    """
    folder = pipeline_folder(settings, spec.name)
    try:
        ZoneInfo(spec.source.time_zone)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"{spec.source.time_zone!r} is not a time zone",
            which=f"{folder / 'pipeline.yaml'}: source.time_zone",
            fix="use an IANA name such as UTC or America/New_York",
        ) from error
    if spec.source.kind == "python":
        return PythonSource(folder / spec.source.uri, spec, clock)
    return FileSource(open_files(settings, spec.source.uri, kind=spec.source.kind, base=folder), spec)


def source_days(settings: Settings, spec: PipelineSpec, *, clock: Clock = utc_now) -> list[date]:
    """Days that the source has, in order."""
    return open_source(settings, spec, clock=clock).days()


# -- source.py


class PythonSource:
    """`load(first_day, last_day) -> pyarrow.Table`, and optionally `days() -> list[date]`, of a user's file.

    Without `days`, every day from the first training day up to yesterday counts as present.
    """

    def __init__(self, path: Path, spec: PipelineSpec, clock: Clock) -> None:
        self._path = path
        self._spec = spec
        self._clock = clock
        self._module = _load_module(path)

    def days(self) -> list[date]:
        function = getattr(self._module, "days", None)
        if function is not None:
            with blaming(str(self._path), "days()"):
                return sorted(_checked_days(function(), self._path))
        if self._spec.split.train is None:
            raise PipelineCodeError(
                "does not say which days it has",
                which=str(self._path),
                fix="define days() -> list[datetime.date], which a split by train_days needs",
            )
        first = self._spec.split.train.first_day
        last = self._clock().astimezone(ZoneInfo(self._spec.source.time_zone)).date() - timedelta(days=1)
        return every_day(first, last)

    def load(self, first_day: date, last_day: date) -> pa.Table:
        function: Callable[[date, date], Any] | None = getattr(self._module, "load", None)
        if function is None:
            raise PipelineCodeError(
                "has no function load",
                which=str(self._path),
                fix="define load(first_day, last_day) -> pyarrow.Table",
            )
        with blaming(str(self._path), f"load({first_day}, {last_day})"):
            table = function(first_day, last_day)
        if not isinstance(table, pa.Table):
            raise PipelineCodeError(
                f"load returned {type(table).__module__}.{type(table).__name__}, not a pyarrow.Table",
                which=str(self._path),
                fix="return a pyarrow.Table; for pandas use pyarrow.Table.from_pandas(frame)",
            )
        return table

    def load_with_day_before(self, first_day: date, last_day: date) -> pa.Table:
        before = first_day - timedelta(days=1)
        listed = hasattr(self._module, "days") and before in self.days()
        return self.load(before if listed else first_day, last_day)


_MODULES: dict[tuple[Path, str], ModuleType] = {}


def _load_module(path: Path) -> ModuleType:
    """The module of a file; an unchanged file is executed once a process, so that it may cache what it read."""
    if not path.is_file():
        raise ConfigError(
            "does not exist", which=str(path), fix="correct source.uri in pipeline.yaml, or write the file"
        )
    digest = digest_file(path)
    cached = _MODULES.get((path, digest))
    if cached is not None:
        return cached
    module = execute(path.read_text(encoding="utf-8"), str(path))
    _MODULES[path, digest] = module
    return module


def _checked_days(value: Any, path: Path) -> list[date]:
    days = list(value)
    wrong = [day for day in days if not isinstance(day, date) or isinstance(day, datetime)]
    if wrong:
        raise PipelineCodeError(
            f"days() returned {wrong[0]!r}, not a date", which=str(path), fix="return datetime.date values"
        )
    return days


# -- files


class Files:
    """The Parquet or CSV files under a path or an S3 prefix."""

    def __init__(self, kind: str, paths: Sequence[str], sizes: Sequence[int], root: str, fs: Any) -> None:
        self.kind = kind
        self.paths = list(paths)
        self.sizes = list(sizes)
        self._root = root
        self._fs = fs
        self._scheme = "" if fs is None else "s3://"
        self._checked: Any = None

    def name(self, path: str) -> str:
        """A file as its owner knows it."""
        return f"{self._scheme}{path}"

    def dataset(self) -> Any:
        """All files as one dataset; folders named `column=value` become columns.

        Raises:
            DataError: A file is truncated, holds other columns or types than the others, or is there twice.
        """
        if self._checked is None:
            self._refuse_twins()
            schema = self._common_schema()
            with self._naming_the_culprit():
                self._checked = self._dataset(self.paths, schema)
        return self._checked

    def read(self, columns: Sequence[str] | None = None, where: Any = None) -> pa.Table:
        """The rows, in the order of the files' names. Raises as `dataset`."""
        dataset = self.dataset()
        with self._naming_the_culprit():
            return dataset.to_table(columns=list(columns) if columns is not None else None, filter=where)

    def _dataset(self, paths: Sequence[str], schema: pa.Schema | None = None) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset(
            list(paths),
            schema=schema,
            format=_format(self.kind),
            filesystem=self._fs,
            partitioning="hive",
            partition_base_dir=self._root,
        )

    def _refuse_twins(self) -> None:
        """Files with the same bytes are one delivery stored twice. Only files of equal size are read."""
        by_size: dict[int, list[str]] = defaultdict(list)
        for path, size in zip(self.paths, self.sizes, strict=True):
            by_size[size].append(path)
        for same in by_size.values():
            seen: dict[str, str] = {}
            for path in same if len(same) > 1 else ():
                with self._open(path) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                twin = seen.setdefault(digest, path)
                if twin != path:
                    raise DataError(
                        f"holds the same bytes as {self.name(twin)}: it was delivered twice",
                        which=self.name(path),
                        fix="remove one of the two; if the days differ, ask for the right file",
                    )

    def _common_schema(self) -> pa.Schema:
        """The first file's columns, of types that hold what all files have.

        A missing value makes floats of whole numbers in the file that it is in, where pandas wrote it.
        """
        with self._naming_the_culprit():
            common = self._dataset(self.paths).schema
        folders = {
            part.partition("=")[0] for path in self.paths for part in Path(path).parts[:-1] if "=" in part
        }
        for path in self.paths:
            with self._naming_the_culprit():
                schema = self._dataset([path]).schema
            self._refuse_other_columns(path, schema.names, common.names)
            for place, column in enumerate(common):
                kind = schema.field(column.name).type
                if kind != column.type and column.name not in folders:
                    wide = _wide_type(column.type, kind) or (pa.string() if self.kind == "csv" else None)
                    if wide is None:
                        raise DataError(
                            f"has {column.name} as {kind}, and {self.name(self.paths[0])} as {column.type}",
                            which=self.name(path),
                            fix="deliver the column with one type in all files",
                        )
                    common = common.set(place, column.with_type(wide))
        return common

    def _refuse_other_columns(self, path: str, names: Sequence[str], first: Sequence[str]) -> None:
        lacks, adds = sorted(set(first) - set(names)), sorted(set(names) - set(first))
        if lacks or adds:
            raise DataError(
                f"has other columns than {self.name(self.paths[0])}: "
                + "; ".join(
                    [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"adds {', '.join(adds)}"] * bool(adds)
                ),
                which=self.name(path),
                fix="deliver all files with the same columns, or move this one elsewhere",
            )

    @contextmanager
    def _naming_the_culprit(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            for path in self.paths:
                problem = self._problem_of(path)
                if problem is not None:
                    raise _unreadable(self.name(path), self.kind, problem) from error
            raise DataError(
                f"cannot be read as {self.kind}: {error}",
                which=self.name(self._root),
                fix="make the column types of all files equal",
            ) from error

    def _problem_of(self, path: str) -> Exception | None:
        try:
            for _ in self._dataset([path]).to_batches():
                pass
        except (pa.ArrowException, OSError, ValueError) as error:
            return error
        return None

    def _open(self, path: str) -> Any:
        return Path(path).open("rb") if self._fs is None else self._fs.open(path, "rb")


def open_files(settings: Settings, uri: str, *, kind: str, base: Path) -> Files:
    """The files that `uri` names: a file, a folder, or an `s3://` URL of either.

    Args:
        settings: For the S3 endpoint and region.
        uri: A path (relative ones start at `base`) or `s3://bucket/prefix`.
        kind: `parquet` or `csv`.
        base: The pipeline's folder.

    Raises:
        ConfigError: Nothing is there.
        StoreUnavailable: S3 does not answer.
    """
    if uri.startswith("s3://"):
        fs, root, found = _s3_files(settings, uri)
    elif "://" in uri:
        raise ConfigError(
            "is neither a path nor an s3:// URL", which=uri, fix="use /path or s3://bucket/prefix"
        )
    else:
        fs, path = None, (base / Path(uri).expanduser()).resolve()
        root = str(path)
        candidates = [path] if path.is_file() else path.rglob("*")
        found = {str(item): item.stat().st_size for item in candidates if item.is_file()}
    kept = {path: size for path, size in found.items() if path == root or _is_data(path, root, kind)}
    if not kept:
        raise ConfigError(
            f"holds no {kind} file" + (f" ({len(found)} files of other kinds)" if found else ""),
            which=uri if fs is not None else root,
            fix=f"point source.uri at a file, a folder or an s3:// prefix of {kind} files",
        )
    empty = [path for path, size in kept.items() if not size]
    if empty:
        raise DataError(
            "is empty (0 bytes)", which=empty[0] if fs is None else f"s3://{empty[0]}", fix="deliver it again"
        )
    paths = sorted(kept)
    base_dir = root if root not in kept else str(Path(root).parent)
    return Files(kind, paths, [kept[path] for path in paths], base_dir, fs)


def _wide_type(*kinds: pa.DataType) -> pa.DataType | None:
    """The type that holds numbers, texts or times of both types; None where there is none."""
    plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    try:
        schemas = [pa.schema([pa.field("column", kind)]) for kind in plain]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _is_data(path: str, root: str, kind: str) -> bool:
    relative = Path(path).relative_to(root)
    if any(part.startswith((".", "_")) for part in relative.parts):
        return False  # _SUCCESS, _metadata, .crc and the like
    endings = (".parquet", ".pq") if kind == "parquet" else (".csv", ".csv.gz")
    return path.lower().endswith(endings)


def _s3_files(settings: Settings, uri: str) -> tuple[Any, str, dict[str, int]]:
    import s3fs

    fs = s3fs.S3FileSystem(
        endpoint_url=settings.s3_endpoint,
        client_kwargs={"region_name": settings.s3_region},
        use_listings_cache=False,
    )
    root = uri.removeprefix("s3://").rstrip("/")
    try:
        return fs, root, {path: int(info["size"]) for path, info in fs.find(root, detail=True).items()}
    except FileNotFoundError:
        return fs, root, {}
    except PermissionError as error:
        raise ConfigError("access was denied", which=uri, fix="check the AWS credentials") from error
    except OSError as error:
        raise StoreUnavailable(
            f"S3 failed: {error}", which=uri, fix="check PENSTOCK_S3_ENDPOINT, retry"
        ) from error


def _format(kind: str) -> Any:
    import pyarrow.dataset as ds
    from pyarrow import csv

    if kind == "parquet":
        return ds.ParquetFileFormat()
    return ds.CsvFileFormat(
        read_options=csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        convert_options=csv.ConvertOptions(null_values=NULL_TEXTS, strings_can_be_null=True),
    )


def _unreadable(name: str, kind: str, problem: Exception) -> DataError:
    text = str(problem).splitlines()[0]
    if kind == "parquet":
        return DataError(
            f"is not a whole Parquet file, it may be truncated: {text}", which=name, fix="deliver it again"
        )
    return DataError(f"is not readable as CSV: {text}", which=name, fix="correct that file")


class FileSource:
    """`Files`, cut by the event time."""

    def __init__(self, files: Files, spec: PipelineSpec) -> None:
        self._files = files
        self._spec = spec

    def days(self) -> list[date]:
        require_columns(self._files.dataset().schema.names, [self._spec.event_time], self._spec)
        times = with_event_time(self._files.read([self._spec.event_time]), self._spec, allow_null=True)
        column = times.column(self._spec.event_time)
        present = local_days(times.filter(column.is_valid()), self._spec)
        return sorted(present.unique().to_pylist())

    def load(self, first_day: date, last_day: date) -> pa.Table:
        dataset = self._files.dataset()
        require_columns(dataset.schema.names, [self._spec.event_time], self._spec)
        self._refuse_empty_files(dataset)
        log.info(
            "reading %d %s files for %s..%s", len(self._files.paths), self._files.kind, first_day, last_day
        )
        return self._files.read(where=self._window(dataset.schema, first_day, last_day))

    def load_with_day_before(self, first_day: date, last_day: date) -> pa.Table:
        return self.load(first_day - timedelta(days=1), last_day)

    def _refuse_empty_files(self, dataset: Any) -> None:
        for fragment in dataset.get_fragments() if self._files.kind == "parquet" else ():
            if not fragment.count_rows():
                raise DataError(
                    "has no rows", which=self._files.name(fragment.path), fix="deliver it again, or remove it"
                )

    def _window(self, schema: pa.Schema, first_day: date, last_day: date) -> Any:
        """A filter that the reader can push down; None when the times are not timestamps yet."""
        import pyarrow.dataset as ds

        kind = schema.field(self._spec.event_time).type
        if not pa.types.is_timestamp(kind):
            return None
        zone = ZoneInfo(self._spec.source.time_zone)
        bounds: list[Any] = []
        for day in (first_day, last_day + timedelta(days=1)):
            midnight = datetime.combine(day, time(), zone)
            moment = midnight.replace(tzinfo=None) if kind.tz is None else midnight.astimezone(UTC)
            bounds.append(
                pa.scalar(moment, pa.timestamp("us", tz=None if kind.tz is None else "UTC")).cast(kind)
            )
        field = ds.field(self._spec.event_time)
        return ((field >= bounds[0]) & (field < bounds[1])) | field.is_null()  # nulls: to be reported
