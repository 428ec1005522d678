"""A smooth function of two variables, to be fitted closely; no noise, no download.

Franke's function, a test surface of scattered-data interpolation: Franke 1979, "A
Critical Comparison of Some Methods for Interpolation of Scattered Data", Naval
Postgraduate School, NPS-53-79-003. Here float32 reaches a mean squared error of 1e-6,
four orders below the variance, so that nothing hides what a format cannot represent.
"""

import numpy as np
from jaxtyping import Array, Float

from adaprec_jax.tasks import network, objectives
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import Batch, Data, Split, Task, from_network, gather_rows


def load(size: int = 4096) -> Data:
    """Returns points and values, in a fixed split of 50 : 25 : 25.

    Arrays: inputs float32 (size, 2), points of the unit square; targets float32
    (size, 1).

    Args:
        size: Points in all.

    >>> load(8).arrays.targets.shape
    (8, 1)
    """
    points = spread(size)
    rows = np.arange(size, dtype=np.int32)
    split = Split(*np.split(rows, [size // 2, size * 3 // 4]))
    return Data(
        arrays=Batch(
            points.astype(np.float32), franke(points)[:, None].astype(np.float32)
        ),
        split=lambda seed: split,  # The same for every seed.
        gather=gather_rows,
        fingerprint=f"function-franke-{size}",
    )


def task(data: Data, model: Model) -> Task:
    """Returns the task of fitting the function.

    Args:
        data: What `load` returned.
        model: Maps float32 points (batch, 2), -1 to 1, to values (batch, 1).
    """
    return from_network(
        "function", data, network.of(model), objectives.regression(), _centred
    )


def franke(points: Float[np.ndarray, "size 2"]) -> Float[np.ndarray, " size"]:
    """Returns Franke's function: two hills, a smaller one, and a dip.

    >>> franke(np.zeros((1, 2))).round(4)
    array([0.7664])
    """
    x, y = 9 * points.T
    return (
        0.75 * np.exp(-((x - 2) ** 2 + (y - 2) ** 2) / 4)
        + 0.75 * np.exp(-((x + 1) ** 2) / 49 - (y + 1) / 10)
        + 0.5 * np.exp(-((x - 7) ** 2 + (y - 3) ** 2) / 4)
        - 0.2 * np.exp(-((x - 4) ** 2) - (y - 7) ** 2)
    )


def spread(size: int) -> Float[np.ndarray, "size 2"]:
    """Returns points that fill the unit square evenly, whichever of them one takes.

    Multiples of the powers of 1 / g, g the real root of $x^3 = x + 1$, modulo 1: a
    Kronecker sequence, which needs no random numbers.
    """
    g = 1.324717957244746
    return (0.5 + np.arange(size)[:, None] * np.array([[1 / g, 1 / g**2]])) % 1


def _centred(points: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2 * points - 1
