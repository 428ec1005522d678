"""One contraction with its three products rounded: forward, dgrad and wgrad.

The forward product is formed from rounded operands, and so are the two products of the
backward pass, each from copies of its own (or from shared ones, which are equal and
which the compiler merges). Only the unrounded operands are kept for the backward pass:
a residual in a loop over layers then costs no more memory than without rounding.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from adaprec_jax.contractions.jax_internals import (
    instantiate,
    vary_over,
    varying_axes,
)
from adaprec_jax.contractions.statistics import (
    TensorStats,
    measure,
    nothing,
    pack,
)
from adaprec_jax.formats import Format
from adaprec_jax.precision import Entry, SharedPrecision, separate
from adaprec_jax.scaling import Recipe, Recipes

Bilinear: TypeAlias = Callable[[Array, Array], Array]


class Probe(NamedTuple):
    """Zeros whose gradient carries what was seen of the cotangent.

    Attributes:
        stats: `(*members, formats, fields)`: the packed statistics for the format in
            force, then for each format of `what_if`; None if not watched.
        amax: `(*members,)`: for the update of a scaling recipe; None if it has none.
    """

    stats: Float[Array, "*members formats fields"] | None
    amax: Float[Array, "*members"] | None


class Observed(NamedTuple):
    """What was seen of one tensor in one contraction; fields as in `Probe`."""

    stats: Float[Array, "*members formats fields"] | None
    amax: Float[Array, "*members"] | None


class States(NamedTuple):
    """States of the scaling recipes of one contraction."""

    activation: Any
    weight: Any
    gradient: Any


class Layout(NamedTuple):
    """Static description of one contraction; where its member axes are.

    Attributes:
        product: Forms the result from activation and weight, float32 in and out.
        sizes: Sizes of the member axes, outermost first.
        activation: Positions of the member axes in the activation.
        weight: Positions of the member axes in the weight.
        out: Positions of the member axes in the result.
    """

    product: Bilinear
    sizes: tuple[int, ...]
    activation: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]


class Watching(NamedTuple):
    """Static choice of statistics for one contraction.

    Attributes:
        fields: Fields of `TensorStats` for every watched role.
        roles: The roles whose statistics are gathered.
        amax_roles: The roles whose amax a scaling recipe needs at every step.
        axis_names: Mesh axes over which one tensor is spread under `shard_map`.
    """

    fields: tuple[str, ...]
    roles: tuple[str, ...]
    amax_roles: tuple[str, ...]
    axis_names: tuple[str, ...]


class Data(NamedTuple):
    """Everything traced that a rounded contraction takes beside its operands."""

    entry: Entry
    states: States
    key: Array | None
    collect: Bool[Array, ""] | None
    what_if: dict[str, Format]


class Rounded(NamedTuple):
    """A tensor brought into a format's range and rounded: x ~= values * scale."""

    values: Float[Array, "..."]
    scale: Float[Array, "*members"]


