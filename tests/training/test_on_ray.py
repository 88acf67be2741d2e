"""The same training through Ray Train on a local Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from training_support import fit_here, load, model_source

from tasks.core import PipelineSpec, open_store
from tasks.core.cpu_share import take_own_share
from tasks.core.errors import PipelineCodeError, ServiceUnavailable, TerminalError
from tasks.training.on_ray import fit_on_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    # Ray Train gives its actors an environment, and so none of the workers that Ray would start before they are asked for.
    os.environ.update(
        RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_prestart_worker_first_driver="0"
    )
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_worker_is_replaced_and_ray_ends_with_the_weights_of_an_undisturbed_process(
    settings, toy, snapshot, local_ray, tmp_path: Path
) -> None:
    data = load(settings, toy, snapshot)
    marker = tmp_path / "killed"
    source = (
        "import os, pathlib, signal\nfrom tasks.model import TabularMLP\n"
        "class Mortal(TabularMLP):\n"
        "    def train(self, mode=True):\n"
        "        self.epochs = getattr(self, 'epochs', 0) + int(mode)\n"
        f"        marker = pathlib.Path({str(marker)!r})\n"
        "        if self.epochs == 4 and not marker.exists():\n"
        "            marker.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().train(mode)\n"
        "def build(spec):\n    return Mortal(spec)\n"
    )
    given = {"training_id": "k", "model_source": source, "model_origin": "model.py"}
    found = fit_on_ray(settings, toy, data, **given)
    plain = fit_here(
        settings, toy, data, training_id="p", model_source=model_source(settings), model_origin="m"
    )
    assert marker.exists()
    assert all(torch.equal(found.state_dict[name], plain.state_dict[name]) for name in plain.state_dict)
    assert fit_on_ray(settings, toy, data, **given).history == found.history  # found, not fitted again


def test_two_workers_share_a_training(settings, toy, snapshot, local_ray) -> None:
    data = load(settings, toy, snapshot)
    two = toy.model_copy(update={"training": toy.training.model_copy(update={"workers": 2})})
    given = {"model_source": model_source(settings), "model_origin": "model.py"}
    found = fit_on_ray(settings, two, data, training_id="two", **given)
    plain = fit_here(settings, toy, data, training_id="one", **given)
    assert found.history[-1].tuning_loss == pytest.approx(plain.history[-1].tuning_loss, abs=0.05)


def test_an_error_in_the_worker_reaches_the_driver_whole_and_is_not_retried(
    settings, toy, snapshot, local_ray
) -> None:
    data = load(settings, toy, snapshot)
    source = (
        "from tasks.model import TabularMLP\nclass Bad(TabularMLP):\n    def forward(self, x):\n"
        "        if self.training:\n            raise ValueError('in the worker')\n        return super().forward(x)\n"
        "def build(spec):\n    return Bad(spec)\n"
    )
    with pytest.raises(PipelineCodeError) as caught:
        fit_on_ray(settings, toy, data, training_id="bad", model_source=source, model_origin="model.py")
    assert "model.py:5" in str(caught.value)
    assert not [
        o.key for o in open_store(settings, prefix=toy.prefix).list("training/bad") if "error" in o.key
    ]


def test_workers_that_ray_has_no_room_for_are_given_up_with_what_they_need_and_what_there_is(
    settings, toy, snapshot, local_ray
) -> None:
    asked = toy.training.model_copy(update={"workers": 5, "placement_timeout_s": 2.0})
    five = toy.model_copy(update={"training": asked})
    given = {"model_source": model_source(settings), "model_origin": "model.py"}
    says = "has not placed its 5 workers \\(limit 2 s\\): each needs 1 CPU on one node; the whole cluster has {'CPU': 4.0"
    with pytest.raises(ServiceUnavailable, match=says):
        fit_on_ray(settings, five, load(settings, toy, snapshot), training_id="five", **given)


def test_a_worker_that_takes_more_memory_than_its_own_ends_with_limit_and_figure_and_its_neighbour_stays(
    settings, toy, snapshot, local_ray
) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Neighbour:
        """Holds a GiB, and says of itself who it is."""

        def __init__(self) -> None:
            self.held = torch.ones((1 << 30) // 4)

        def well(self) -> tuple[int, float]:
            return os.getpid(), float(self.held.sum())

    neighbour = Neighbour.remote()
    before = ray.get(neighbour.well.remote())
    source = (
        "import torch\nfrom tasks.model import TabularMLP\nclass Hungry(TabularMLP):\n    full = False\n    def forward(self, x):\n"
        "        if not Hungry.full:\n            assert torch.ones((3 << 30) // 4)[-1] == 1\n            Hungry.full = True\n"
        "        return super().forward(x)\n"
        "def build(spec):\n    return Hungry(spec)\n"
    )
    data = load(settings, toy, snapshot)
    given = {"model_source": source, "model_origin": "model.py"}

    def within(gib: float) -> PipelineSpec:
        asked = toy.training.model_copy(update={"memory_gib_per_worker": gib, "epochs": 1})
        return toy.model_copy(update={"training": asked})

    says = r"needs more memory than its 3 GiB \(training.memory_gib_per_worker\): .*can't allocate memory"
    with pytest.raises(TerminalError, match=says):
        fit_on_ray(settings, within(3.0), data, training_id="hungry", **given)
    assert fit_on_ray(settings, within(6.0), data, training_id="fed", **given).history, "so much it may take"
    assert ray.get(neighbour.well.remote()) == before


def test_workers_on_ray_have_a_share_of_the_cpus_of_their_own(local_ray) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        def share(self) -> tuple[int, bool, str, int]:
            taken = take_own_share()
            return os.getpid(), taken, Path("/proc/self/autogroup").read_text(), os.getpgid(0)

    if not take_own_share_works():
        pytest.skip(
            "needs a Linux that divides CPUs between sessions: kernel.sched_autogroup_enabled=1 un-skips it"
        )
    workers = [Worker.remote() for _ in range(2)]
    found = ray.get([worker.share.remote() for worker in workers])
    assert all(taken and group == pid for pid, taken, _, group in found)
    groups = {shown for _, _, shown, _ in found}
    assert len(groups) == 2 and Path("/proc/self/autogroup").read_text() not in groups
    pids = [pid for pid, *_ in found]
    for worker in workers:
        ray.kill(worker)
    assert (
        psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)[1]
        == []
    )


def take_own_share_works() -> bool:
    switch = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return switch.is_file() and switch.read_text().strip() == "1"
