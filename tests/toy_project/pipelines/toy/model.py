"""The toy pipeline's network: Penstock's tabular MLP."""

from torch import nn

from tasks.model import NetworkSpec, TabularMLP


def build(spec: NetworkSpec) -> nn.Module:
    return TabularMLP(spec)
