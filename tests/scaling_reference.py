"""The three products of one contraction, written out, with every operand rounded."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adaprec_jax.contractions import Options, value_and_grad
from adaprec_jax.precision import Entry
from adaprec_jax.scaling import Recipes

EXACT = lax.Precision.HIGHEST
Summed = Mapping[tuple[str, str], tuple[int, ...]]

DENSE: Summed = {
    ("forward", "activation"): (1,), ("forward", "weight"): (0,),
    ("dgrad", "gradient"): (1,), ("dgrad", "weight"): (1,),
    ("wgrad", "gradient"): (0,), ("wgrad", "activation"): (0,),
}  # fmt: skip
# Channels last. Places and examples are summed for the kernel's gradient alone.
CONV: Summed = {
    ("forward", "activation"): (3,), ("forward", "weight"): (2,),
    ("dgrad", "gradient"): (3,), ("dgrad", "weight"): (3,),
    ("wgrad", "gradient"): (0, 1, 2), ("wgrad", "activation"): (0, 1, 2),
}  # fmt: skip


def as_matrix(x: Any, summed: tuple[int, ...]) -> tuple[np.ndarray, Callable[..., Any]]:
    """Returns the tensor with what is summed along the rows, and the way back."""
    x = np.asarray(x, np.float32)
    others = [axis for axis in range(x.ndim) if axis not in summed]
    order = [*others, *summed]
    turned = x.transpose(order)
    matrix = turned.reshape(int(np.prod([x.shape[a] for a in others])), -1)
    return (
        matrix,
        lambda m: np.asarray(m).reshape(turned.shape).transpose(np.argsort(order)),
    )


def by_part(
    round_part: Callable[[np.ndarray], np.ndarray],
    x: Any,
    summed: tuple[int, ...],
    rows: int | None,
    columns: int | None,
) -> np.ndarray:
    """Rounds each part of `rows` x `columns`; None is all of them."""
    matrix, back = as_matrix(x, summed)
    out = np.zeros_like(matrix)
    rows, columns = rows or matrix.shape[0], columns or matrix.shape[1]
    for i in range(0, matrix.shape[0], rows):
        for j in range(0, matrix.shape[1], columns):
            part = np.s_[i : i + rows, j : j + columns]
            out[part] = round_part(matrix[part])
    return back(out)


def products(
    product: Callable[[Any, Any], Any],
    a: Any,
    w: Any,
    g: Any,
    summed: Summed,
    rounded: Callable[[str, str, np.ndarray, tuple[int, ...]], np.ndarray],
) -> tuple[Any, Any, Any]:
    """Returns the product and both gradients for the cotangent `g`.

    `rounded(product, role, x, summed)` rounds an operand.
    """

    def low(which: str, role: str, x: Any) -> Any:
        return jnp.asarray(rounded(which, role, x, summed[which, role]))

    y = product(low("forward", "activation", a), low("forward", "weight", w))
    to_a = jax.vjp(lambda a: product(a, low("dgrad", "weight", w)), a)[1]
    to_w = jax.vjp(lambda w: product(low("wgrad", "activation", a), w), w)[1]
    (da,), (dw,) = to_a(low("dgrad", "gradient", g)), to_w(low("wgrad", "gradient", g))
    return y, da, dw


def found(
    layer: Callable[[Any, Any], Any],
    a: Any,
    w: Any,
    g: Any,
    recipes: Recipes,
    entry: Entry,
    **more: Any,
) -> tuple[Any, Any, Any]:
    """Returns the same three of `layer(w, a)`, by the walk."""

    def loss(p: Any, g: Any, zero: Any) -> tuple[Any, Any]:
        # Not made of parameters alone, so that it takes the activation's slot.
        y = layer(p["w"], p["a"] + zero)
        return jnp.sum(y * g), y

    step = value_and_grad(loss, Options(recipes), **more.pop("watch", {}))
    # Arguments all: XLA computes with constants in another way.
    (_, y), gradients, stats = jax.jit(
        lambda p, g, zero, entry: step(p, g, zero, plan={"w": entry}, **more)
    )({"w": w, "a": a}, g, jnp.zeros_like(a), entry)
    return (y, gradients["a"], gradients["w"]), stats


def assert_products(out: Any, expected: Any) -> None:
    """Asserts that they are equal but for the order of sums."""
    for name, a, b in zip(
        ("forward", "activation's gradient", "weight's gradient"),
        out,
        expected,
        strict=True,
    ):
        assert np.any(np.asarray(b)), name
        size = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(a, b, rtol=5e-6, atol=1e-6 * size, err_msg=name)
