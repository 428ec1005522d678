"""The parts of a tensor that do not depend on a product: its examples, its outputs."""

from jaxtyping import Array, Float

from adaprec_jax.scaling.recipe import Use

_PARTS = ("tensor", "slice")


def check_per(per: str) -> None:
    """Raises a ValueError if `per` is no part of a tensor.

    >>> check_per("row")
    Traceback (most recent call last):
    ValueError: per must be one of tensor, slice, got 'row'.
    """
    if per not in _PARTS:
        allowed = ", ".join(_PARTS)
        raise ValueError(f"per must be one of {allowed}, got {per!r}.")


def within_slices(
    x: Float[Array, "..."], use: Use, axis_names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the axes and the mesh axes over which a slice extends.

    A slice lies on one device. Without axes of slices the tensor is one of them.

    >>> import jax.numpy as jnp
    >>> within_slices(jnp.zeros((2, 3, 4)), Use("forward", (1,), (0,)), ("data",))
    ((1, 2), ())
    """
    axes = tuple(axis for axis in range(x.ndim) if axis not in use.sliced)
    return axes, () if use.sliced else axis_names
