"""What a new interpreter imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


def imported_by(code: str, *modules: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Which of the modules a new interpreter has imported once it has run `code`, which must not fail.

    Args:
        env: Its environment, where that is not this process's.
    """
    program = f"import sys\n{code}\nprint(*[name for name in {modules!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
