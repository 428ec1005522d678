"""Recipes of all three roles together, as publications choose them.

The formats belong to the plan: float8_e4m3fn everywhere for the first two, and
float4_e2m1fn for the third.
"""

from adaprec_jax.scaling.blocks import blockwise
from adaprec_jax.scaling.mx import mx
from adaprec_jax.scaling.nvfp4 import nvfp4
from adaprec_jax.scaling.recipe import Recipes


def deepseek_recipes(*, power_of_two: bool = False) -> Recipes:
    """Returns the block scales of DeepSeek-V3, for all three roles.

    Blocks of 1 x 128 for activations and gradients and of 128 x 128 for weights; the
    scale is amax / max_value. (The products here are summed in float32 throughout,
    which the paper does every 128 elements.)

    Source: DeepSeek-V3, arXiv:2412.19437.

    Args:
        power_of_two: Whether scales are rounded up to a power of two, which is the
            default of Transformer Engine's block scaling.

    >>> deepseek_recipes().weight is blockwise(128, square=True, power_of_two=False)
    True
    """
    rows = blockwise(128, power_of_two=power_of_two)
    return Recipes(rows, blockwise(128, square=True, power_of_two=power_of_two), rows)


def mxfp8_recipes() -> Recipes:
    """Returns the scales of MXFP8 pre-training, for all three roles.

    Blocks of 32 in every operand, their scales rounded up.

    Source: MXFP8 pre-training, arXiv:2506.08027.

    >>> mxfp8_recipes().gradient is mx(shared_exponent="up")
    True
    """
    recipe = mx(shared_exponent="up")
    return Recipes(recipe, recipe, recipe)


def nvfp4_recipes() -> Recipes:
    """Returns the scales of NVFP4 pre-training, for all three roles.

    Blocks of 1 x 16 for activations and gradients and of 16 x 16 for weights,
    gradients rounded stochastically, and the operands of the weight's gradient
    rotated. So what they round needs a key: pass `key=` to the function that
    `value_and_grad` returns. (The paper leaves some layers in a higher precision: that
    is the plan's.)

    Source: NVFP4 pre-training, arXiv:2509.25149.

    >>> recipes = nvfp4_recipes()
    >>> recipes.weight is nvfp4(square=True)
    True
    """
    return Recipes(
        activation=nvfp4(hadamard=True),
        weight=nvfp4(square=True),
        gradient=nvfp4(hadamard=True, rounding="stochastic"),
    )
