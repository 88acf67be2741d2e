"""What a platform charges: `tenants/_prices.yaml` in the project folder; without it nothing has a price.

```yaml
currency: EUR
cpu_hour: 0.04     # of one CPU core
gpu_hour: 1.9      # of one GPU
```
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.errors import ConfigError
from tasks.core.settings import Settings


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
    path = prices_file(settings)
    if not path.is_file():
        return None
    try:
        return Prices.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", which=str(path), fix="correct that line") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg']}" for item in error.errors()
        ]
        raise ConfigError(
            "; ".join(problems), which=str(path), fix="give currency, cpu_hour and gpu_hour; docs/tenancy.md"
        ) from error
