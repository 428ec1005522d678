"""Options of what a run costs, checked: lenses, places, prices, targets."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from adaprec_jax.cost.lenses import DEVICES, LENSES
from adaprec_jax.runs.errors import InputError


def lenses(asked: Sequence[str], device: str | None) -> tuple[str, ...]:
    """Returns the lenses that were asked for.

    Raises:
        InputError: One is unknown, or needs a device that was not given.
    """
    for lens in asked:
        if lens not in LENSES:
            raise InputError(f"--lens must be one of {', '.join(LENSES)}: {lens!r}.")
        if lens in DEVICES and device is None:
            raise InputError(f"--lens {lens} needs --device.")
    return tuple(asked)


def check(
    grid: str | None,
    pue: float | None,
    market: float | None,
    embodied: str | None,
    price: str | None,
    device: str | None,
) -> None:
    """Refuses facts that are out of range, or belong to one that is missing.

    Raises:
        InputError: One of them is, or does.
    """
    if grid is not None and pue is None:
        raise InputError(
            "--grid needs --pue, the data centre's power usage effectiveness; 1 leaves "
            "the building out."
        )
    if pue is not None and not 1 <= pue < math.inf:
        raise InputError(f"--pue must be a number from 1 on, got {pue}.")
    if market is not None and not 0 <= market < math.inf:
        raise InputError(f"--market must be a number from 0 on, got {market}.")
    others = {"--pue": pue, "--market": market, "--embodied": embodied}
    for name, value in others.items():
        if value is not None and grid is None:
            raise InputError(f"{name} is of carbon: it needs --grid.")
    for name, text in {"--embodied": embodied, "--price": price}.items():
        if text is not None and device is None:
            raise InputError(f"{name} is of a device: it needs --device.")


def checked(make: Callable[[], Any]) -> Any:
    """Returns what is made of an option.

    Raises:
        InputError: The option is wrong, by a `ValueError` of what makes it.
    """
    try:
        return make()
    except ValueError as error:
        raise InputError(f"--{error}") from error


def target(text: str) -> tuple[str, float]:
    """Returns the name and the value of a target.

    Raises:
        InputError: It has no name, or its value is no number.

    >>> target("validation/accuracy=0.9")
    ('validation/accuracy', 0.9)
    """
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise InputError(f"--target takes NAME=VALUE with a number, got {text!r}.")
    return name, number
