"""The network: an embedding for each category, then a small MLP. Any torch.nn.Module of the same shape will do.

`build` is called with the number of numeric features and the size of each category. The module maps the
encoded matrix, float32 [rows, features], to one logit a row.
"""

from torch import nn

from tasks.model import NetworkSpec, TabularMLP


def build(spec: NetworkSpec) -> nn.Module:
    return TabularMLP(spec)
