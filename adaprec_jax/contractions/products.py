"""One contraction with its three products rounded: forward, dgrad and wgrad.

The forward product is formed from rounded operands, and so are the two products of the
backward pass, each from copies of its own (or from shared ones, which are equal and
which the compiler merges). Only the unrounded operands are kept for the backward pass:
a residual in a loop over layers then costs no more memory than without rounding.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from adaprec_jax.contractions import scopes
from adaprec_jax.contractions.jax_internals import (
    instantiate,
    is_spread,
    vary_over,
    varying_axes,
)
from adaprec_jax.contractions.kernels import Kernel, Kernels, Operand, no_number
from adaprec_jax.contractions.observe import (
    Asked,
    Observed,
    Probe,
    Watching,
    observe,
)
from adaprec_jax.contractions.rounded import Rounded, round_tensor, spread
from adaprec_jax.contractions.summed import Sliced, Summed
from adaprec_jax.contractions.transpose import linear_transpose
from adaprec_jax.formats import Format
from adaprec_jax.precision import Entry, SharedPrecision, separate
from adaprec_jax.scaling import Recipe, Recipes, Use, current

# The operands of a contraction, in the order of a `Layout`.
SLOTS = ("activation", "weight")

Bilinear: TypeAlias = Callable[..., Array]


class States(NamedTuple):
    """States of the scaling recipes of one contraction."""

    activation: Any
    weight: Any
    gradient: Any


class Layout(NamedTuple):
    """Static description of one contraction; where its member axes are.

    Attributes:
        product: Forms the result from activation and weight, in the dtypes of a kernel.
        sizes: Sizes of the member axes, outermost first.
        activation: Positions of the member axes in the activation.
        weight: Positions of the member axes in the weight.
        out: Positions of the member axes in the result.
        summed: Over which axes each operand of each product is summed.
        sliced: Which axes tell the slices of each operand apart.
        in_time: Whether the contraction is repeated with the same weight, in a loop
            over time; its rounding then moves out of the loop.
        kernels: In which dtypes its products are formed.
        name: Of the contraction; XLA keeps it beside what the products become.
    """

    product: Bilinear
    sizes: tuple[int, ...]
    activation: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    summed: Summed
    sliced: Sliced
    in_time: bool = False
    kernels: Kernels = Kernels()
    name: str = ""


class Stored(NamedTuple):
    """How activations are kept for the backward pass, instead of as they are.

    Attributes:
        format: The format they are rounded to.
        recipe: A scaling recipe without state.
    """

    format: Format
    recipe: Recipe = current()


class Data(NamedTuple):
    """Everything traced that a rounded contraction takes beside its operands.

    `keys` are for stochastic rounding, by role; None if there are none.
    """

    entry: Entry
    states: States
    keys: Mapping[str, Array] | None
    asked: Asked


@jax.tree_util.register_static
class Wanted(NamedTuple):
    """Which operands a gradient is wanted of; structure to JAX, never traced."""

    activation: bool
    weight: bool


def rounded_contraction(
    layout: Layout,
    recipes: Recipes,
    watching: Watching,
    operands: tuple[Array, Array],
    data: Data,
    probe: Probe,
    stored: tuple[Stored | None, Stored | None] = (None, None),
) -> tuple[Float[Array, "..."], dict[str, Observed]]:
    """Returns the product of the rounded operands and what was seen of them.

    Args:
        layout: Where the members are and how the product is formed.
        recipes: Scaling recipes by role.
        watching: Which statistics are gathered.
        operands: Activation and weight, any float dtype.
        data: The formats in force, recipe states, keys and cadence.
        probe: Zeros; their gradient is what was seen of the cotangent.
        stored: How each operand is kept for the backward pass; None: as it is.

    Returns:
        The result, float32, and for the roles "activation" and "weight" what was seen.
        Its gradient is formed by the rounded dgrad and wgrad products; it has no
        forward-mode derivative.
    """
    forward = separate(data.entry).forward
    frozen = [lax.stop_gradient(x).astype(jnp.float32) for x in operands]
    rounded = functools.partial(_rounded, layout, recipes, watching, data)
    activation = rounded("activation", "forward", frozen[0], forward.activation)
    fmt = _weight_format(layout, activation.scale, forward.weight)
    weight = rounded("weight", "forward", frozen[1], fmt)
    seen = {
        role: observe(role, x, rounded, fmt, positions, data.asked, watching)
        for role, x, rounded, fmt, positions in (
            ("activation", frozen[0], activation,
             forward.activation, layout.activation),
            ("weight", frozen[1], weight, forward.weight, layout.weight),
        )
    }  # fmt: skip

    @jax.custom_vjp
    def contract(
        operands: tuple[Array, Array], rounded: tuple[Rounded, Rounded],
        data: Data, probe: Probe,
    ) -> Array:  # fmt: skip
        del operands, data, probe
        left, right = rounded
        kernel = layout.kernels.forward
        with scopes.part("forward"), jax.named_scope(f"forward:{layout.name};"):
            product = layout.product(_operand(left), _operand(right), kernel)
        return _rescale(product, left, right, layout.out, kernel)

    def forward_rule(*primals: Any) -> tuple[Array, Any]:
        operands, rounded, data, probe = jax.tree.map(
            lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, "perturbed")
        )
        wanted = Wanted(*(p.perturbed for p in primals[0]))
        kept = tuple(
            x if how is None else _keep(layout, watching, data, role, x, how)
            for role, x, how in zip(SLOTS, operands, stored, strict=True)
        )
        return contract(operands, rounded, data, probe), (kept, data, probe, wanted)

    def backward_rule(kept: Any, gradient: Any) -> tuple[Any, ...]:
        operands, data, probe, wanted = kept
        gradient = instantiate(gradient)
        gradients, seen = _backward(
            layout, recipes, watching, operands, data, gradient, wanted
        )
        seen = jax.tree.map(
            lambda s, p: vary_over(s, varying_axes(p)), Probe(*seen), probe
        )
        return gradients, None, None, seen

    # Symbolic zeros tell which gradients are wanted: none for a network's input.
    contract.defvjp(forward_rule, backward_rule, symbolic_zeros=True)
    return contract(operands, (activation, weight), data, probe), seen


def _backward(
    layout: Layout,
    recipes: Recipes,
    watching: Watching,
    operands: tuple[Array, Array],
    data: Data,
    gradient: Float[Array, "..."],
    wanted: Wanted,
) -> tuple[tuple[Array | None, ...], Observed]:
    """Returns the wanted gradients of the operands and what the cotangent showed."""
    _, dgrad, wgrad = separate(data.entry)
    activation, weight = (x.astype(jnp.float32) for x in operands)
    gradients: list[Array | None] = [None, None]

    rounded = functools.partial(_rounded, layout, recipes, watching, data)
    down = rounded("gradient", "dgrad", gradient, dgrad.gradient)
    seen = observe(
        "gradient", gradient, down, dgrad.gradient, layout.out, data.asked, watching
    )
    done = down.scale
    if wanted.activation:
        fmt = _weight_format(layout, done, dgrad.weight)
        right = rounded("weight", "dgrad", weight, fmt)
        kernel = layout.kernels.dgrad
        to_activation = linear_transpose(
            lambda a: layout.product(a, right.values), activation, kernel,
            right.blocked,
        )  # fmt: skip
        with scopes.part("dgrad"), jax.named_scope(f"dgrad:{layout.name};"):
            product = to_activation(_operand(down))
        gradients[0] = _rescale(product, down, right, layout.activation, kernel)
        done = product
    if wanted.weight:
        shared = isinstance(data.entry, SharedPrecision)
        if not shared or recipes.gradient.per_product:
            down = rounded("gradient", "wgrad", gradient, wgrad.gradient)
        left = rounded("activation", "wgrad", activation, after(done, wgrad.activation))
        kernel = layout.kernels.wgrad
        to_weight = linear_transpose(
            lambda w: layout.product(left.values, w), weight, kernel, left.blocked
        )
        with scopes.part("wgrad"), jax.named_scope(f"wgrad:{layout.name};"):
            product = to_weight(_operand(down))
        gradients[1] = _rescale(product, down, left, layout.weight, kernel)
    return tuple(
        None if d is None else d.astype(x.dtype)
        for d, x in zip(gradients, operands, strict=True)
    ), seen


def _keep(
    layout: Layout,
    watching: Watching,
    data: Data,
    role: str,
    x: Float[Array, "..."],
    how: Stored,
) -> Float[Array, "..."]:
    """Returns an operand as the backward pass finds it."""
    members = getattr(layout, role)
    with scopes.part("rounding"):
        found = round_tensor(
            how.recipe, x.astype(jnp.float32), how.format, how.recipe.init(()),
            _key(data, "stored", role), members, watching.axis_names,
            Use("stored", layout.summed["forward", role], layout.sliced[role]),
        )  # fmt: skip
    restored = found.values * spread(found.scale, members, x.ndim)
    return restored.astype(x.dtype)


def _rounded(
    layout: Layout,
    recipes: Recipes,
    watching: Watching,
    data: Data,
    role: str,
    product: str,
    x: Float[Array, "..."],
    fmt: Format,
) -> Rounded:
    """Returns an operand of one of the products, rounded."""
    with scopes.part("rounding"):
        return round_tensor(
            getattr(recipes, role), x, fmt, getattr(data.states, role),
            _key(data, product, role),
            layout.out if role == "gradient" else getattr(layout, role),
            watching.axis_names,
            Use(product, layout.summed[product, role], layout.sliced[role]),
            in_blocks=getattr(layout.kernels, product).scales is not None,
        )  # fmt: skip


def _operand(rounded: Rounded) -> Operand:
    return rounded.values if rounded.blocked is None else rounded.blocked


def after(done: Array, fmt: Format) -> Format:
    """Returns `fmt`, known on a CPU only once `done` is computed.

    XLA:CPU schedules for concurrency and would round every weight of a network at the
    start of the step. Formats are data, so they can say what has to come first: each
    rounded copy is made when it is needed, and is gone before the next one. The memory
    of a step is then that of the plain one and of one rounded tensor.
    """
    if is_spread(done):  # an element of it cannot be picked out
        return fmt

    def wait(done: Array, bits: Array) -> Array:
        first = done.reshape(-1)[0] if done.ndim else done
        word = lax.bitcast_convert_type(first, jnp.int32)
        return bits + lax.clamp(jnp.int32(0), word, jnp.int32(0))

    def go(done: Array, bits: Array) -> Array:
        del done
        return bits

    bits = vary_over(jnp.asarray(fmt.mantissa_bits), varying_axes(done))
    return fmt._replace(
        mantissa_bits=lax.platform_dependent(done, bits, cpu=wait, default=go)
    )


def _weight_format(layout: Layout, done: Array, fmt: Format) -> Format:
    """Returns the weight's format, known `after` what is done except in a time loop."""
    return fmt if layout.in_time else after(done, fmt)


def _key(data: Data, product: str, role: str) -> Array | None:
    """Returns the key of one rounding; copies that are shared share their key."""
    if data.keys is None:
        return None
    shared = isinstance(data.entry, SharedPrecision) and product != "stored"
    use = role if shared else f"{product} {role}"
    return jax.random.fold_in(data.keys[role], zlib.crc32(use.encode()))


def _rescale(
    product: Array, a: Rounded, b: Rounded, members: tuple[int, ...], kernel: Kernel
) -> Float[Array, "..."]:
    """Returns the product in the units of its operands: scales multiply the result."""
    pairs = [
        (x.blocked.elements, x.blocked.of_tensor) if x.blocked else (x.values, x.scale)
        for x in (a, b)
    ]
    scale = pairs[0][1] * pairs[1][1]
    for (values, _), dtype in zip(pairs, kernel.dtypes, strict=True):
        if (lost := no_number(values, dtype)) is not None:
            scale = jnp.where(lost, jnp.nan, scale)
    return product.astype(jnp.float32) * spread(scale, members, product.ndim)
