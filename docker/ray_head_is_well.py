"""Whether Ray's head counts its own node among the living; exit code 0 when it does.

Its dashboard answers before that node has registered, for which Ray waits half a minute and then ends.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

TOKEN = Path("/run/secrets/ray_auth_token")
URL = "http://localhost:8265/nodes?view=summary"


def main(url: str = URL, token: Path = TOKEN) -> int:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token.read_text().strip()}"})
    with urllib.request.urlopen(asked, timeout=5) as answer:
        nodes = json.load(answer)["data"]["summary"]
    heads = [node["raylet"]["state"] for node in nodes if node["raylet"]["isHeadNode"]]
    return 0 if "ALIVE" in heads else 1


if __name__ == "__main__":
    sys.exit(main())
