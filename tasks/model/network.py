"""Networks: the tabular MLP, and the check of whatever a user's `model.py` builds."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tasks.core.errors import PipelineCodeError
from tasks.model.network_spec import NetworkSpec
from tasks.model.user_code import blaming, execute

_OUTPUT_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


class TabularMLP(nn.Module):  # type: ignore[misc]
    """Embeddings of the categorical codes beside the numeric columns, then a ReLU network to one logit.

    With `spec.wide` a linear path runs beside it and makes logistic regression the floor: the layers only have to learn what it cannot say
    (Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems").

    `forward(x)` is `head(embed(x))`; attributions are computed between the two, where every input is
    continuous. `layout[i]` is the range of embedding columns that encoded column `i` becomes.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = nn.ModuleList(
            nn.Embedding(codes, width)
            for codes, width in zip(spec.cardinalities, spec.embedding_dims, strict=True)
        )
        widths = [1] * spec.numeric + list(spec.embedding_dims)
        stops = [sum(widths[: index + 1]) for index in range(len(widths))]
        self.layout = tuple((stop - width, stop) for stop, width in zip(stops, widths, strict=True))
        layers: list[nn.Module] = []
        before = sum(widths)
        for units in spec.hidden:
            layers += [nn.Linear(before, units), nn.ReLU(), nn.Dropout(spec.dropout)]
            before = units
        self.layers = nn.Sequential(*layers, nn.Linear(before, 1))
        self.wide = nn.Linear(sum(widths), 1) if spec.wide else None

    def embed(self, x: Tensor) -> Tensor:
        """Encoded matrix `[n, width]` to the continuous `[n, D]`."""
        parts = [x[:, : self.spec.numeric]]
        for index, embedding in enumerate(self.embeddings):
            parts.append(embedding(x[:, self.spec.numeric + index].long()))
        return torch.cat(parts, dim=1)

    def head(self, embedded: Tensor) -> Tensor:
        """Logits `[n]` of `[n, D]`."""
        logits: Tensor = self.layers(embedded)
        if self.wide is not None:
            logits = logits + self.wide(embedded)
        return logits.squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 `[n]`, of the encoded matrix, float32 `[n, width]`."""
        return self.head(self.embed(x))


class CalibratedNetwork(nn.Module):  # type: ignore[misc]
    """A network and its calibration as one module: probabilities `[n]`; this is what MLflow serves."""

    def __init__(self, network: nn.Module, slope: float, intercept: float) -> None:
        super().__init__()
        self.network = network
        self.slope = slope
        self.intercept = intercept

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.network(x) * self.slope + self.intercept)


def build_network(source: str, spec: NetworkSpec, *, origin: str) -> nn.Module:
    """Run a `model.py` and check the module that its `build(spec)` returns.

    Args:
        source: Text of the file.
        spec: What `build` is called with.
        origin: The file's name, for errors.

    Raises:
        PipelineCodeError: The file or `build` raised, `build` is missing, it returned something else than a
            module, or the module does not map `[n, width]` to `[n]` logits; file and line are named.
    """
    build = getattr(execute(source, origin), "build", None)
    if not callable(build):
        raise PipelineCodeError(
            "must define the function build(spec)",
            which=origin,
            fix="write def build(spec: NetworkSpec) -> nn.Module",
        )
    with blaming(origin, "build(spec)"):
        network = build(spec)
    if not isinstance(network, nn.Module):
        raise PipelineCodeError(
            f"build(spec) returned {type(network).__name__}", which=origin, fix="return a torch.nn.Module"
        )
    was_training = network.training
    network.eval()
    for rows in (3, 1):
        with blaming(origin, "forward(x)"), torch.no_grad():
            logits = network(torch.zeros(rows, spec.width))
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (rows,):
            raise PipelineCodeError(
                f"forward(x) must map [n, {spec.width}] to logits [n]; for n = {rows} it returned {found}",
                which=origin,
                fix="squeeze the last dimension: return logits.squeeze(-1)",
            )
        if not logits.is_floating_point():
            raise PipelineCodeError(
                f"forward(x) returned {logits.dtype}", which=origin, fix="return floating-point logits"
            )
    _check_outputs(network, spec, origin)
    network.train(was_training)
    return network


def output_names(network: nn.Module, width: int) -> tuple[str, ...]:
    """Names of what a module computes beside its logit, sorted; none unless it has `outputs`.

    Args:
        network: In evaluation mode, on a CPU.
        width: Columns of the encoded matrix.
    """
    if not callable(getattr(network, "outputs", None)):
        return ()
    with torch.no_grad():
        return tuple(sorted(network.outputs(torch.zeros(1, width))))


def _check_outputs(network: nn.Module, spec: NetworkSpec, origin: str) -> None:
    if not callable(getattr(network, "outputs", None)):
        return
    for rows in (3, 1):
        with blaming(origin, "outputs(x)"), torch.no_grad():
            found = network.outputs(torch.zeros(rows, spec.width))
        if not isinstance(found, Mapping):
            raise PipelineCodeError(
                f"outputs(x) returned {type(found).__name__}",
                which=origin,
                fix="return {name: tensor of [n]}",
            )
        bad = [name for name in found if not (isinstance(name, str) and _OUTPUT_NAME.fullmatch(name))]
        if bad:
            raise PipelineCodeError(
                f"outputs(x) returned the names {bad}",
                which=origin,
                fix="use lower-case letters, digits and _, a letter first: they become columns",
            )
        for name, values in found.items():
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            if shape != (rows,) or not values.is_floating_point():
                raise PipelineCodeError(
                    f"outputs(x)[{name!r}] must be floats of [n]; for n = {rows} it is {shape}",
                    which=origin,
                    fix="return one floating-point number for each row",
                )
