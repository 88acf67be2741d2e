"""Other servers around the same scoring code, each a process that `serving.py` starts: NAME PORT.

LitServe is in `serving_litserve.py`. Those here start a Ray of their own in child processes.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from serving import served  # noqa: E402 - its folder is not a package

MAX_BATCH, MAX_WAIT_S = 64, 0.002


class Scoring:
    """Rows of several requests, scored together."""

    def __init__(self) -> None:
        import torch

        self.model = served(1)
        torch.set_num_threads(1)

    def __call__(self, requests: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        signature = self.model.signature
        rows = [signature.read(row, "") for request in requests for row in request]
        scores = self.model.score(signature.table(rows))
        pairs = iter(zip(scores.prediction_ids, scores.scores.tolist(), strict=True))
        return [
            {
                "predictions": [
                    {"prediction_id": identifier, "score": score, "model_version": 1}
                    for identifier, score in (next(pairs) for _ in request)
                ]
            }
            for request in requests
        ]


def own_ray() -> str:
    """Let Ray start one of this process's own; where its session lies until the end."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    os.environ.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="ps-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["RAY_TMPDIR"] = folder
    return folder


def ray_batch(port: int) -> None:
    """Ray Serve's own batching in one replica."""
    import ray
    from ray import serve
    from starlette.responses import JSONResponse

    folder = own_ray()
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=folder)
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    @serve.deployment(max_ongoing_requests=1000)
    class Model:
        def __init__(self) -> None:
            self.scoring = Scoring()

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_WAIT_S)
        async def score(self, requests: list[Any]) -> list[Any]:
            return self.scoring(requests)

        async def __call__(self, request: Any) -> Any:
            if request.method == "GET":
                return "ready"
            return JSONResponse(await self.score((await request.json())["rows"]))

    serve.run(Model.bind())
    _until_told()
    serve.shutdown()
    ray.shutdown()


def penstock_ray(port: int) -> None:
    """`penstock serve --ray` with one replica."""
    from tasks.core import Settings
    from tasks.serving import Scale, ServingLimits
    from tasks.wiring import serve_on_ray

    own_ray()
    serve_on_ray(
        Settings.from_environment(),
        "toy",
        port=port,
        limits=ServingLimits(default_timeout_s=30.0),
        scale=Scale(max_replicas=1),
        audit=False,
        address="local",
    )


def _until_told() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    {"ray-batch": ray_batch, "penstock-ray": penstock_ray}[sys.argv[1]](int(sys.argv[2]))
