"""What a user's `model.py` is told about the network to build."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.records import JsonRecord


@dataclass(frozen=True)
class NetworkSpec(JsonRecord):
    """The shape of the encoded matrix and the wishes of `pipeline.yaml`."""

    numeric: int
    """Leading numeric columns of the encoded matrix: standardised features, then their null indicators."""
    cardinalities: tuple[int, ...]
    """Codes of each categorical column after them; code 0 stands for null and unseen."""
    embedding_dims: tuple[int, ...]
    hidden: tuple[int, ...]
    dropout: float
    wide: bool = False
    """Whether a linear path runs beside the layers. Absent in bundles from before it existed: a bundle's model.py
    builds on Penstock's classes, so every change to them hangs on a field here whose default is the old way."""

    @property
    def width(self) -> int:
        """Columns of the encoded matrix."""
        return self.numeric + len(self.cardinalities)
