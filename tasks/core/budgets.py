"""What a platform charges: `tenants/_prices.yaml` in the project folder; without it nothing has a price.

```yaml
currency: EUR
cpu_hour: 0.04     # of one CPU core
gpu_hour: 1.9      # of one GPU
```
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.settings import Settings
from tasks.core.tenant_files import read_record


class Prices(BaseModel):
    """Prices of an hour, in one currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(min_length=1, max_length=8)
    cpu_hour: float = Field(ge=0)
    gpu_hour: float = Field(ge=0)

    def of(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """What so many seconds cost."""
        return (cpu_seconds * self.cpu_hour + gpu_seconds * self.gpu_hour) / 3600


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
