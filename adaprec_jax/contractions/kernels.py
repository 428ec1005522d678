"""In which dtypes a product is formed.

Emulated, a product multiplies float32 numbers that were rounded to a format. Natively,
it multiplies numbers of a narrow dtype in which the same rounded numbers are exact, and
sums in float32 (int32 for integers). What is multiplied is equal to the bit; only how
the sum is formed may differ.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class Kernel(NamedTuple):
    """The dtypes of the operands of one product, by name; float32 is emulation.

    Attributes:
        left: Of the activation in the forward product, else of the gradient.
        right: Of the other operand.
    """

    left: str = "float32"
    right: str = "float32"

    @property
    def emulated(self) -> bool:
        """Whether the product is formed from float32 operands."""
        return self == Kernel()


class Kernels(NamedTuple):
    """The dtypes of the three products of one contraction."""

    forward: Kernel = Kernel()
    dgrad: Kernel = Kernel()
    wgrad: Kernel = Kernel()


def operand(x: Array, dtype: str) -> Array:
    """Returns rounded numbers in the dtype that holds them.

    >>> operand(jnp.array([3.5]), "float8_e4m3fn")
    Array([3.5], dtype=float8_e4m3fn)
    """
    return x.astype(jnp.dtype(dtype))


def accumulator(kernel: Kernel) -> Any:
    """Returns the dtype in which a product sums.

    >>> accumulator(Kernel("int8", "int8")), accumulator(Kernel("bfloat16", "bfloat16"))
    (dtype('int32'), dtype('float32'))
    """
    whole = jnp.issubdtype(jnp.dtype(kernel.left), jnp.integer)
    return jnp.dtype("int32" if whole else "float32")


def no_number(values: Array, dtype: str) -> Array | None:
    """Returns whether some of the numbers is NaN, if the dtype has no NaN; else None.

    What is lost in the cast has to be put back into the result.

    >>> no_number(jnp.array([jnp.nan, 1.0]), "int8")
    Array(True, dtype=bool)
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.integer):
        return None
    return jnp.any(jnp.isnan(values))
