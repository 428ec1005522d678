"""What papers and their code say of their quantisers, in NumPy and float32."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from adaprec_jax.scaling import dorefa, muppet, sbm, swalp, wage

F = np.float32
RECIPES = {
    "sbm": sbm(),
    "sbm slice": sbm("slice"),
    "sbm stochastic": sbm(rounding="stochastic"),
    "dorefa activation": dorefa("activation"),
    "dorefa weight": dorefa("weight"),
    "dorefa gradient": dorefa("gradient"),
    "wage activation": wage("activation"),
    "wage weight": wage("weight"),
    "wage gradient": wage("gradient"),
    "swalp": swalp(),
    "swalp slice": swalp("slice", rounding="nearest_even"),
    "muppet": muppet(),
    "muppet nearest": muppet(rounding="nearest_even"),
}


def np_sbm(x: np.ndarray, bits: int) -> np.ndarray:
    low, steps = x.min(), F(2**bits - 1)
    step = max(F((x.max() - low) / steps), F(1e-8))
    whole = np.rint(np.clip((x - low) / step, F(0), steps))
    return whole * step + low


def np_nearest(share: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(share * F(2**bits - 1)) / F(2**bits - 1)


def np_dorefa_activation(x: np.ndarray, bits: int) -> np.ndarray:
    return np_nearest(np.clip(x, F(0), F(1)), bits)


def np_dorefa_weight(x: np.ndarray, bits: int) -> np.ndarray:
    if bits == 1:
        return np.sign(x) * np.abs(x).mean(dtype=F)
    bent = np.asarray(jnp.tanh(x))  # whose last bit is no part of the method
    return 2 * np_nearest(bent / np.abs(bent).max() * F(0.5) + F(0.5), bits) - 1


def np_wage(x: np.ndarray, bits: int) -> np.ndarray:
    sigma = F(2.0 ** (1 - bits))
    return np.clip(np.rint(x / sigma) * sigma, sigma - 1, 1 - sigma)


def np_wage_weight(x: np.ndarray, bits: int) -> np.ndarray:
    """Of a tensor whose last axis is the output."""
    first = np.sqrt(6 / (x.size // x.shape[-1]))
    least = 1.5 * 2.0 ** (1 - bits)
    alpha = F(max(2.0 ** round(np.log2(least / first)), 1.0))
    return np_wage(x * alpha, bits) / alpha


def np_wage_error(x: np.ndarray, bits: int) -> np.ndarray:
    shift = F(2.0 ** round(np.log2(float(np.abs(x).max()))))
    return np_wage(x / shift, bits) * shift


def np_swalp(x: np.ndarray, bits: int) -> np.ndarray:
    exponent = np.floor(np.log2(float(np.abs(x).max())))
    unit = F(2.0 ** (exponent - bits + 2))
    return np.clip(np.rint(x / unit), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * unit


def np_muppet(x: np.ndarray, bits: int) -> np.ndarray:
    half = 2 ** (bits - 1)
    ratios = [(half - 0.5) / x.max(), (half + 0.5) / abs(x.min())]
    factor = F(2.0 ** np.floor(np.log2(min(ratios))))
    return np.clip(np.rint(x * factor), -half, half - 1) / factor


def of_slices(rounded: Any, axis: int) -> Any:
    def each(x: np.ndarray, bits: int) -> np.ndarray:
        parts = [rounded(part, bits) for part in np.moveaxis(x, axis, 0)]
        return np.moveaxis(np.stack(parts), 0, axis)

    return each


REFERENCES = {
    "sbm": np_sbm,
    "sbm slice": of_slices(np_sbm, -1),
    "dorefa activation": np_dorefa_activation,
    "dorefa weight": np_dorefa_weight,
    "wage activation": np_wage,
    "wage weight": np_wage_weight,
    "wage gradient": np_wage_error,
    "swalp slice": of_slices(np_swalp, -1),
    "muppet nearest": np_muppet,
}
