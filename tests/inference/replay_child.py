"""Replay a run's dead letters and die by SIGKILL at a named point: `replay_child.py RUN_ID POINT NTH`."""

from __future__ import annotations

import sys

from crash_child import die_at
from inference_support import AUDIT

from tasks.core import Settings, load_pipeline
from tasks.inference import replay


def main() -> None:
    run_id, point, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
    die_at(point, nth)
    settings = Settings.from_environment()
    spec = load_pipeline(settings, "toy")
    replay(
        settings, spec, run_id, local=True, audit_table=AUDIT, load_model="test_inference_replay:load_healed"
    )


if __name__ == "__main__":
    main()
