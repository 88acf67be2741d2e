"""Objects by key, on a local folder or S3, with the exclusive create that commits stand on (I2).

Both stores keep the same promises, which one contract suite tests:

- `put_exclusive` creates a key or raises `AlreadyExists`; of any number of racing callers one wins, and a
  reader sees all of the object or none of it. It is durable when it returns.
- `put` replaces a key atomically. It is never used for commit records.
- A key is a relative POSIX path without `..`; it never leaves the store's root.

Locally the exclusive create is a hard link of a flushed temporary file; on S3 it is `PutObject` with
`If-None-Match: *`. `probe` proves it at start-up, because some S3-compatible servers accept the header and
ignore it.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, TypeVar

from tasks.core import s3_faults
from tasks.core.errors import (
    CommitOutcomeUnknown,
    ConfigError,
    NotFound,
    PenstockError,
    StoreUnavailable,
    TerminalError,
    disk_error,
)
from tasks.core.settings import Settings

_Answer = TypeVar("_Answer")


class AlreadyExists(TerminalError):
    """`put_exclusive` found the key taken."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified_at_utc: datetime


class ObjectStore(Protocol):
    """What every store can do. Keys are relative; `url` joins one to the store's root."""

    def url(self, key: str = "") -> str:
        """The absolute path or `s3://` URL of a key: what Delta, DuckDB and people use."""
        ...

    def storage_options(self) -> dict[str, str]:
        """Options under which `deltalake` opens tables below `url()`; empty locally."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFound`."""
        ...

    def exists(self, key: str) -> bool: ...

    def put(self, key: str, data: bytes) -> None:
        """Create or replace."""
        ...

    def put_exclusive(self, key: str, data: bytes) -> None:
        """Create.

        Raises:
            AlreadyExists: The key is taken, and not by this call.
            CommitOutcomeUnknown: Nobody can know whether the object was created.
            StoreUnavailable, TerminalError: It surely was not.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Create or replace from a local file, streamed."""
        ...

    def put_file_exclusive(self, key: str, path: Path) -> None:
        """Create from a local file, streamed; raises as `put_exclusive`."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file; the file appears whole or not at all."""
        ...

    def open(self, key: str) -> IO[bytes]:
        """A seekable binary reader; raises `NotFound`."""
        ...

    def open_range(self, key: str, start: int, stop: int) -> IO[bytes]:
        """A seekable reader that is good for the bytes from `start` to `stop`, at their places in the object.

        On S3 they come at once, in one request. An object that is shorter than `stop` ends where it ends.

        Raises:
            NotFound: There is no such object.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with the folder `prefix`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove; an absent key is not an error."""
        ...

    def sweep_staged(self, before: datetime) -> int:
        """Remove half-written files that killed processes left before then; returns how many."""
        ...


def open_store(settings: Settings, *, prefix: str = "") -> ObjectStore:
    """The store that `settings.store_url` names, rooted at its sub-folder `prefix`."""
    base = settings.store_url.rstrip("/")
    root = f"{base}/{prefix.strip('/')}" if prefix else base
    if root.startswith("s3://"):
        return S3Store(
            root,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            patience=s3_faults.PATIENCE,
        )
    if "://" in root:
        raise ConfigError(
            "is neither a folder nor an s3:// URL",
            which=f"PENSTOCK_STORE={root}",
            fix="use /path or s3://bucket/prefix",
        )
    return LocalStore(Path(root))


def _checked(key: str) -> str:
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or "\\" in key or "\0" in key:
        raise TerminalError(
            "is not a key inside the store", which=repr(key), fix="use a relative path without '..'"
        )
    return "" if str(path) == "." else str(path)


def _object_key(key: str) -> str:
    """`key`, checked to name an object and not the root."""
    checked = _checked(key)
    if not checked:
        raise TerminalError("names the store itself", which=repr(key), fix="use a key below it")
    return checked


def _source_file(path: Path) -> Path:
    if not path.is_file():
        raise NotFound("is not a file", which=str(path), fix="give a file that exists")
    return path


