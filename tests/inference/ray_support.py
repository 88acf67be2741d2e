"""A driver of its own on the Ray at `RAY_ADDRESS`: `ray_support.py RUN_ID LOADER`."""

from __future__ import annotations

import json
import logging
import sys

from inference_support import AUDIT

from tasks.core import PenstockError, Settings, load_pipeline
from tasks.inference import publish, run_plan


def main() -> None:
    import ray

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings.from_environment()
    spec = load_pipeline(settings, "toy")
    ray.init(address="auto", log_to_driver=True)
    try:
        try:
            report = run_plan(settings, spec, sys.argv[1], audit_table=AUDIT, load_model=sys.argv[2])
            publish(settings, spec, sys.argv[1])
            sys.stdout.write("RESULT " + json.dumps(report.to_json()) + "\n")
        except PenstockError as error:
            sys.stdout.write("RESULT " + json.dumps(error.as_record()) + "\n")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
