"""Publish the audit store's data contract: write docs/contracts from the code.

Run it after a change of `AuditRecord` or of the audit table: `.penstock/venv/bin/python scripts/contract.py`. A test
fails until it was run. It refuses what breaks a published document: docs/audit.md has the rule.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tasks.audit.contract import ContractBroken, publish

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "contracts"


def main() -> None:
    try:
        changed = publish(FOLDER)
    except ContractBroken as error:
        sys.exit(str(error))
    lines = [f"wrote docs/contracts/{name}" for name in changed] or ["the published contract is up to date"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