class LocalStore:
    """A folder on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def url(self, key: str = "") -> str:
        return str(self._path(key))

    def storage_options(self) -> dict[str, str]:
        return {}

    def get(self, key: str) -> bytes:
        with self.open(key) as file, _disk_errors(self.url(key)):
            return file.read()

    def exists(self, key: str) -> bool:
        with _disk_errors(self.url(key)):
            return self._path(key).is_file()

    def put(self, key: str, data: bytes) -> None:
        with self._staged(key, lambda file: file.write(data)) as (staged, target):
            staged.replace(target)
            _sync_folder(target.parent)

    def put_exclusive(self, key: str, data: bytes) -> None:
        with self._staged(key, lambda file: file.write(data)) as (staged, target):
            _link(staged, target)

    def put_file(self, key: str, path: Path) -> None:
        _source_file(path)
        with self._staged(key, lambda file: _copy_into(path, file)) as (staged, target):
            staged.replace(target)
            _sync_folder(target.parent)

    def put_file_exclusive(self, key: str, path: Path) -> None:
        _source_file(path)
        with self._staged(key, lambda file: _copy_into(path, file)) as (staged, target):
            _link(staged, target)

    def get_file(self, key: str, path: Path) -> None:
        with _staged_copy(path) as staged, self.open(key) as source, staged.open("wb") as target:
            shutil.copyfileobj(source, target)

    def open(self, key: str) -> IO[bytes]:
        return self._open(key, -1)

    def _open(self, key: str, buffering: int) -> IO[bytes]:
        try:
            return self._path(key).open("rb", buffering)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFound("does not exist", which=self.url(key)) from error
        except OSError as error:
            raise disk_error(error, self.url(key)) from error

    def open_range(self, key: str, start: int, stop: int) -> IO[bytes]:
        del start, stop  # what is read of a local file is what is asked for, without a buffer between
        return self._open(key, 0)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self._path(prefix)
        found: list[ObjectInfo] = []
        for parent, _, names in os.walk(folder, onerror=_refuse_unreadable):
            for name in names:
                if name.endswith(".part") and name.startswith("."):
                    continue
                path = Path(parent, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed while we walked
                    continue
                except OSError as error:
                    raise disk_error(error, str(path)) from error
                found.append(
                    ObjectInfo(
                        key=path.relative_to(self.root).as_posix(),
                        size_bytes=status.st_size,
                        modified_at_utc=datetime.fromtimestamp(status.st_mtime, UTC),
                    )
                )
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        try:
            self._path(_object_key(key)).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise disk_error(error, self.url(key)) from error

    def sweep_staged(self, before: datetime) -> int:
        count = 0
        for path in self.root.rglob(".*.part"):
            try:
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    count += 1
            except FileNotFoundError:  # its writer finished meanwhile
                continue
            except OSError as error:
                raise disk_error(error, str(path)) from error
        return count

    def _path(self, key: str) -> Path:
        return self.root / _checked(key)

    @contextmanager
    def _staged(self, key: str, write: Any) -> Iterator[tuple[Path, Path]]:
        target = self._path(_object_key(key))
        staged = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            yield staged, target
        except OSError as error:
            raise disk_error(error, self.url(key)) from error
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)


def _link(staged: Path, target: Path) -> None:
    try:
        os.link(staged, target)
    except FileExistsError as error:
        raise AlreadyExists("exists already", which=str(target)) from error
    try:
        _sync_folder(target.parent)
    except OSError as error:  # the object is there, and nobody can say whether it outlives a power cut
        raise CommitOutcomeUnknown(
            f"the disk failed after the object was created: {error.strerror}",
            which=str(target),
            fix="check the disk; then read the key: if it holds your bytes the create took effect",
        ) from error


@contextmanager
def _disk_errors(which: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, which) from error


def _refuse_unreadable(error: OSError) -> None:
    """A folder that cannot be listed is no empty folder; one that is not there is."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise disk_error(error, str(error.filename)) from error


