"""LitServe around the same scoring code: `serving_litserve.py PORT`, with the Python of `.penstock/venv-servers`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import litserve as ls  # noqa: E402
from serving import PATH  # noqa: E402
from serving_peers import MAX_BATCH, MAX_WAIT_S, Scoring  # noqa: E402


class Api(ls.LitAPI):  # type: ignore[misc]
    """Rows in, predictions out; LitServe gathers the batch."""

    def setup(self, device: Any) -> None:
        del device
        self.scoring = Scoring()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # a type would be a form to check
        return request["rows"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, requests: list[Any]) -> list[Any]:
        return self.scoring(requests)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_S, api_path=PATH)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
