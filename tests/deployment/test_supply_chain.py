"""What Penstock is made of: the page of licences, the bill of materials, and an audit that does not pass unasked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def supply_chain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_chain", ROOT / "scripts" / "supply_chain.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_licences_is_that_of_the_locks(supply_chain: ModuleType) -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    assert page == supply_chain.licences(), "run .penstock/venv/bin/python scripts/supply_chain.py licences"
    for lock in supply_chain.LOCKS:
        pinned = supply_chain.pinned(lock)
        assert len(pinned) == sum(
            "==" in line for line in (ROOT / lock).read_text().splitlines() if line[:1].isalnum()
        )
        for name, version in pinned.items():
            assert f"| {name} | {version} |" in page


def test_every_locked_file_has_its_digests(supply_chain: ModuleType) -> None:
    hashed = supply_chain.pinned("requirements-hashes.txt")
    assert hashed == {
        name: version for name, version in supply_chain.pinned("requirements.txt").items() if name != "torch"
    }, "run make lock"
    for lock in ("requirements-hashes.txt", "requirements-dev.txt", "requirements-s3.txt"):
        text = (ROOT / lock).read_text()
        followed = re.findall(r"(?m)^([A-Za-z0-9._-]+)\S* \\\n    --hash=sha256:[0-9a-f]{64}", text)
        assert followed == list(supply_chain.pinned(lock)), "run make lock"


def test_a_package_that_states_no_licence_is_named(
    supply_chain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = supply_chain.licence_of
    monkeypatch.setattr(
        supply_chain, "licence_of", lambda metadata: "" if metadata["Name"] == "rich" else real(metadata)
    )
    page = supply_chain.licences()
    said = next(line for line in page.splitlines() if "State no licence:" in line or "Each states" in line)
    assert "rich" in said and "**not stated**" in page


def test_an_environment_that_is_not_the_locks_is_refused(
    supply_chain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply_chain, "pinned", lambda _: {"rich": "0.0.1"})
    with pytest.raises(SystemExit, match=r"pins rich 0\.0\.1, and .* is installed"):
        supply_chain.licences()
    monkeypatch.setattr(supply_chain, "pinned", lambda _: {"no-such-package-here": "1"})
    with pytest.raises(SystemExit, match="is not installed"):
        supply_chain.licences()


def test_the_bill_of_materials_names_every_locked_package_and_is_the_same_each_time(
    supply_chain: ModuleType, tmp_path: Path
) -> None:
    supply_chain.sbom(tmp_path / "sbom.json")
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert "serialNumber" not in made and "timestamp" not in made["metadata"]
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "penstock"
    found = {(one["name"], one["version"]) for one in made["components"]}
    assert found == set(supply_chain.pinned("requirements.txt").items())


def test_nothing_that_development_needs_makes_every_process_slow_to_start(supply_chain: ModuleType) -> None:
    """jsonschema, and so Ray and Airflow, would import it at each start, and it makes a grammar for a second and more."""
    for lock in supply_chain.LOCKS:
        assert "rfc3987-syntax" not in supply_chain.pinned(lock), (
            "jsonschema[format-nongpl] is asked for: by whom?"
        )


def test_an_audit_without_the_service_is_no_pass(supply_chain: ModuleType) -> None:
    """The real pip-audit, behind a proxy that is not there."""
    dead = "http://127.0.0.1:9"
    env = {**os.environ, "HTTPS_PROXY": dead, "HTTP_PROXY": dead, "https_proxy": dead, "http_proxy": dead}
    env |= {"NO_PROXY": "", "no_proxy": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "supply_chain.py", "audit", "--timeout", "2"],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 75, done.stdout
    assert "Nothing was judged" in done.stdout and "Fix:" in done.stdout


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages, no known vulnerability"),
        ([{"name": "a", "skip_reason": "not found"}], 75, "1 of 1 packages could not be looked up: a"),
        ([], 75, "could not be looked up"),
        (
            [
                {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]},
                {"name": "b", "skip_reason": "not found"},
            ],
            1,
            "a 1: PYSEC-1, fixed in 1.1",
        ),
    ],
)
def test_an_audit_says_what_is_known_and_what_could_not_be_asked(
    supply_chain: ModuleType,
    found: list[dict[str, Any]],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert supply_chain.judged(found) == code
    assert said in capsys.readouterr().out
