"""What a user's model.py may build, and how its mistakes are told."""

from __future__ import annotations

import pytest
import torch

from tasks.core.errors import PipelineCodeError
from tasks.model import NetworkSpec, TabularMLP, build_network

SPEC = NetworkSpec(numeric=3, cardinalities=(4, 2), embedding_dims=(3, 2), hidden=(8, 4), dropout=0.1)


def test_the_mlp_maps_a_matrix_to_one_logit_a_row_through_embed_and_head() -> None:
    network = TabularMLP(SPEC).eval()
    x = torch.rand(5, 5).floor()
    assert network(x).shape == (5,)
    assert network.embed(x).shape == (5, 8)
    assert torch.equal(network.head(network.embed(x)), network(x))
    assert network.layout == ((0, 1), (1, 2), (2, 3), (3, 6), (6, 8))


def test_a_network_without_categories_or_hidden_layers_works() -> None:
    network = TabularMLP(NetworkSpec(numeric=2, cardinalities=(), embedding_dims=(), hidden=(), dropout=0.0))
    assert network(torch.zeros(4, 2)).shape == (4,)


def test_the_mlp_exports_with_a_dynamic_batch() -> None:
    network = TabularMLP(SPEC).eval()
    program = torch.export.export(
        network, (torch.zeros(4, 5),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    ).module()
    x = torch.rand(33, 5)
    assert torch.equal(program(x), network(x))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def build(spec):\n    raise RuntimeError('no')\n", "model.py:2"),
        ("def make(spec):\n    pass\n", "must define the function build(spec)"),
        ("def build(spec):\n    return 3\n", "returned int"),
        (
            "from torch import nn\ndef build(spec):\n    return nn.Linear(spec.width, 1)\n",
            "forward(x) must map [n, 5] to logits [n]; for n = 3 it returned (3, 1)",
        ),
        (
            "from torch import nn\nclass M(nn.Module):\n    def forward(self, x):\n        return x.nothing\n"
            "def build(spec):\n    return M()\n",
            "model.py:4",
        ),
        ("import torch\nthis is not python\n", "model.py:2"),
    ],
)
def test_a_faulty_model_file_is_refused_with_file_and_line(source: str, says: str) -> None:
    with pytest.raises(PipelineCodeError) as caught:
        build_network(source, SPEC, origin="model.py")
    assert says in str(caught.value) and caught.value.which.startswith("model.py")


def test_a_network_spec_from_before_the_linear_path_builds_the_network_of_then() -> None:
    raw = SPEC.to_json()
    del raw["wide"]
    then = TabularMLP(NetworkSpec.from_json(raw))
    assert not any(name.startswith("wide") for name in then.state_dict())
    now = TabularMLP(NetworkSpec.from_json({**raw, "wide": True}))
    assert {name for name in now.state_dict() if name.startswith("wide")} == {"wide.weight", "wide.bias"}
