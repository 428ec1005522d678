"""In which dtypes a product is formed.

Emulated, a product multiplies float32 numbers that were rounded to a format. Natively,
it multiplies numbers of a narrow dtype in which the same rounded numbers are exact, and
sums in float32 (int32 for integers). What is multiplied is equal to the bit; only how
the sum is formed may differ.
"""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array


class Scales(NamedTuple):
    """That each block of an operand has a scale.

    Attributes:
        size: Elements of a block, neighbours along the axes that are summed.
        dtype: Of the scales.
    """

    size: int
    dtype: str


class Kernel(NamedTuple):
    """The dtypes of the operands of one product, by name; float32 is emulation.

    Attributes:
        left: Of the activation in the forward product, else of the gradient.
        right: Of the other operand.
        scales: Of the blocks of both; None where a scale multiplies the result.
    """

    left: str = "float32"
    right: str = "float32"
    scales: Scales | None = None

    @property
    def emulated(self) -> bool:
        """Whether the product is formed from float32 operands."""
        return self == Kernel()

    @property
    def dtypes(self) -> tuple[str, str]:
        """The dtypes of both operands.

        >>> Kernel("int8", "int8").dtypes
        ('int8', 'int8')
        """
        return self.left, self.right

    def __str__(self) -> str:
        """Returns the dtypes as a report shows them.

        >>> print(Kernel("int8", "int8"))
        int8 x int8
        >>> four = "float4_e2m1fn"
        >>> print(Kernel(four, four, Scales(16, "float8_e4m3fn")))
        float4_e2m1fn x float4_e2m1fn, scale per 16: float8_e4m3fn
        """
        pair = " x ".join(self.dtypes)
        if self.scales is None:
            return pair
        return f"{pair}, scale per {self.scales.size}: {self.scales.dtype}"


class Kernels(NamedTuple):
    """The dtypes of the three products of one contraction."""

    forward: Kernel = Kernel()
    dgrad: Kernel = Kernel()
    wgrad: Kernel = Kernel()


class Blocked(NamedTuple):
    """An operand whose blocks have scales: elements * of_block * of_tensor.

    Attributes:
        elements: Numbers of a format, or in a dtype that holds them.
        of_block: The scale of its block for each element; the same.
        of_tensor: One number for each member of a layer, float32.
    """

    elements: Array
    of_block: Array
    of_tensor: Array

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.elements.ndim


Operand: TypeAlias = Array | Blocked


def operand(x: Operand, dtype: str, scales: Scales | None = None) -> Operand:
    """Returns rounded numbers in the dtype that holds them.

    Args:
        x: The numbers; in parts if their blocks have scales.
        dtype: Of the numbers.
        scales: Of the blocks.

    >>> operand(jnp.array([3.5]), "float8_e4m3fn")
    Array([3.5], dtype=float8_e4m3fn)
    """
    if isinstance(x, Blocked):
        held = jnp.dtype(scales.dtype if scales else "float32")
        return x._replace(
            elements=x.elements.astype(jnp.dtype(dtype)),
            of_block=x.of_block.astype(held),
        )
    return x.astype(jnp.dtype(dtype))


def accumulator(kernel: Kernel) -> Any:
    """Returns the dtype in which a product sums.

    >>> accumulator(Kernel("int8", "int8")), accumulator(Kernel("bfloat16", "bfloat16"))
    (dtype('int32'), dtype('float32'))
    """
    whole = jnp.issubdtype(jnp.dtype(kernel.left), jnp.integer)
    return jnp.dtype("int32" if whole else "float32")


def no_number(values: Array, dtype: str) -> Array | None:
    """Returns whether some of the numbers is NaN, if the dtype has none; else None.

    What is lost in the cast has to be put back into the result.

    >>> no_number(jnp.array([jnp.nan, 1.0]), "int8")
    Array(True, dtype=bool)
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.integer) and dtype != "float4_e2m1fn":
        return None
    return jnp.any(jnp.isnan(values))