def rounded_contraction(
    layout: Layout,
    recipes: Recipes,
    watching: Watching,
    operands: tuple[Array, Array],
    data: Data,
    probe: Probe,
) -> tuple[Float[Array, "..."], dict[str, Observed]]:
    """Returns the product of the rounded operands and what was seen of them.

    Args:
        layout: Where the members are and how the product is formed.
        recipes: Scaling recipes by role.
        watching: Which statistics are gathered.
        operands: Activation and weight, any float dtype.
        data: The formats in force, recipe states, key and cadence.
        probe: Zeros; their gradient is what was seen of the cotangent.

    Returns:
        The result, float32, and for the roles "activation" and "weight" what was seen.
        Its gradient is formed by the rounded dgrad and wgrad products; it has no
        forward-mode derivative.
    """
    forward = separate(data.entry).forward
    frozen = [lax.stop_gradient(x).astype(jnp.float32) for x in operands]
    activation = _round(
        recipes.activation, frozen[0], forward.activation, data.states.activation,
        _key(data, "forward", "activation"), layout.activation, watching.axis_names,
    )  # fmt: skip
    weight = _round(
        recipes.weight, frozen[1], after(activation.scale, forward.weight),
        data.states.weight,
        _key(data, "forward", "weight"), layout.weight, watching.axis_names,
    )  # fmt: skip
    seen = {
        role: observe(role, x, rounded, fmt, positions, data, watching)
        for role, x, rounded, fmt, positions in (
            (
                "activation",
                frozen[0],
                activation,
                forward.activation,
                layout.activation,
            ),
            ("weight", frozen[1], weight, forward.weight, layout.weight),
        )
    }

    @jax.custom_vjp
    def contract(
        operands: tuple[Array, Array], rounded: tuple[Rounded, Rounded],
        data: Data, probe: Probe,
    ) -> Array:  # fmt: skip
        del operands, data, probe
        left, right = rounded
        product = layout.product(left.values, right.values)
        return _rescale(product, left, right, layout.out)

    def forward_rule(*primals: Any) -> tuple[Array, Any]:
        operands, rounded, data, probe = jax.tree.map(
            lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, "perturbed")
        )
        wanted = tuple(p.perturbed for p in primals[0])
        return contract(operands, rounded, data, probe), (operands, data, probe, wanted)

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
    wanted: tuple[bool, bool],
) -> tuple[tuple[Array | None, ...], Observed]:
    """Returns the wanted gradients of the operands and what the cotangent showed."""
    _, dgrad, wgrad = separate(data.entry)
    activation, weight = (x.astype(jnp.float32) for x in operands)
    gradients: list[Array | None] = [None, None]

    def rounded(role: str, product: str, x: Array, fmt: Format) -> Rounded:
        return _round(
            getattr(recipes, role), x, fmt, getattr(data.states, role),
            _key(data, product, role),
            layout.out if role == "gradient" else getattr(layout, role),
            watching.axis_names,
        )  # fmt: skip

    down = rounded("gradient", "dgrad", gradient, dgrad.gradient)
    seen = observe("gradient", gradient, down, dgrad.gradient, layout.out, data, watching)
    done = down.scale
    if wanted[0]:
        right = rounded("weight", "dgrad", weight, after(done, dgrad.weight))
        transposed = jax.linear_transpose(
            lambda a: layout.product(a, right.values), activation
        )
        (product,) = transposed(down.values)
        gradients[0] = _rescale(product, down, right, layout.activation)
        done = product
    if wanted[1]:
        if not isinstance(data.entry, SharedPrecision):
            down = rounded("gradient", "wgrad", gradient, wgrad.gradient)
        left = rounded("activation", "wgrad", activation, after(done, wgrad.activation))
        transposed = jax.linear_transpose(
            lambda w: layout.product(left.values, w), weight
        )
        (product,) = transposed(down.values)
        gradients[1] = _rescale(product, down, left, layout.weight)
    return tuple(
        None if d is None else d.astype(x.dtype)
        for d, x in zip(gradients, operands, strict=True)
    ), seen


def after(done: Array, fmt: Format) -> Format:
    """Returns `fmt`, known on a CPU only once `done` is computed.

    XLA:CPU schedules for concurrency and would round every weight of a network at the
    start of the step. Formats are data, so they can say what has to come first: each
    rounded copy is made when it is needed, and is gone before the next one. The memory
    of a step is then that of the plain one and of one rounded tensor.
    """

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


def _key(data: Data, product: str, role: str) -> Array | None:
    """Returns the key of one rounding; copies that are shared share their key."""
    if data.key is None:
        return None
    shared = isinstance(data.entry, SharedPrecision)
    use = role if shared else f"{product} {role}"
    return jax.random.fold_in(data.key, zlib.crc32(use.encode()))


