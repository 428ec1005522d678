"""What statistics must be, by NumPy and the casts of ml_dtypes."""

from typing import Any

import ml_dtypes
import numpy as np


def cast_scaled(x: Any, dtype: Any) -> np.ndarray:
    """Returns `x` through `dtype`, scaled by the power of two that just fits amax."""
    x = np.asarray(x, np.float32)
    scale = np.float32(1.0)
    if np.dtype(dtype).itemsize == 1 and np.any(x):
        ratio = np.abs(x).max() / np.float32(ml_dtypes.finfo(dtype).max)
        scale = np.float32(2.0 ** np.ceil(np.log2(ratio)))
    return (x / scale).astype(dtype).astype(np.float32) * scale


def assert_stats(stats: Any, x: Any, dtype: Any = np.float32):
    """Checks every field that is there for a tensor that was rounded to `dtype`."""
    x = np.asarray(x, np.float32)
    rounded = cast_scaled(x, dtype)
    expected = {
        "elements": x.size,
        "amax": np.max(np.abs(x)),
        "sum_abs": np.sum(np.abs(x), dtype=np.float64),
        "sum_squares": np.sum(np.square(x, dtype=np.float64)),
        "zeros": np.sum(x == 0),
        "underflows": np.sum((x != 0) & (rounded == 0)),
        "saturations": 0,
        "noise_squares": np.sum(np.square(np.subtract(x, rounded, dtype=np.float64))),
    }
    for field, value in stats._asdict().items():
        if value is not None:
            np.testing.assert_allclose(
                value, expected[field], rtol=1e-5, atol=1e-12, err_msg=field
            )
