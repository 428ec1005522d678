"""Carbon and money from energy and time, with nothing assumed about place or price.

There is no default grid, no default building and no default price: a number from one of
them would say more about the default than about the run.
"""

import csv
import datetime
import functools
import math
from typing import NamedTuple

from adaprec_jax.cost.devices import DATA
from adaprec_jax.cost.quantity import Kind, Quantity

_JOULES = 3.6e6  # of a kilowatt-hour
_HOURS = 365 * 24  # of a year
COMPARED = (50.0, 400.0, 700.0)  # g/kWh: three grids to set beside the declared one


class Grid(NamedTuple):
    """Carbon intensity of electricity, location-based.

    Attributes:
        name: Of the region, or of what was measured.
        intensity: gCO2e/kWh.
        year: That it holds for.
        source: Of the number.
    """

    name: str
    intensity: float
    year: str
    source: str


class Price(NamedTuple):
    """What an hour of one device costs.

    Attributes:
        per_hour: In the currency.
        currency: Its code, such as "USD".
        date: When it was asked, as 2026-11-22.
    """

    per_hour: float
    currency: str
    date: str


def grid_names() -> tuple[str, ...]:
    """Returns the grids of the table."""
    return tuple(_grids())


def grid(text: str) -> Grid:
    """Returns a grid of the table by its name, or one that is given in full.

    Args:
        text: A name, or INTENSITY:YEAR:SOURCE with the intensity in gCO2e/kWh.

    Raises:
        ValueError: There is no grid of that name, or a part is missing.

    >>> grid("FRA").intensity, grid("120:2025:our operator").source
    (56.039, 'our operator')
    """
    if text in _grids():
        return _grids()[text]
    number, _, rest = text.partition(":")
    year, _, source = rest.partition(":")
    intensity = _number(number)
    if intensity is None or not year or not source:
        raise ValueError(
            f"grid must be one of {', '.join(_grids())}, or INTENSITY:YEAR:SOURCE in "
            f"gCO2e/kWh, got {text!r}."
        )
    return Grid("given", intensity, year, source)


def price(text: str) -> Price:
    """Returns a price that is given as PER_HOUR:CURRENCY:DATE.

    Raises:
        ValueError: A part is missing, the price is no number of at least 0, or the
            date none.

    >>> price("2.5:USD:2026-11-01")
    Price(per_hour=2.5, currency='USD', date='2026-11-01')
    """
    number, _, rest = text.partition(":")
    currency, _, date = rest.partition(":")
    per_hour = _number(number)
    if per_hour is None or not currency or not _is_date(date):
        raise ValueError(
            "price must be PER_HOUR:CURRENCY:DATE, such as 2.5:USD:2026-11-01, got "
            f"{text!r}."
        )
    return Price(per_hour, currency, date)


def operational(energy: Quantity | None, pue: float, where: Grid) -> Quantity | None:
    r"""Returns the operational carbon of some energy at the device, location-based.

    $$ O = PUE \cdot E \cdot I $$

    Args:
        energy: In J; None if it is not known.
        pue: Energy of the data centre over that of its computers, from 1; applied once.
        where: The grid.

    Raises:
        ValueError: The energy is in another unit, or the PUE below 1.

    >>> hour = Quantity(700 * 3600.0, "J", 0.0, 2.6e6, "tdp_estimate", "700 W")
    >>> round(operational(hour, 1.0, grid("400:2024:an example")).value)
    280
    """
    if energy is None:
        return None
    if energy.unit != "J":
        raise ValueError(f"Carbon follows from joules, got {energy.unit}.")
    if not 1 <= pue < math.inf:
        raise ValueError(f"pue must be a number from 1 on, got {pue}.")
    return energy.times(pue * where.intensity / _JOULES, "g")


def embodied(
    seconds: int | float,
    *,
    whole: float,
    years: int | float,
    kind: Kind,
    share: float = 1.0,
) -> Quantity:
    r"""Returns the share of a device's making that falls to some time of its use.

    $$ M = TE \cdot \frac{TiR}{EL} \cdot \frac{RR}{ToR} $$

    Source: Software Carbon Intensity specification, ISO/IEC 21031:2024.

    Args:
        seconds: Time of use, TiR.
        whole: Grams of making the device, TE.
        years: Expected life, EL.
        kind: How the time was come by.
        share: Of the device that is used, RR / ToR.

    Raises:
        ValueError: A number is negative, the life 0, or the share above 1.

    >>> round(embodied(3600, whole=1e6, years=4, kind="modelled").value, 1)
    28.5
    """
    if not (seconds >= 0 and whole >= 0 and years > 0 and 0 <= share <= 1):
        raise ValueError(
            "Expected seconds and grams of at least 0, years above 0 and a share up to "
            f"1, got {seconds=}, {whole=}, {years=}, {share=}."
        )
    grams = whole * seconds / (years * _HOURS * 3600) * share
    return Quantity(grams, "g", grams, grams, kind, "ISO/IEC 21031:2024")


def sci(
    operated: Quantity | None, made: Quantity | None, units: float, unit: str
) -> Quantity | None:
    r"""Returns the Software Carbon Intensity, $(O + M) / R$; None if a part is unknown.

    Market-based carbon and offsets have no place in it.

    Source: ISO/IEC 21031:2024.

    Args:
        operated: Location-based operational carbon.
        made: Embodied carbon.
        units: How many functional units were delivered, R.
        unit: What one is, such as "run to 0.95 accuracy".

    Raises:
        ValueError: There is no functional unit, or the kinds differ.
    """
    if not units > 0:
        raise ValueError(f"A functional unit is needed, got {units} of {unit!r}.")
    if operated is None or made is None:
        return None
    return (operated + made).times(1 / units, f"g/{unit}")


def spent(seconds: Quantity | None, asked: Price) -> Quantity | None:
    """Returns what some time of one device costs; None if the time is not known."""
    if seconds is None:
        return None
    return seconds.times(asked.per_hour / 3600, asked.currency)


def model_card(
    carbon: Quantity, *, training_type: str, location: str, hardware: str
) -> str:
    """Returns the block of a Hugging Face model card, in grams.

    Args:
        carbon: Operational, location-based.
        training_type: "pre-training" or "fine-tuning".
        location: Of the grid.
        hardware: That was used.

    Raises:
        ValueError: The carbon is not in grams, or the type of training is another.

    >>> grams = Quantity(83.5, "g", 83.5, 83.5, "measured", "NVML")
    >>> print(model_card(grams, training_type="pre-training", location="France",
    ...                  hardware="1 x H100"))
    co2_eq_emissions:
      emissions: 83.5
      source: "NVML (measured)"
      training_type: "pre-training"
      geographical_location: "France"
      hardware_used: "1 x H100"
    """
    if carbon.unit != "g":
        raise ValueError(f"A model card states grams, got {carbon.unit}.")
    if training_type not in ("pre-training", "fine-tuning"):
        raise ValueError(
            f"training_type must be pre-training or fine-tuning, got {training_type!r}."
        )
    return "\n".join(
        (
            "co2_eq_emissions:",
            f"  emissions: {carbon.value:.6g}",
            f'  source: "{carbon.source} ({carbon.kind})"',
            f'  training_type: "{training_type}"',
            f'  geographical_location: "{location}"',
            f'  hardware_used: "{hardware}"',
        )
    )


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 <= found < math.inf else None


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


@functools.cache
def _grids() -> dict[str, Grid]:
    with (DATA / "grids.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["grid"]: Grid(
                row["grid"], float(row["g_per_kWh"]), row["year"], row["source"]
            )
            for row in csv.DictReader(file)
        }
