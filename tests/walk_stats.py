"""What statistics must be, by NumPy and the casts of ml_dtypes."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np


def cast_scaled(x: Any, dtype: Any) -> np.ndarray:
    """Returns `x` through `dtype`, scaled by the power of two that just fits amax."""
    x = np.asarray(x, np.float32)
    scale = np.float32(1.0)
    if np.dtype(dtype).itemsize == 1 and np.any(x):
        fraction, exponent = np.frexp(
            np.abs(x).max() / float(ml_dtypes.finfo(dtype).max)
        )
        scale = np.exp2(exponent - (fraction == 0.5), dtype=np.float32)
    return (x / scale).astype(dtype).astype(np.float32) * scale


def assert_stats(stats: Any, tensors: Sequence[Any], dtype: Any = np.float32):
    """Checks every field that is there, for tensors rounded to `dtype` one by one."""
    rounded = np.concatenate([cast_scaled(x, dtype).reshape(-1) for x in tensors])
    x = np.concatenate([np.asarray(x, np.float32).reshape(-1) for x in tensors])
    noise = np.subtract(x, rounded, dtype=np.float64)
    expected = {
        "elements": x.size,
        "amax": np.max(np.abs(x)),
        "sum_abs": np.sum(np.abs(x), dtype=np.float64),
        "sum_squares": np.sum(np.square(x, dtype=np.float64)),
        "zeros": np.sum(x == 0),
        "underflows": np.sum((x != 0) & (rounded == 0)),
        "saturations": 0,
        "noise_squares": np.sum(np.square(noise)),
        "sum_abs_rounded": np.sum(np.abs(rounded), dtype=np.float64),
    }
    for field, value in stats._asdict().items():
        if value is not None:
            np.testing.assert_allclose(
                value, expected[field], rtol=1e-5, atol=1e-12, err_msg=field
            )
