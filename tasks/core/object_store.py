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

import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from tasks.core.errors import (
    CommitOutcomeUnknown,
    ConfigError,
    NotFound,
    StoreUnavailable,
    TerminalError,
    TransientError,
)
from tasks.core.settings import Settings


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
        """Create; raises `AlreadyExists` when the key is taken, `CommitOutcomeUnknown` when nobody can know."""
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
        return S3Store(root, endpoint=settings.s3_endpoint, region=settings.s3_region)
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
        with self.open(key) as file:
            return file.read()

    def exists(self, key: str) -> bool:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            with self.open(key) as source, staged.open("wb") as target:
                shutil.copyfileobj(source, target)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)

    def open(self, key: str) -> IO[bytes]:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFound("does not exist", which=self.url(key)) from error
        except OSError as error:
            raise _local_error(error, self.url(key)) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self._path(prefix)
        found: list[ObjectInfo] = []
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".part") and name.startswith("."):
                    continue
                path = Path(parent, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed while we walked
                    continue
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
            raise _local_error(error, self.url(key)) from error

    def sweep_staged(self, before: datetime) -> int:
        count = 0
        for path in self.root.rglob(".*.part"):
            try:
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    count += 1
            except FileNotFoundError:  # its writer finished meanwhile
                continue
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
            raise _local_error(error, self.url(key)) from error
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)


def _link(staged: Path, target: Path) -> None:
    try:
        os.link(staged, target)
    except FileExistsError as error:
        raise AlreadyExists("exists already", which=str(target)) from error
    _sync_folder(target.parent)


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


