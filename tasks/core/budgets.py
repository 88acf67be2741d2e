"""What a platform charges: `tenants/_prices.yaml` in the project folder; without it nothing has a price.

```yaml
currency: EUR
cpu_hour: 0.04           # of one CPU core
gpu_hour: 1.9            # of one GPU
read_gib: 0.01           # of a GiB (2**30 bytes) that is read; left out: reading has no price
written_gib: 0.02        # of a GiB that is written; left out: writing has none
stored_gib_month: 0.023  # of a GiB that is held for a month; left out: holding has none
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.settings import Settings
from tasks.core.tenant_files import read_record
from tasks.core.units import GIB

_Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(BaseModel):
    """What is charged, in one currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(min_length=1, max_length=8)
    cpu_hour: _Price
    gpu_hour: _Price
    read_gib: _Price | None = None
    """Of a GiB of source rows; None: reading has no price, which is not the price 0."""
    written_gib: _Price | None = None
    stored_gib_month: _Price | None = None

    def of(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """What so many seconds cost."""
        return (cpu_seconds * self.cpu_hour + gpu_seconds * self.gpu_hour) / 3600

    def of_read(self, size_bytes: int | None) -> float | None:
        """What reading so much costs; None where that has no price, or the size is not known."""
        return _cost(size_bytes, self.read_gib)

    def of_written(self, size_bytes: int | None) -> float | None:
        """What writing so much costs, as `of_read`."""
        return _cost(size_bytes, self.written_gib)


def _cost(size_bytes: int | None, gib: float | None) -> float | None:
    return None if size_bytes is None or gib is None else size_bytes / GIB * gib


def prices_file(settings: Settings) -> Path:
    return settings.project / "tenants" / "_prices.yaml"


def load_prices(settings: Settings) -> Prices | None:
    """The price table; None where there is none.

    Raises:
        ConfigError: The file is not YAML, or a field is missing, unknown or wrong.
    """
    return read_record(
        prices_file(settings), Prices, fix="give currency, cpu_hour and gpu_hour; docs/tenancy.md"
    )
