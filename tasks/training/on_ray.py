"""Runs the training loop as a Ray Train job of `training.workers` workers.

Workers get store keys, not data: the encoded matrices lie in the store under `training/<training_id>/`, and
the fitted network and checkpoints come back the same way. So a worker may run on any node, and a driver that
was killed finds everything when it is started again.
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.core.cpu_share import take_own_share
from tasks.core.errors import (
    OutOfMemory,
    PenstockError,
    PipelineCodeError,
    ServiceUnavailable,
    TerminalError,
    TransientError,
    error_from_record,
)
from tasks.core.memory_limit import limit_memory, out_of_memory, ran_out_of_memory
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.units import GIB
from tasks.model.network_spec import NetworkSpec
from tasks.training.dataset import Part, TrainingData
from tasks.training.fit import Checkpoints, Fitted

logger = logging.getLogger(__name__)

_START_FAILURES = 0
"""Ray counts a gang that it has not placed in time among these, and would try again without end."""
_WORKER_FAILURES = 2
"""A worker that dies (killed, out of memory) is replaced this often; it continues from the checkpoint."""


_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # the usage report would leave this machine
    "RAY_TRAIN_V2_ENABLED": "1",
    # It logs an error at every start. A preempted worker counts as a dead one, and a retry resumes.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller notices the end of a short training sooner
}


def fit_on_ray(
    settings: Settings,
    spec: PipelineSpec,
    data: TrainingData,
    *,
    training_id: str,
    model_source: str,
    model_origin: str,
) -> Fitted:
    """Train on the Ray that this process is connected to, or on a local one; returns what was already fitted.

    Raises:
        PipelineCodeError: model.py fails.
        TerminalError: The loss is not finite.
        ServiceUnavailable: Ray has not placed the workers within `training.placement_timeout_s`.
        TransientError: Workers kept dying, or Ray failed.
    """
    store = open_store(settings, prefix=spec.prefix)
    checkpoints = Checkpoints(store, training_id)
    done = checkpoints.load_fitted()
    if done is not None:
        logger.info("this training was fitted before; it is not fitted again")
        return done
    attempt = f"{training_id}-{secrets.token_hex(4)}"
    error_key = f"training/{training_id}/error-{attempt}.json"
    _put_parts(store, training_id, data)
    config = {
        "environment": settings.as_environment(),
        "prefix": spec.prefix,
        "training_id": training_id,
        "training": spec.training.model_dump(mode="json"),
        "network": data.network.to_json(),
        "model_source": model_source,
        "model_origin": model_origin,
        "error_key": error_key,
        "memory_gib": spec.training.memory_gib_per_worker,
    }
    try:
        _run_trainer(settings, spec, config, attempt)
        if store.exists(error_key):
            raise error_from_record(json.loads(store.get(error_key)))
    finally:
        store.delete(error_key)
    fitted = checkpoints.load_fitted()
    if fitted is None:
        raise TransientError(
            "Ray Train ended without a fitted network",
            which=f"training {training_id}",
            fix="run it again: it continues from its last epoch; the Ray job's log says more",
        )
    return fitted


def _run_trainer(settings: Settings, spec: PipelineSpec, config: dict[str, Any], attempt: str) -> None:
    # Importing torch on a busy small machine takes its time; a gang that cannot be placed would wait for ever.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{spec.training.placement_timeout_s:g}"
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    if not ray.is_initialized():
        ray.init(configure_logging=False, log_to_driver=True)
    training = spec.training
    resources = {"CPU": 1.0}
    if training.gpus_per_worker:
        resources["GPU"] = training.gpus_per_worker
    if training.memory_gib_per_worker:
        resources["memory"] = training.memory_gib_per_worker * GIB
    logger.info(
        "fitting on Ray: %d worker(s), each %s",
        training.workers,
        ", ".join(f"{amount:g} {name}" for name, amount in resources.items()),
    )
    scratch = settings.home / "ray_train"

    class AskedByPlacement(FixedScalingPolicy):  # type: ignore[misc]
        """Tells no coordinator of autoscaling what the workers need: their placement group tells Ray's autoscaler."""

        def _send_resource_request(self) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """Without three actors that start beside the workers, each with all imports of Ray Train or Ray Data.

        One hands out datasets of Ray Data, of which there are none. One frees the workers' places when the trainer has died
        and the job goes on, but ours ends with it, which frees them. One weighs what trainings and datasets ask the autoscaler
        for, and stays when the job has ended.
        """

        def _create_default_callbacks(self) -> list[Any]:
            unused = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [made for made in super()._create_default_callbacks() if not isinstance(made, unused)]

        def _initialize_and_run_controller(self, **given: Any) -> Any:
            policy = AskedByPlacement(self.scaling_config)
            return super()._initialize_and_run_controller(**{**given, "scaling_policy": policy})

    trainer = Trainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(scratch),
            failure_config=FailureConfig(
                max_failures=_WORKER_FAILURES, controller_failure_limit=_START_FAILURES
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise _unplaced(spec, config["training_id"], resources) from error
        lines = str(error).strip().splitlines()
        raise TransientError(
            f"the training workers failed: {lines[-1] if lines else 'no reason given'}",
            which=f"training {config['training_id']}",
            fix="run it again: it continues from its last epoch; if memory ran out, lower training.batch_rows",
        ) from error
    finally:
        _remove_scratch(scratch / attempt)


def _unplaced(spec: PipelineSpec, training_id: str, each: dict[str, float]) -> ServiceUnavailable:
    import ray

    total, free = (
        {name: round(found.get(name, 0.0), 2) for name in ("CPU", "GPU")}
        for found in (ray.cluster_resources(), ray.available_resources())
    )
    needs = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    return ServiceUnavailable(
        f"Ray has not placed its {spec.training.workers} workers (limit {spec.training.placement_timeout_s:g} s): each needs "
        f"{needs} on one node; the whole cluster has {total}, of which {free} are free",
        which=f"training {training_id}",
        fix="wait for other jobs, add nodes, or lower training.workers and gpus_per_worker; then run it again",
    )


def _remove_scratch(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _worker(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker.

    A terminal error is written to the store and the worker ends well: Ray would otherwise start it again, and
    it would fail again.
    """
    ours = logging.getLogger("tasks")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
    settings = Settings.from_environment(config["environment"])
    store = open_store(settings, prefix=config["prefix"])
    try:
        if config["memory_gib"]:
            limit_memory(config["memory_gib"], field="training.memory_gib_per_worker")
        take_own_share()
        with _memory_told(config):
            _fit_here(store, config)
    except TerminalError as error:
        store.put(config["error_key"], json.dumps(error.as_record()).encode())


@contextmanager
def _memory_told(config: dict[str, Any]) -> Iterator[None]:
    """An allocation that fails ends the training, wherever in it that was: a repeat would come to the same."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        told = (
            error
            if isinstance(error, OutOfMemory)
            else out_of_memory(error, which=f"training {config['training_id']}", doing="a worker")
        )
        fix = f"{told.fix}; it goes on from its last epoch"
        raise TerminalError(told.what, which=told.which, fix=fix) from error


def _fit_here(store: ObjectStore, config: dict[str, Any]) -> None:
    import ray.train.torch
    import torch
    from torch import nn

    from tasks.core.spec import TrainingSpec
    from tasks.model.network import build_network
    from tasks.model.user_code import line_of
    from tasks.training.fit import fit_network

    context = ray.train.get_context()
    peers = _Group(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    training = TrainingSpec.model_validate(config["training"])
    spec = NetworkSpec.from_json(config["network"])
    checkpoints = Checkpoints(store, config["training_id"])
    torch.manual_seed(training.seed)
    network = build_network(config["model_source"], spec, origin=config["model_origin"])

    def wrap(module: nn.Module) -> nn.Module:
        prepared: nn.Module = ray.train.torch.prepare_model(module)
        return prepared

    origin = config["model_origin"]
    try:
        fitted = fit_network(
            network,
            _get_part(store, config["training_id"], "fit"),
            _get_part(store, config["training_id"], "tuning"),
            training,
            checkpoints,
            peers=peers,
            device=str(device),
            wrap=wrap if peers.size > 1 else lambda module: module,
        )
    except PenstockError:
        raise
    except Exception as error:
        where = line_of(error, origin)
        if where == origin:  # not a line of model.py: Ray, the store or the machine, which may pass
            raise
        raise PipelineCodeError(
            f"training raised {type(error).__name__}: {error}", which=where, fix="correct that line"
        ) from error
    if peers.rank == 0:
        checkpoints.save_fitted(fitted)


@dataclass(frozen=True)
class _Group:
    """The torch process group that Ray Train made."""

    rank: int
    size: int

    def mean(self, value: float) -> float:
        import torch.distributed

        if self.size == 1:
            return value
        tensor = self._tensor(value)
        torch.distributed.all_reduce(tensor)
        return float(tensor) / self.size

    def agree(self, value: bool) -> bool:
        import torch.distributed

        if self.size == 1:
            return value
        tensor = self._tensor(float(value))
        torch.distributed.broadcast(tensor, src=0)
        return bool(tensor)

    def _tensor(self, value: float) -> Any:
        import ray.train.torch
        import torch

        return torch.tensor(value, dtype=torch.float64, device=ray.train.torch.get_device())


def _part_key(training_id: str, name: str) -> str:
    return f"training/{training_id}/{name}.npz"


def _put_parts(store: ObjectStore, training_id: str, data: TrainingData) -> None:
    for name, part in (("fit", data.fit), ("tuning", data.tuning)):
        buffer = io.BytesIO()
        np.savez(buffer, x=part.x, y=part.y)
        store.put(_part_key(training_id, name), buffer.getvalue())


def _get_part(store: ObjectStore, training_id: str, name: str) -> Part:
    with np.load(io.BytesIO(store.get(_part_key(training_id, name))), allow_pickle=False) as arrays:
        return Part(arrays["x"], arrays["y"])


def clear_parts(store: ObjectStore, training_id: str) -> None:
    """Remove the matrices of a finished training."""
    for name in ("fit", "tuning"):
        store.delete(_part_key(training_id, name))