@contextmanager
def _staged_copy(path: Path) -> Iterator[Path]:
    """A file beside `path` to copy into; it takes the place of `path` when the block ends well."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        staged.replace(path)
    except OSError as error:
        raise disk_error(error, str(path)) from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _copy_into(path: Path, file: IO[bytes]) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, file, length=1 << 20)


def _sync_folder(folder: Path) -> None:
    """Make a new directory entry durable: fsync of the file alone does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Store:
    """A bucket and prefix on S3 or a compatible server that honours conditional puts.

    Faults that may pass are waited for, as long as `patience` says; `tasks.core.s3_faults` has what each means.
    """

    def __init__(
        self,
        root: str,
        *,
        endpoint: str | None,
        region: str,
        patience: s3_faults.Patience = s3_faults.PATIENCE,
    ) -> None:
        self.root = root.rstrip("/")
        self._endpoint = endpoint
        self._region = region
        self._patience = patience

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, (self.root, self._endpoint, self._region, self._patience)

    @property
    def fs(self) -> Any:
        """The s3fs file system, made at first use: importing it costs what a local run need not pay."""
        return _file_system(self._endpoint, self._region, self._patience)

    def url(self, key: str = "") -> str:
        key = _checked(key)
        return f"{self.root}/{key}" if key else self.root

    def storage_options(self) -> dict[str, str]:
        options = {
            "aws_region": self._region,
            "aws_conditional_put": "etag",
            **self._patience.delta_options(),
        }
        if self._endpoint:
            options["aws_endpoint"] = self._endpoint
            options["aws_allow_http"] = str(self._endpoint.startswith("http://")).lower()
        return options

    def get(self, key: str) -> bytes:
        url = self.url(key)
        # One at a time: more would ask for the size first, a second request for each small object.
        data: bytes = self._patiently(url, lambda: self.fs.cat_file(url, max_concurrency=1))
        return data

    def exists(self, key: str) -> bool:
        url = self.url(key)
        if url == self.root:
            return False
        try:
            self._head(url)
        except NotFound:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        url = self.url(_object_key(key))
        self._patiently(url, lambda: self.fs.pipe_file(url, data))

    def put_exclusive(self, key: str, data: bytes) -> None:
        url = self.url(_object_key(key))
        self._create(url, lambda mark: self.fs.pipe_file(url, data, mode="create", Metadata=mark))

    def put_file(self, key: str, path: Path) -> None:
        url = self.url(_object_key(key))
        _source_file(path)
        with _disk_errors(str(path)):
            self._patiently(url, lambda: self.fs.put_file(str(path), url))

    def put_file_exclusive(self, key: str, path: Path) -> None:
        url = self.url(_object_key(key))
        _source_file(path)
        with _disk_errors(str(path)):
            self._create(url, lambda mark: self.fs.put_file(str(path), url, mode="create", Metadata=mark))

    def get_file(self, key: str, path: Path) -> None:
        url = self.url(key)
        with _staged_copy(path) as staged:
            self._patiently(url, lambda: self.fs.get_file(url, str(staged), max_concurrency=1))

    def open(self, key: str) -> IO[bytes]:
        url = self.url(key)
        file: IO[bytes] = self._patiently(url, lambda: self.fs.open(url, "rb"))
        if getattr(file, "details", {}).get("type") == "directory":
            raise NotFound("is a folder and no object", which=url)
        return io.BufferedReader(_PatientReader(file, url, self._patience), 1 << 16)

    def open_range(self, key: str, start: int, stop: int) -> IO[bytes]:
        url = self.url(key)
        data: bytes = self._patiently(url, lambda: self._range(url, start, stop))
        return io.BufferedReader(_HeldRange(data, start), 1 << 16)

    def _range(self, url: str, start: int, stop: int) -> bytes:
        try:
            data: bytes = self.fs.cat_file(url, start=start, end=stop)
        except Exception as error:
            if s3_faults.is_beyond_end(error):
                return b""
            raise
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        base = f"{self.root.removeprefix('s3://')}/"
        url = self.url(prefix)
        found: dict[str, Any] = self._patiently(url, lambda: self.fs.find(url, detail=True))
        for path in sorted(found):
            info = found[path]
            if (
                info.get("type") == "directory"
            ):  # s3fs answers so when the first object appears while it looks
                continue
            yield ObjectInfo(path.removeprefix(base), info["size"], info["LastModified"])

    def delete(self, key: str) -> None:
        url = self.url(_object_key(key))
        with suppress(NotFound):
            self._patiently(url, lambda: self.fs.rm_file(url))

    def sweep_staged(self, before: datetime) -> int:
        """Nothing: an unfinished upload is no object. Let the bucket abort multipart uploads after some days."""
        del before
        return 0

    def _patiently(self, url: str, call: Callable[[], _Answer]) -> _Answer:
        return s3_faults.patiently(url, call, patience=self._patience)

    def _head(self, url: str) -> dict[str, Any]:
        """Size, time and metadata of an object; raises `NotFound`."""
        bucket, name, _ = self.fs.split_path(url)
        # Not `isfile` or `info` of s3fs: the first takes every failure for an absent object.
        found: dict[str, Any] = self._patiently(
            url, lambda: self.fs.call_s3("head_object", Bucket=bucket, Key=name)
        )
        return found

    def _create(self, url: str, send: Callable[[dict[str, str]], object]) -> None:
        # A send whose answer is lost may be repeated, by us or unseen by the HTTP client, and then finds the object
        # of the first: the mark tells whose it is.
        mark = {"penstock-create": secrets.token_hex(16)}
        if not s3_faults.create_patiently(
            url,
            lambda: send(mark),
            is_ours=lambda: mark.items() <= self._head(url).get("Metadata", {}).items(),
            patience=self._patience,
        ):
            raise AlreadyExists("exists already", which=url)


