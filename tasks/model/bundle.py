"""A model bundle: everything that turns source rows into predictions, as one immutable folder tree.

| file | content |
|---|---|
| `bundle.json` | the manifest: versions, network shape, calibration, SHA-256 of every other file |
| `pipeline.json` | the pipeline's spec as it was trained |
| `features.py`, `model.py` | the user's code, run from here and never from the pipeline folder |
| `encoder.json` | means, deviations, vocabularies, training frequencies (the attribution baseline) |
| `weights.pt` | state dict; loaded with `weights_only=True` |
| `golden.parquet` | source rows (no outcomes), their encoded matrix and predictions, replayed at load |
| `profile_spec.json`, `reference_profiles.json` | histograms' edges, and one profile for each training and validation day, with attributions of some rows |

The bundle's digest is the SHA-256 over all (path, SHA-256) pairs, the manifest's included. It is recorded in
the registry and checked at every fetch, and each file is checked again when it is read (I9).
"""

from __future__ import annotations

import io
import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DigestMismatch, NotFound, TerminalError
from tasks.core.ids import canonical_json, digest_bytes, digest_tree
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec
from tasks.model.encoder import FeatureEncoder
from tasks.model.feature_code import FeatureCode
from tasks.model.network_spec import NetworkSpec
from tasks.model.profile import Profile, ProfileSpec

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "bundle.json"
FORMAT = 1
GOLDEN_ROWS = 256
ENCODED_COLUMN = "penstock_encoded"
SCORE_COLUMN = "penstock_score"


@dataclass(frozen=True)
class Calibration(JsonRecord):
    """Platt scaling: `probability = sigmoid(slope * logit + intercept)`."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class BundleManifest(JsonRecord):
    """`bundle.json`."""

    pipeline: str
    training_id: str
    snapshot_id: str
    feature_version: str
    network: NetworkSpec
    calibration: Calibration
    label_rate: float
    """Share of positive labels in the training rows."""
    train_first_day: date
    train_last_day: date
    validation_first_day: date
    created_at_utc: str
    background_id: str
    """Identity of the attribution baseline: 16 hex digits over the encoder's means and frequencies and the weights."""
    frameworks: dict[str, str] = field(default_factory=dict)
    """Versions that trained it."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file by relative path."""
    format: int = FORMAT


def background_id(encoder: FeatureEncoder, weights: bytes) -> str:
    """Identity of an attribution baseline: it moves with the training averages and with the embeddings."""
    frequencies = [column.frequencies for column in encoder.categorical]
    return digest_bytes(canonical_json([encoder.baseline_numeric, frequencies, digest_bytes(weights)]))[:16]


