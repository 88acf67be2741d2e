"""Bundles: whole or not at all, and never a byte other than what the digest names."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from children import at_once

from tasks.core import Settings, open_store
from tasks.core.errors import DigestMismatch, NotFound
from tasks.core.ids import digest_file
from tasks.model import Bundle, fetch_bundle, upload_bundle


def test_a_bundle_comes_back_from_the_store_as_it_was_written(make_bundle, settings: Settings) -> None:
    bundle, store = make_bundle(), open_store(settings, prefix="default/toy")
    assert upload_bundle(store, bundle.folder) == bundle.digest
    fetched = fetch_bundle(store, bundle.digest, settings.cache_dir)
    assert fetched.manifest == bundle.manifest
    assert fetched.encoder == bundle.encoder
    assert fetched.spec == bundle.spec
    assert fetched.feature_code.version == bundle.manifest.feature_version
    assert list(fetched.reference_profiles) == [date(2024, 1, 3)]
    assert fetched.reference_profiles[date(2024, 1, 3)] == bundle.reference_profiles[date(2024, 1, 3)]
    assert fetched.folder == settings.cache_dir / "bundles" / bundle.digest
    assert sorted(path.name for path in fetched.folder.parent.iterdir()) == [bundle.digest]


def test_a_bundle_of_a_release_with_other_settings_can_still_be_read(make_bundle) -> None:
    bundle = make_bundle()
    trained = bundle.spec
    spec = json.loads(bundle.read("pipeline.json"))
    spec["explanations"]["setting_of_another_release"] = 14
    spec["section_of_another_release"] = {"a": 1}
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    (bundle.folder / "pipeline.json").write_text(json.dumps(spec))
    manifest["files"]["pipeline.json"] = digest_file(bundle.folder / "pipeline.json")
    (bundle.folder / "bundle.json").write_text(json.dumps(manifest))
    assert Bundle.at(bundle.folder).spec == trained


def test_equal_content_has_an_equal_digest_and_other_weights_another(make_bundle) -> None:
    assert make_bundle(seed=1).digest == make_bundle(seed=1).digest != make_bundle(seed=2).digest


def test_uploading_twice_changes_nothing(make_bundle, settings: Settings) -> None:
    bundle, store = make_bundle(), open_store(settings)
    upload_bundle(store, bundle.folder)
    before = list(store.list("bundles"))
    upload_bundle(store, bundle.folder)
    assert list(store.list("bundles")) == before


def test_an_upload_that_died_before_the_manifest_is_not_a_bundle(make_bundle, settings: Settings) -> None:
    bundle, store = make_bundle(), open_store(settings)
    upload_bundle(store, bundle.folder)
    store.delete(f"bundles/{bundle.digest}/bundle.json")
    with pytest.raises(NotFound, match="no such model bundle"):
        fetch_bundle(store, bundle.digest, settings.cache_dir)
    upload_bundle(store, bundle.folder)
    assert fetch_bundle(store, bundle.digest, settings.cache_dir).digest == bundle.digest


FILES = (
    "bundle.json",
    "encoder.json",
    "features.py",
    "golden.parquet",
    "model.py",
    "pipeline.json",
    "profile_spec.json",
    "reference_profiles.json",
    "weights.pt",
)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_the_store_is_refused_and_the_file_is_named(
    make_bundle, settings: Settings, name: str
) -> None:
    bundle, store = make_bundle(), open_store(settings)
    upload_bundle(store, bundle.folder)
    key = f"bundles/{bundle.digest}/{name}"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(DigestMismatch) as caught:
        fetch_bundle(store, bundle.digest, settings.cache_dir)
    assert caught.value.which == store.url(key)
    assert not (settings.cache_dir / "bundles" / bundle.digest).exists()


def test_every_file_of_a_bundle_is_covered_by_the_test_above(make_bundle) -> None:
    assert tuple(sorted(path.name for path in make_bundle().folder.iterdir())) == FILES


def test_a_missing_file_in_the_store_is_named(make_bundle, settings: Settings) -> None:
    bundle, store = make_bundle(), open_store(settings)
    upload_bundle(store, bundle.folder)
    store.delete(f"bundles/{bundle.digest}/weights.pt")
    with pytest.raises(DigestMismatch, match=r"weights\.pt"):
        fetch_bundle(store, bundle.digest, settings.cache_dir)


def test_a_damaged_cached_copy_is_replaced_from_the_store(make_bundle, settings: Settings) -> None:
    bundle, store = make_bundle(), open_store(settings)
    upload_bundle(store, bundle.folder)
    cached = fetch_bundle(store, bundle.digest, settings.cache_dir)
    (cached.folder / "model.py").write_text("raise SystemExit\n")
    again = fetch_bundle(store, bundle.digest, settings.cache_dir)
    assert again.model_source == bundle.model_source


def test_a_file_changed_after_the_check_is_refused_when_it_is_read(make_bundle) -> None:
    bundle = make_bundle()
    (bundle.folder / "features.py").write_text('FEATURE_VERSION = "evil"\n')
    with pytest.raises(DigestMismatch, match=r"features\.py"):
        _ = bundle.feature_code


def test_a_manifest_that_points_outside_the_bundle_is_refused(
    make_bundle, settings: Settings, tmp_path: Path
) -> None:
    import json

    from tasks.core.ids import digest_bytes, digest_tree

    manifest = json.dumps({"files": {"../../escape": "0" * 64}}).encode()
    digest = digest_tree([("../../escape", "0" * 64), ("bundle.json", digest_bytes(manifest))])
    store = open_store(settings)
    store.put(f"bundles/{digest}/bundle.json", manifest)
    with pytest.raises(DigestMismatch, match="unsafe path"):
        fetch_bundle(store, digest, settings.cache_dir)


def test_processes_that_fetch_at_once_all_get_the_whole_bundle(make_bundle, settings: Settings) -> None:
    bundle = make_bundle()
    upload_bundle(open_store(settings), bundle.folder)
    digest = bundle.digest

    def fetched() -> str:
        return fetch_bundle(open_store(settings), digest, settings.cache_dir).model_source

    found = at_once(*[fetched] * 4)
    assert found == [bundle.model_source] * 4
    assert [path.name for path in (settings.cache_dir / "bundles").iterdir()] == [bundle.digest]
