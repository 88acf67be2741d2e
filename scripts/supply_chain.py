"""What Penstock is made of: known vulnerabilities, a bill of materials, and the licences of every locked package.

`supply_chain.py audit` (`make audit`), `supply_chain.py sbom` (`make sbom`), `supply_chain.py licences`, which writes
docs/licences.md. A test fails while that page is not the locks'.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation.load_process import licence_of

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "requirements.txt": "What an installation has",
    "requirements-dev.txt": "What tests, lint and the book need besides",
}
PAGE = ROOT / "docs" / "licences.md"
SBOM = ROOT / ".penstock" / "sbom.json"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", re.M)
_ASKS = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|GNU|Mozilla|Eclipse)", re.I)
_UNREACHABLE = 75
_SHOWN = 10
_INTRO = """# Licences

Every package of the locks with the licence that it states of itself: its SPDX expression, else its classifiers, else its licence field. Made by `scripts/supply_chain.py licences`; a test fails when it is not the locks'.
Penstock itself is under Apache-2.0 (`LICENSE`).
"""


@dataclass(frozen=True)
class Package:
    """One line of a lock."""

    name: str
    version: str
    licence: str
    """Empty when it states none."""


def pinned(lock: str) -> dict[str, str]:
    """Name and version of each line of a lock."""
    return dict(_PIN.findall((ROOT / lock).read_text(encoding="utf-8")))


def packages(lock: str) -> Iterator[Package]:
    """Every package of a lock with its licence, from the environment that was installed from it.

    Raises:
        SystemExit: The environment is not the lock's.
    """
    for name, version in pinned(lock).items():
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(
                f"{name} of {lock} is not installed.\n  Fix: make lint, which installs the locks, then run this again"
            )
        found = metadata["Version"].partition("+")[0]
        if found != version:
            sys.exit(
                f"{lock} pins {name} {version}, and {found} is installed.\n  Fix: install the lock, then run this again"
            )
        yield Package(name, version, licence_of(metadata))


def licences() -> str:
    """The page of licences."""
    parts = [_INTRO]
    for lock, title in LOCKS.items():
        found = sorted(packages(lock), key=lambda one: one.name.lower())
        unknown = [one.name for one in found if not one.licence]
        asking = [f"{one.name} ({one.licence})" for one in found if _ASKS.search(one.licence)]
        said = f"{len(found)} packages of `{lock}`."
        said += f" State no licence: {', '.join(unknown)}." if unknown else " Each states a licence."
        if asking:
            said += f"\n\nLicences that ask something of whoever passes the package on, changed or linked: {'; '.join(asking)}."
        rows = [f"| {one.name} | {one.version} | {_cell(one.licence) or '**not stated**'} |" for one in found]
        parts += [
            f"## {title}\n\n{said}\n",
            "\n".join(["| package | version | licence |", "|---|---|---|", *rows, ""]),
        ]
    return "\n".join(parts)


def sbom(target: Path = SBOM) -> None:
    """The lock of an installation as a CycloneDX 1.6 document, checked against its schema, the same for the same lock."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bom = Bom(
        components=[
            Component(name=name, version=version, purl=url, bom_ref=str(url))
            for name, version in pinned("requirements.txt").items()
            for url in [PackageURL("pypi", name=name, version=version)]
        ]
    )
    bom.metadata.component = Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=project["version"],
        description=project["description"],
        licenses=[LicenseFactory().make_with_id(project["license"])],
        bom_ref=project["name"],
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    text = json.loads(JsonV1Dot6(bom).output_as_string())
    del text["serialNumber"], text["metadata"]["timestamp"]  # chance and the hour are not the lock's
    document = json.dumps(text, indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    if wrong is not None:
        sys.exit(f"The bill of materials is no CycloneDX 1.6: {wrong}\n  Fix: see what it says of the lock")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{document}\n", encoding="utf-8")


def audit(arguments: Iterable[str] = ()) -> int:
    """Ask the vulnerability service about every package of both locks; 0 none is known, 1 some are, 75 it was not told.

    A package that could not be looked up is no pass: without an answer pip-audit itself ends with 0.
    """
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json"]
    for lock in LOCKS:
        command += ["--requirement", lock]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return _unreachable(f"pip-audit did not answer: {last[0]}")
    return judged(found)


def judged(found: list[dict[str, Any]]) -> int:
    """Say what pip-audit found; returns the exit code."""
    skipped = [one["name"] for one in found if "skip_reason" in one]
    bad = [one for one in found if one.get("vulns")]
    for one in bad:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            _say(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    if bad:
        _say(
            f"{len(bad)} of {len(found)} packages have known vulnerabilities.\n  Fix: raise them in requirements*.in, then `make lock`"
        )
        return 1
    if skipped or not found:
        names = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
        return _unreachable(f"{len(skipped)} of {len(found)} packages could not be looked up: {names}")
    _say(f"{len(found)} packages, no known vulnerability")
    return 0


def _unreachable(what: str) -> int:
    _say(
        f"{what}\n  Fix: run it where the vulnerability service is reachable (a proxy: HTTPS_PROXY; another service: "
        "scripts/supply_chain.py audit --vulnerability-service osv). Nothing was judged"
    )
    return _UNREACHABLE


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb == "audit":
        sys.exit(audit(sys.argv[2:]))
    elif verb == "sbom":
        sbom()
        _say(f"wrote {SBOM.relative_to(ROOT)}")
    elif verb == "licences":
        PAGE.write_text(licences(), encoding="utf-8")
    else:
        sys.exit("say one of: audit, sbom, licences")