def weights_bytes(state_dict: Mapping[str, Tensor]) -> bytes:
    """A state dict as `weights.pt` holds it; equal tensors give equal bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}, buffer)
    return buffer.getvalue()


def write_bundle(
    folder: Path,
    *,
    manifest: BundleManifest,
    spec: PipelineSpec,
    feature_code: FeatureCode,
    model_source: str,
    encoder: FeatureEncoder,
    weights: bytes,
    golden: pa.Table,
    profile_spec: ProfileSpec,
    reference: Mapping[date, Profile],
) -> str:
    """Write a bundle's files into `folder` (created; must be empty) and return its digest.

    Args:
        manifest: Without `files`, which is filled in here.
        golden: `golden_table(...)`.
        weights: `weights_bytes(...)`.
        reference: One profile for each training and validation day, with this model's scores.
    """
    profiles = {day.isoformat(): profile.to_json() for day, profile in sorted(reference.items())}
    buffer = io.BytesIO()
    pq.write_table(golden, buffer, compression="zstd")
    contents = {
        "pipeline.json": spec.model_dump_json(indent=1).encode(),
        "features.py": feature_code.source.encode(),
        "model.py": model_source.encode(),
        "encoder.json": canonical_json(encoder.to_json()),
        "weights.pt": weights,
        "golden.parquet": buffer.getvalue(),
        "profile_spec.json": canonical_json(profile_spec.to_json()),
        "reference_profiles.json": canonical_json(profiles),
    }
    digests = {name: digest_bytes(data) for name, data in contents.items()}
    record = {**manifest.to_json(), "files": digests}
    contents[MANIFEST] = json.dumps(record, indent=1, sort_keys=True).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return _tree_digest(digests, contents[MANIFEST])


def golden_table(rows: pa.Table, encoded: Any, scores: Any) -> pa.Table:
    """Golden rows: source rows without outcomes, encoded matrix `[n, width]` and predictions `[n]`."""
    flat = pa.array(encoded.reshape(-1), pa.float32())
    return rows.append_column(
        ENCODED_COLUMN, pa.FixedSizeListArray.from_arrays(flat, encoded.shape[1])
    ).append_column(SCORE_COLUMN, pa.array(scores, pa.float32()))


def upload_bundle(store: ObjectStore, folder: Path) -> str:
    """Copy a bundle to `bundles/<digest>/` of the pipeline's store and return the digest.

    The manifest goes last, by exclusive create: a reader sees the whole bundle or none. Uploading an equal
    bundle again changes nothing.
    """
    manifest = (folder / MANIFEST).read_bytes()
    files: dict[str, str] = json.loads(manifest)["files"]
    digest = _tree_digest(files, manifest)
    prefix = f"bundles/{digest}"
    if store.exists(f"{prefix}/{MANIFEST}"):
        return digest
    for name in files:
        store.put_file(f"{prefix}/{name}", folder / name)
    with suppress(
        AlreadyExists
    ):  # then an equal bundle was uploaded at the same time: the digest is the name
        store.put_exclusive(f"{prefix}/{MANIFEST}", manifest)
    return digest


def fetch_bundle(store: ObjectStore, digest: str, cache_dir: Path) -> Bundle:
    """The bundle `digest`, from `cache_dir/bundles/<digest>` or the pipeline's store, verified whole.

    Safe for any number of processes: each downloads to a folder of its own and renames it into place. A
    damaged cached copy is replaced.

    Raises:
        NotFound: The store holds no such bundle.
        DigestMismatch: The store's copy differs from `digest`; the file is named.
    """
    home = cache_dir / "bundles" / digest
    if home.is_dir():
        try:
            return Bundle(home, digest).verified()
        except DigestMismatch:
            _discard(home)
    staged = home.with_name(f".{digest[:16]}.{secrets.token_hex(6)}.part")
    try:
        _download(store, digest, staged)
        Bundle(staged, digest, shown_as=store.url(f"bundles/{digest}")).verified()
        try:
            staged.rename(home)
        except OSError:
            if not home.is_dir():
                raise
        return Bundle(home, digest).verified()
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _download(store: ObjectStore, digest: str, folder: Path) -> None:
    prefix = f"bundles/{digest}"
    try:
        manifest = store.get(f"{prefix}/{MANIFEST}")
    except NotFound as error:
        raise NotFound(
            "the store holds no such model bundle",
            which=store.url(prefix),
            fix="check PENSTOCK_STORE and the bundle digest; train again if it was deleted",
        ) from error
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(manifest)
    for name in _manifest_files(manifest, digest, store.url(prefix)):
        try:
            store.get_file(f"{prefix}/{name}", folder / name)
        except NotFound as error:
            raise _damaged("is missing", store.url(f"{prefix}/{name}")) from error


def _discard(home: Path) -> None:
    """Move a damaged copy away first, so that no other process meets it half deleted."""
    trash = home.with_name(f".{home.name[:16]}.{secrets.token_hex(6)}.trash")
    try:
        home.rename(trash)
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def _tree_digest(files: Mapping[str, str], manifest: bytes) -> str:
    return digest_tree([*files.items(), (MANIFEST, digest_bytes(manifest))])


def _manifest_files(manifest: bytes, digest: str, where: str) -> dict[str, str]:
    """The manifest's file list, once its tree digest is proved to be `digest`."""
    try:
        files: dict[str, str] = dict(json.loads(manifest)["files"])
        found = _tree_digest(files, manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged("is not a bundle manifest", f"{where}/{MANIFEST}") from error
    if found != digest:
        raise _damaged(f"the bundle's digest is {found}, not {digest}", f"{where}/{MANIFEST}")
    for name in files:
        if PurePosixPath(name).is_absolute() or len(PurePosixPath(name).parts) != 1 or name in ("..", "."):
            raise _damaged(f"lists the unsafe path {name!r}", f"{where}/{MANIFEST}")
    return files


def _damaged(what: str, which: str) -> DigestMismatch:
    return DigestMismatch(
        what,
        which=which,
        fix="nothing was loaded; restore the bundle from a backup, or roll back to another model version",
    )


class Bundle:
    """One model bundle in a local folder. Nothing is read before it is asked for.

    Every read checks the file's SHA-256 against the manifest, and the manifest against `digest`.
    """

    def __init__(self, folder: Path, digest: str, *, shown_as: str | None = None) -> None:
        self.folder = folder
        self.digest = digest
        self._shown = shown_as or str(folder)

    @classmethod
    def at(cls, folder: Path) -> Bundle:
        """The bundle in `folder`, for whom wrote it just now: the digest is computed, not checked."""
        manifest = (folder / MANIFEST).read_bytes()
        return cls(folder, _tree_digest(json.loads(manifest)["files"], manifest)).verified()

    def verified(self) -> Bundle:
        """This bundle after checking every file. Raises `DigestMismatch` naming the one that differs."""
        for name in self._files:
            self.read(name)
        return self

    def read(self, name: str) -> bytes:
        """A file's content, checked. Raises `DigestMismatch`."""
        expected = self._files.get(name)
        if expected is None:
            raise NotFound("is not a file of this bundle", which=f"{self._shown}/{name}")
        try:
            data = (self.folder / name).read_bytes()
        except FileNotFoundError as error:
            raise _damaged("is missing", f"{self._shown}/{name}") from error
        found = digest_bytes(data)
        if found != expected:
            raise _damaged(f"has SHA-256 {found}, the manifest says {expected}", f"{self._shown}/{name}")
        return data

    @cached_property
    def _manifest_bytes(self) -> bytes:
        try:
            data = (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError as error:
            raise _damaged("is missing", f"{self._shown}/{MANIFEST}") from error
        _manifest_files(data, self.digest, self._shown)
        return data

    @cached_property
    def _files(self) -> dict[str, str]:
        return _manifest_files(self._manifest_bytes, self.digest, self._shown)

    @cached_property
    def manifest(self) -> BundleManifest:
        raw = json.loads(self._manifest_bytes)
        if raw.get("format") != FORMAT:
            raise TerminalError(
                f"has bundle format {raw.get('format')}, this release reads {FORMAT}",
                which=f"{self._shown}/{MANIFEST}",
                fix="use the release that trained it, or train again",
            )
        return BundleManifest.from_json(raw)

    @cached_property
    def spec(self) -> PipelineSpec:
        """The pipeline as it was trained."""
        # A bundle outlives releases: fields that another one knew say nothing about this model.
        return PipelineSpec.model_validate_json(self.read("pipeline.json"), extra="ignore")

    @cached_property
    def encoder(self) -> FeatureEncoder:
        return FeatureEncoder.from_json(json.loads(self.read("encoder.json")))

    @cached_property
    def feature_code(self) -> FeatureCode:
        return FeatureCode(self.read("features.py").decode(), origin=str(self.folder / "features.py"))

    @property
    def model_source(self) -> str:
        return self.read("model.py").decode()

    @cached_property
    def profile_spec(self) -> ProfileSpec:
        return ProfileSpec.from_json(json.loads(self.read("profile_spec.json")))

    @cached_property
    def reference_profiles(self) -> dict[date, Profile]:
        """One profile for each training and validation day, in day order."""
        raw = json.loads(self.read("reference_profiles.json"))
        return {
            date.fromisoformat(day): Profile.from_json(self.profile_spec, item)
            for day, item in sorted(raw.items())
        }

    @cached_property
    def golden(self) -> pa.Table:
        """Golden rows: source columns, then `penstock_encoded` and `penstock_score`."""
        return pq.read_table(pa.BufferReader(self.read("golden.parquet")))

    def state_dict(self) -> dict[str, Any]:
        """The weights, on the CPU; nothing but tensors is unpickled."""
        import torch

        loaded: dict[str, Any] = torch.load(
            io.BytesIO(self.read("weights.pt")), map_location="cpu", weights_only=True
        )
        return loaded
