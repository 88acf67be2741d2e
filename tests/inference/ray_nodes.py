"""Runs on two Ray nodes, of which each run loses one in the middle of its work: `ray_nodes.py RUN_ID RUN_ID`."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from inference_support import AUDIT

from tasks.core import PenstockError, Settings, load_pipeline, open_store
from tasks.inference import pool, publish, run_plan
from tasks.inference.records import committed_shards


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pool._NODE_NEWS_S = 2.0  # no node comes back here, so it need not be waited for as long
    settings = Settings.from_environment()
    toy = load_pipeline(settings, "toy")
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    store = open_store(settings, prefix=toy.prefix)

    def losing(node: Any, run_id: str) -> dict[str, Any]:
        """The run's report, or its error, and how many shards it had when the node went."""
        inference = toy.inference.model_copy(update={"min_workers": 2, "max_workers": 2, "shard_attempts": 1})
        spec = toy.model_copy(update={"inference": inference})
        taken: list[int] = []
        over = threading.Event()

        def take_it_away() -> None:
            while len(committed_shards(store, run_id)) < 2:
                if over.wait(0.02):
                    return
            cluster.remove_node(node, allow_graceful=False)
            taken.append(len(committed_shards(store, run_id)))
            # The first workers may take their time on a busy machine; after the last node none comes. The model is frozen.
            inference.__dict__["placement_timeout_s"] = 5.0

        thread = threading.Thread(target=take_it_away)
        thread.start()
        try:
            report = run_plan(
                settings, spec, run_id, audit_table=AUDIT, load_model="ray_failures:load_unhurried"
            )
        except PenstockError as error:
            return error.as_record()
        finally:
            over.set()
            thread.join()
        publish(settings, spec, run_id)
        return {**report.to_json(), "taken_at": taken[0]}

    try:
        for node, run_id in zip(nodes, sys.argv[1:], strict=True):
            sys.stdout.write("RESULT " + json.dumps(losing(node, run_id)) + "\n")
            sys.stdout.flush()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