_file_systems: dict[tuple[Any, ...], Any] = {}
_making_one = threading.Lock()


def _file_system(endpoint: str | None, region: str, patience: s3_faults.Patience) -> Any:
    """One client for all stores of a process at an endpoint: to make one takes a tenth of a second, and new connections.

    It is not inherited by a child that was forked: its event loop runs in a thread, which the child does not have.
    """
    key = (os.getpid(), endpoint, region, patience)
    with _making_one:
        if key not in _file_systems:
            import s3fs

            fs = s3fs.S3FileSystem(
                endpoint_url=endpoint,
                client_kwargs={"region_name": region},
                config_kwargs=patience.client_options(),
                use_listings_cache=False,
                skip_instance_cache=True,
            )
            fs.retries = 1  # `s3_faults` sends again, once for all layers
            _file_systems[key] = fs
        return _file_systems[key]


class _HeldRange(io.RawIOBase):
    """Bytes of an object that were read at once; they have their places in the object."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = memoryview(data)
        self._start = start
        self._stop = start + len(data)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stop}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at < self._start:
            raise OSError(f"byte {self._at} was not read: only {self._start} to {self._stop} were")
        data = self._data[self._at - self._start :][: len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _PatientReader(io.RawIOBase):
    """Reads an open object; a read that fails is tried again, and fails in our own class."""

    def __init__(self, file: IO[bytes], which: str, patience: s3_faults.Patience) -> None:
        self._file = file
        self._which = which
        self._patience = patience

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        # The place in the file moves only when a read succeeds, so it can be repeated.
        data = s3_faults.patiently(self._which, lambda: self._file.read(len(buffer)), patience=self._patience)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_s3(root: str, endpoint: str | None, region: str, patience: s3_faults.Patience) -> S3Store:
    return S3Store(root, endpoint=endpoint, region=region, patience=patience)


def store_now(store: ObjectStore) -> datetime:
    """The time by the clock that stamps the store's objects; asked by writing one. S3 leaves out the fraction of a second.

    Ages of objects are told by this clock alone: that of this machine may be hours ahead, and what is young would
    seem old.
    """
    folder = f"_probe/{secrets.token_hex(8)}"
    store.put(f"{folder}/now", b"now")
    try:
        found = next(store.list(folder), None)
    finally:
        with suppress(PenstockError):  # left behind it harms nobody
            store.delete(f"{folder}/now")
    if found is None:
        raise StoreUnavailable(
            "does not list an object that was just written", which=store.url(folder), fix="retry"
        )
    return found.modified_at_utc


def probe(store: ObjectStore, *, racers: int = 8) -> None:
    """Refuse a store whose exclusive create is not exclusive.

    Creates one key twice, then lets `racers` threads race for another; both must have one winner.

    Raises:
        ConfigError: The store let a second create through.
    """
    folder = f"_probe/{secrets.token_hex(8)}"

    def wins(key: str, data: bytes) -> bool:
        try:
            store.put_exclusive(key, data)
        except AlreadyExists:
            return False
        return True

    try:
        first, second = wins(f"{folder}/twice", b"1"), wins(f"{folder}/twice", b"2")
        with ThreadPoolExecutor(racers) as pool:
            won = sum(pool.map(lambda i: wins(f"{folder}/race", str(i).encode()), range(racers)))
        if not first or second or won != 1:
            raise ConfigError(
                f"does not honour exclusive create: {won} of {racers} racing creates succeeded, "
                f"second create {'succeeded' if second else 'was refused'}",
                which=store.url(),
                fix="use a local disk, AWS S3, or a compatible store with conditional puts (If-None-Match)",
            )
    finally:
        for name in ("twice", "race"):
            with suppress(PenstockError):  # the error above says more, and a probe left behind harms nobody
                store.delete(f"{folder}/{name}")
