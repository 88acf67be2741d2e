"""Which half of 2013 `monitor_decisions.py` trains and calibrates on, and which it monitors: the year as it was, or turned around.

Turned, everything from January to June comes 52 weeks later, after December. Weekdays stay, and so does daylight saving time, which began on 10 March 2013
and on 9 March 2014. Flights and weather are moved as the package has them, before any column is made of them, so that the first days of January know of
the delays in the last ones of December. 1 January takes the place of 31 December, which the package's weather table does not reach.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".penstock" / "monitor_decisions"
PIPELINE = "flight_delay"
Span = tuple[date, date]


@dataclass(frozen=True)
class Year:
    """Two halves: the model and all that is calibrated come from the first, the monitor sees the second."""

    name: str
    reference: Span
    validation: Span
    """The last month of the reference."""
    older_validation: Span
    """Of a model trained on fewer months, which a rollback would go to."""
    monitored: Span
    moved: timedelta = timedelta(0)
    """How much later the monitored days are than they were."""

    @property
    def home(self) -> Path:
        """Where what was trained is kept."""
        return HOME / self.name if self.moved else HOME

    def project(self) -> Path:
        """The folder with the pipeline; written when the year is turned."""
        return _turned_project(self.home / "project") if self.moved else ROOT

    def really(self, day: date) -> date:
        """When a monitored day was."""
        return day - self.moved


AS_IT_WAS = Year(
    "as-it-was",
    reference=(date(2013, 1, 1), date(2013, 6, 30)),
    validation=(date(2013, 6, 1), date(2013, 6, 30)),
    older_validation=(date(2013, 4, 1), date(2013, 4, 30)),
    monitored=(date(2013, 7, 1), date(2013, 12, 31)),
)
TURNED = Year(
    "turned",
    reference=(date(2013, 7, 1), date(2013, 12, 30)),
    validation=(date(2013, 12, 1), date(2013, 12, 30)),
    older_validation=(date(2013, 10, 1), date(2013, 10, 31)),
    monitored=(date(2013, 12, 31), date(2014, 6, 29)),
    moved=timedelta(days=364),
)
YEARS = {year.name: year for year in (AS_IT_WAS, TURNED)}
_SOURCE = """

_as_the_package_has_them = read_tables


def read_tables() -> Tables:
    from monitor_year import turned

    return turned(_as_the_package_has_them())
"""


def _turned_project(folder: Path) -> Path:
    """The pipeline as it is, whose source turns the package's tables around."""
    own = folder / "pipelines" / PIPELINE
    shutil.copytree(ROOT / "pipelines" / PIPELINE, own, dirs_exist_ok=True)
    source = own / "source.py"
    source.write_text(source.read_text(encoding="utf-8") + _SOURCE, encoding="utf-8")
    return folder


def turned(tables: Any) -> Any:
    """The flights and the weather of January to June 52 weeks later; no flights on 31 December.

    Args:
        tables: As `pipelines/flight_delay/source.py` reads them.
    """
    return tables._replace(
        flights=_moved(tables.flights, lambda day: day != np.datetime64("2013-12-31")),
        weather=_moved(tables.weather, lambda day: np.ones(len(day), dtype=np.bool_)),
    )


def _moved(table: pa.Table, kept: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    year, month, day = (table[name].to_numpy() for name in ("year", "month", "day"))
    local = (year - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1)
    days = local.astype("M8[D]") + (day - 1)
    later = np.where(days < np.datetime64(TURNED.reference[0]), TURNED.moved.days, 0)
    now = days + later
    months = now.astype("M8[M]")
    own = {
        "year": now.astype("M8[Y]").astype(np.int64) + 1970,
        "month": months.astype(np.int64) % 12 + 1,
        "day": (now - months.astype("M8[D]")).astype(np.int64) + 1,
        "time_hour": pc.add(table["time_hour"], pa.array((later * 86_400).astype("m8[s]"))),
    }
    for name, values in own.items():
        table = table.set_column(
            table.column_names.index(name),
            name,
            pa.array(values) if isinstance(values, np.ndarray) else values,
        )
    return table.filter(pa.array(kept(days)))
