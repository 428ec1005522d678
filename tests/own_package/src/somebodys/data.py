"""A data set: points inside and outside of a circle."""

import numpy as np

from adaprec_jax.tasks.task import Data, from_arrays


def circle(size: int = 240) -> Data:
    """Points of a square; those in the circle are of class 1."""
    points = np.random.default_rng(0).uniform(-1, 1, (size, 2)).astype(np.float32)
    return from_arrays(points, (np.sum(points**2, 1) < 0.6).astype(np.int32))
