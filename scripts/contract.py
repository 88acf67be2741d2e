"""Publish the data contracts of the audit store and of the delivery API: write docs/contracts from the code.

Run it after a change of `AuditRecord`, of the audit table or of the delivery API's records: `.penstock/venv/bin/python scripts/contract.py`. A test
fails until it was run. It refuses what breaks a published document: docs/audit.md has the rule.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tasks.audit.contract import ContractBroken, documents, publish
from tasks.wiring.delivery_contract import delivery_documents

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "contracts"


def main() -> None:
    try:
        changed = publish(FOLDER, {**documents(), **delivery_documents()})
    except ContractBroken as error:
        sys.exit(str(error))
    lines = [f"wrote docs/contracts/{name}" for name in changed] or ["the published contract is up to date"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