def _round(
    recipe: Recipe,
    x: Float[Array, "..."],
    fmt: Format,
    state: Any,
    key: Array | None,
    members: tuple[int, ...],
    axis_names: tuple[str, ...],
) -> Rounded:
    """Returns `x` rounded by its recipe, each member with formats and scale of its own."""

    def one(x: Array, fmt: Format, state: Any, key: Array | None) -> Rounded:
        values, scale = recipe.round(
            x, fmt, state, axes=tuple(range(x.ndim)), key=key, axis_names=axis_names
        )
        return Rounded(values, scale.reshape(()))

    # Member axes are mapped innermost first; the outer ones keep their positions.
    for depth, position in reversed(list(enumerate(members))):
        one = jax.vmap(
            one,
            in_axes=(
                position - _before(members, depth),
                0,
                0,
                None if key is None else 0,
            ),
            out_axes=Rounded(position - _before(members, depth), 0),
        )
    sizes = tuple(x.shape[position] for position in members)
    fmt = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, sizes), fmt)
    if key is not None and sizes:
        key = jax.random.split(key, sizes)
    return one(x, fmt, state, key)


def _before(members: tuple[int, ...], depth: int) -> int:
    """Returns how many outer member axes lie before the one at `depth`."""
    return sum(position < members[depth] for position in members[:depth])


def _rescale(
    product: Float[Array, "..."], a: Rounded, b: Rounded, members: tuple[int, ...]
) -> Float[Array, "..."]:
    """Returns the product in the units of its operands: scales multiply the result."""
    return product * spread(a.scale * b.scale, members, product.ndim)


def spread(leaf: Array, positions: tuple[int, ...], rank: int) -> Float[Array, "..."]:
    """Returns a per-member array with its axes at `positions` among `rank` axes.

    >>> spread(jnp.ones(3), (1,), 3).shape
    (1, 3, 1)
    """
    if not positions:
        return leaf
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    leaf = jnp.transpose(leaf, order)
    shape = [1] * rank
    for axis, i in enumerate(order):
        shape[positions[i]] = leaf.shape[axis]
    return leaf.reshape(shape)


def observe(
    role: str,
    x: Float[Array, "..."],
    rounded: Rounded,
    fmt: Format,
    members: tuple[int, ...],
    data: Data,
    watching: Watching,
) -> Observed:
    """Returns the statistics and the amax that are asked for of one tensor."""
    axes = tuple(axis for axis in range(x.ndim) if axis not in members)
    sizes = tuple(x.shape[position] for position in members)
    amax = None
    if role in watching.amax_roles:
        # Reduced over `axes`, the member axes keep the order of the tensor's axes.
        amax = jnp.max(jnp.abs(x), axes)
        if watching.axis_names:
            amax = lax.pmax(amax, watching.axis_names)
        amax = _ordered(amax, members)
    if role not in watching.roles or not watching.fields:
        return Observed(None, amax)

    def gather() -> Array:
        parts = [(rounded, fmt), *((None, f) for f in data.what_if.values())]
        return jnp.stack(
            [
                pack(_measured(x, part, f, members, axes, watching), watching.fields)
                for part, f in parts
            ],
            axis=-2,
        )

    def leave() -> Array:
        empty = pack(nothing(sizes, watching.fields), watching.fields)
        return jnp.stack([empty] * (1 + len(data.what_if)), axis=-2)

    if data.collect is None:
        return Observed(gather(), amax)
    return Observed(lax.cond(data.collect, gather, leave), amax)


def _ordered(leaf: Array, members: tuple[int, ...]) -> Array:
    """Returns `leaf` with its axes in the order of the plan instead of the tensor's."""
    rank = sorted(members)
    return jnp.transpose(leaf, [rank.index(position) for position in members])


def _measured(
    x: Float[Array, "..."],
    rounded: Rounded | None,
    fmt: Format,
    members: tuple[int, ...],
    axes: tuple[int, ...],
    watching: Watching,
) -> TensorStats:
    """Returns the statistics of rounding to `fmt`; by current scaling if not done yet."""
    from adaprec_jax.scaling import current  # what-if formats are scaled afresh

    if rounded is None:
        rounded = _round(current(), x, fmt, (), None, members, watching.axis_names)
    scale = spread(rounded.scale, members, x.ndim)
    bounds = (spread(jnp.broadcast_to(bound, rounded.scale.shape), members, x.ndim)
              * scale for bound in (fmt.min_value, fmt.max_value))  # fmt: skip
    stats = measure(x, rounded.values * scale, *bounds, watching.fields, axes)
    return TensorStats(*(s if s is None else _ordered(s, members) for s in stats))