def _local_error(error: OSError, which: str) -> TerminalError | TransientError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreUnavailable(
            "the disk is full", which=which, fix="free space, then retry: nothing was committed"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return TerminalError(
            "cannot be read or written", which=which, fix="give this user read and write access to the store"
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return TerminalError(
            f"a file or folder of another kind is in the way: {error.filename2 or error.filename}",
            which=which,
            fix="move it away, or use another store folder",
        )
    return StoreUnavailable(
        f"the disk failed: {error.strerror}", which=which, fix="retry; if it persists, check the disk"
    )


class S3Store:
    """A bucket and prefix on S3 or a compatible server that honours conditional puts."""

    def __init__(self, root: str, *, endpoint: str | None, region: str) -> None:
        self.root = root.rstrip("/")
        self._endpoint = endpoint
        self._region = region
        self._fs: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, (self.root, self._endpoint, self._region)

    @property
    def fs(self) -> Any:
        """The s3fs file system, made at first use: importing it costs what a local run need not pay."""
        with self._lock:
            if self._fs is None:
                import s3fs

                self._fs = s3fs.S3FileSystem(
                    endpoint_url=self._endpoint,
                    client_kwargs={"region_name": self._region},
                    use_listings_cache=False,
                    skip_instance_cache=True,
                )
            return self._fs

    def url(self, key: str = "") -> str:
        key = _checked(key)
        return f"{self.root}/{key}" if key else self.root

    def storage_options(self) -> dict[str, str]:
        options = {"aws_region": self._region, "aws_conditional_put": "etag"}
        if self._endpoint:
            options["aws_endpoint"] = self._endpoint
            options["aws_allow_http"] = str(self._endpoint.startswith("http://")).lower()
        return options

    def get(self, key: str) -> bytes:
        with _s3_errors(self.url(key)):
            data: bytes = self.fs.cat_file(self.url(key))
            return data

    def exists(self, key: str) -> bool:
        with _s3_errors(self.url(key)):
            # `exists` of s3fs is also true of a folder, which is no object.
            return bool(self.fs.isfile(self.url(key)))

    def put(self, key: str, data: bytes) -> None:
        url = self.url(_object_key(key))
        with _s3_errors(url):
            self.fs.pipe_file(url, data)

    def put_exclusive(self, key: str, data: bytes) -> None:
        self._create(key, lambda: self.fs.pipe_file(self.url(key), data, mode="create"))

    def put_file(self, key: str, path: Path) -> None:
        url = self.url(_object_key(key))
        _source_file(path)
        with _s3_errors(url):
            self.fs.put_file(str(path), url)

    def put_file_exclusive(self, key: str, path: Path) -> None:
        _source_file(path)
        self._create(key, lambda: self.fs.put_file(str(path), self.url(key), mode="create"))

    def get_file(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            with _s3_errors(self.url(key)):
                self.fs.get_file(self.url(key), str(staged))
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)

    def open(self, key: str) -> IO[bytes]:
        with _s3_errors(self.url(key)):
            file: IO[bytes] = self.fs.open(self.url(key), "rb")
        if getattr(file, "details", {}).get("type") == "directory":
            raise NotFound("is a folder and no object", which=self.url(key))
        return file

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        base = f"{self.root.removeprefix('s3://')}/"
        with _s3_errors(self.url(prefix)):
            found: dict[str, Any] = self.fs.find(self.url(prefix), detail=True)
        for path in sorted(found):
            info = found[path]
            if (
                info.get("type") == "directory"
            ):  # s3fs answers so when the first object appears while it looks
                continue
            yield ObjectInfo(path.removeprefix(base), info["size"], info["LastModified"])

    def delete(self, key: str) -> None:
        url = self.url(_object_key(key))
        with _s3_errors(url):
            try:
                self.fs.rm_file(url)
            except FileNotFoundError:
                return

    def sweep_staged(self, before: datetime) -> int:
        """Nothing: an unfinished upload is no object. Let the bucket abort multipart uploads after some days."""
        del before
        return 0

    def _create(self, key: str, create: Any) -> None:
        which = self.url(_object_key(key))
        for attempt in range(6):
            try:
                create()
                return
            except FileExistsError as error:
                raise AlreadyExists("exists already", which=which) from error
            except OSError as error:
                if error.errno == errno.EINVAL:  # 412 Precondition Failed, as s3fs reports it
                    raise AlreadyExists("exists already", which=which) from error
                if error.errno == errno.EBUSY:  # 409: another create of this key is under way
                    time.sleep(0.05 * 2**attempt)
                    continue
                if isinstance(error, FileNotFoundError | PermissionError):
                    raise _s3_error(error, which) from error
                raise _unknown(error, which) from error
            except Exception as error:
                if not _is_botocore(error):
                    raise
                if _lacks_credentials(error):
                    raise _s3_error(error, which) from error
                # Even a refused connection proves nothing: it may be the answer to a repeated send.
                raise _unknown(error, which) from error
        raise StoreUnavailable("other creates of this key kept conflicting", which=which, fix="retry")


def _open_s3(root: str, endpoint: str | None, region: str) -> S3Store:
    return S3Store(root, endpoint=endpoint, region=region)


@contextmanager
def _s3_errors(which: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # botocore's own errors (no connection, no credentials) are not OSErrors.
        if not isinstance(error, OSError) and not _is_botocore(error):
            raise
        raise _s3_error(error, which) from error


def _is_botocore(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError

    return isinstance(error, BotoCoreError)


def _lacks_credentials(error: Exception) -> bool:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    return isinstance(error, NoCredentialsError | PartialCredentialsError)


def _unknown(error: Exception, which: str) -> CommitOutcomeUnknown:
    return CommitOutcomeUnknown(
        f"the store failed while the object was being created: {error}",
        which=which,
        fix="read the key: if it holds your bytes the create took effect, else retry",
    )


def _s3_error(error: Exception, which: str) -> TerminalError | TransientError:
    if isinstance(error, FileNotFoundError):
        return NotFound("does not exist", which=which, fix="check the bucket and prefix in PENSTOCK_STORE")
    if isinstance(error, PermissionError) or _lacks_credentials(error):
        return TerminalError(
            f"access was denied: {error}", which=which, fix="check the credentials and the bucket policy"
        )
    return StoreUnavailable(
        f"S3 failed: {error}", which=which, fix="retry; if it persists, check the endpoint"
    )


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
            store.delete(f"{folder}/{name}")
