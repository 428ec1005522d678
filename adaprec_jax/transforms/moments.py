"""Optimizer moments in narrow formats: FP8-LM's, COAT's, or any other.

An optimizer computes with what it remembers, and forgets what it cannot store. Here it
computes in float32, and after every update the moments that are to be narrow become the
values of their narrow copies, so that the next update starts from those. The arrays
stay float32: this emulates narrow storage to the bit and saves no memory itself;
`adaprec_jax.cost.bytes_per_parameter` says what real storage takes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, PyTree

from adaprec_jax import formats, scaling
from adaprec_jax.formats import Format
from adaprec_jax.scaling import Recipe, largest_magnitude
from adaprec_jax.transforms.rounding import as_arrays, check_format, round_tensor

_STEPS_OF_K = 16.0  # COAT rounds the exponent down to a sixteenth
_LARGEST_K = 1024.0
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


class Moment(NamedTuple):
    """How one moment is stored; static, but for the format.

    Attributes:
        fmt: Its format.
        recipe: How it is scaled.
        group: Neighbours in the flattened tensor that share a scale; None is the whole
            tensor.
        expand: Whether the range is expanded first (`expand`).
    """

    fmt: Format
    recipe: Recipe
    group: int | None = None
    expand: bool = False


class NarrowMomentsState(NamedTuple):
    """State of `narrow_moments`.

    Attributes:
        inner: State of the wrapped optimizer, its moments rounded.
        calls: Updates so far; the noise of stochastic rounding depends on it.
        fmts: The format of each moment, in the order they were given in. It is data:
            another one may be put in its place.
        recipes: States of the scaling recipes, one for each rounded tensor.
    """

    inner: optax.OptState
    calls: Int32[Array, ""]
    fmts: tuple[Format, ...]
    recipes: tuple[Any, ...]


class Expanded(NamedTuple):
    """A tensor whose range was expanded, and what leads back.

    Attributes:
        value: sign(x) * (|x| / centre)^k, float32.
        k: The exponent, float32, of size 1 along the axes.
        centre: The geometric mean of the largest and smallest |x|, likewise.
    """

    value: Float32[Array, "..."]
    k: Float32[Array, "..."]
    centre: Float32[Array, "..."]


def fp8_lm() -> dict[str, Moment]:
    """Returns FP8-LM's moments of Adam: the first in FP8, the second in float16.

    Both have one scale per tensor, a power of two; float16 is scaled as well.

    Source: FP8-LM, Peng et al. 2023, arXiv:2310.18313, who found that the second moment
    diverges in FP8.

    >>> moments = fp8_lm()
    >>> {name: int(formats.bits(moment.fmt)) for name, moment in moments.items()}
    {'mu': 8, 'nu': 16}
    """
    # By itself float16 is left unscaled by every recipe.
    half = formats.floating(5, 10)._replace(scaled=np.bool_(True))
    return {
        "mu": Moment(_e4m3(), scaling.current()),
        "nu": Moment(half, scaling.current()),
    }


def coat(group: int = 128) -> dict[str, Moment]:
    """Returns COAT's moments of Adam: both in FP8, by group, with expanded range.

    Source: COAT, Xi et al. 2024, arXiv:2410.19313.

    Args:
        group: Neighbours that share scale and exponent.

    >>> from adaprec_jax.cost import bytes_per_parameter
    >>> bytes_per_parameter(moments=coat())  # 2 of 8 bits, 2 of 96 bits for 128
    2.1875
    """
    moment = Moment(_e4m3(), scaling.current(power_of_two=False), group, expand=True)
    return {"mu": moment, "nu": moment}


def narrow_moments(
    inner: optax.GradientTransformation,
    moments: Mapping[str, Moment],
    *,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` with moments that are rounded after every update.

    What is not finite stays as it is, and takes no part in the scale.

    Source: FP8-LM, arXiv:2310.18313, and COAT, arXiv:2410.19313, by `moments`.

    Args:
        inner: The optimizer.
        moments: How each moment is stored, by the name it has in the optimizer's state:
            "mu" and "nu" of Adam, "trace" of momentum.
        seed: Of recipes that round stochastically; runs of a pack share it.

    Raises:
        ValueError: A moment is no `Moment`, or its format or group is wrong; when the
            state is made, the optimizer keeps nothing of that name.

    >>> tx = narrow_moments(optax.sgd(1.0, momentum=0.5), {"trace": fp8_lm()["mu"]})
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> updates, state = tx.update(jnp.array([1.0, 0.33]), state, w)
    >>> print(updates, optax.tree_utils.tree_get(state, "trace"))
    [-1.   -0.33] [1.      0.34375]
    """
    moments = dict(moments)
    for name, moment in moments.items():
        _check(name, moment)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> NarrowMomentsState:
        first = wrapped.init(params)
        found = _named_leaves(first, moments)
        for name in moments:
            if name not in [each for each, _ in found]:
                raise ValueError(
                    f"The optimizer's state has no moment {name!r}; Adam has mu and "
                    "nu, momentum has trace."
                )
        return NarrowMomentsState(
            inner=first,
            calls=jnp.zeros((), jnp.int32),
            fmts=tuple(as_arrays(moment.fmt) for moment in moments.values()),
            recipes=tuple(_init_recipe(moments[name], leaf) for name, leaf in found),
        )

    def update(
        updates: PyTree,
        state: NarrowMomentsState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, NarrowMomentsState]:
        with jax.numpy_dtype_promotion("standard"):  # as optax mixes dtypes
            updates, new = wrapped.update(updates, state.inner, params, **extra_args)
        key = jax.random.fold_in(jax.random.key(seed), state.calls)
        fmts = dict(zip(moments, state.fmts, strict=True))
        rounded, recipes = [], []
        for index, (name, leaf) in enumerate(_named_leaves(new, moments)):
            value, recipe_state = round_moment(
                leaf,
                moments[name]._replace(fmt=fmts[name]),
                state.recipes[index],
                key=jax.random.fold_in(key, index),
            )
            rounded.append(value.astype(leaf.dtype))
            recipes.append(recipe_state)
        return updates, NarrowMomentsState(
            inner=_replace_named(new, moments, rounded),
            calls=state.calls + 1,
            fmts=state.fmts,
            recipes=tuple(recipes),
        )

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]  (optax: a state is any tree)
    )


def round_moment(
    x: Float[Array, "..."], moment: Moment, recipe_state: Any, *, key: Any = None
) -> tuple[Float32[Array, "..."], Any]:
    """Returns the value of `x` after storage, and the recipe's next state.

    Args:
        x: A tensor.
        moment: How it is stored. Groups are neighbours in its flattened form; the last
            one is filled up with zeros.
        recipe_state: Of the moment's recipe; `()` for recipes without one.
        key: For a recipe that rounds stochastically.

    >>> x = jnp.array([1.0, 1e-7])
    >>> for moment in (fp8_lm()["mu"], coat()["mu"]):
    ...     print(f"{round_moment(x, moment, ())[0][1]:.1e}")
    0.0e+00
    1.2e-07
    """
    size = x.size if moment.group is None else min(moment.group, x.size)
    flat = x.astype(jnp.float32).reshape(-1)
    rows = jnp.pad(flat, (0, -flat.size % max(size, 1))).reshape(-1, max(size, 1))
    # What is not finite would decide the exponent of its group.
    finite = jnp.isfinite(rows)
    source = jnp.where(finite, rows, 0.0)
    expanded = expand(source, moment.fmt, (1,)) if moment.expand else None
    value, recipe_state = round_tensor(
        source if expanded is None else expanded.value,
        moment.fmt,
        moment.recipe,
        recipe_state,
        axes=(1,),
        key=key,
    )
    if expanded is not None:
        # What is not scaled is not expanded: float32 stays the identity.
        back = contract(expanded._replace(value=value))
        value = jnp.where(moment.fmt.scaled, back, value)
    value = jnp.where(finite, value, rows)
    return value.reshape(-1)[: flat.size].reshape(x.shape), recipe_state


def expand(x: Float[Array, "..."], fmt: Format, axes: tuple[int, ...]) -> Expanded:
    """Returns `x` raised to the power that makes its range that of the format.

    With M and m the largest and smallest nonzero |x| over `axes`,

        value = sign(x) * (|x| / sqrt(M m))^k
        k = floor(16 * log2(max_value^2 / 2) / log2(M / m)) / 16,

    so that a moment that spans many powers of two is squeezed into the format's, and
    one that spans few is spread over more of its values. Xi et al. 2024, COAT,
    arXiv:2410.19313, for float8_e4m3fn, whose values lie about as far below 1 as above
    it. Ours are the bounds of k, 1/16 and 1024 (k = 1 where all |x| are equal), and
    that what is below float32's smallest normal number counts as zero. A format that is
    not scaled expands nothing.

    Args:
        x: A tensor; finite.
        fmt: The format that it will be rounded to; data.
        axes: Over which one exponent is shared.

    >>> fmt = formats.get("float8_e4m3fn")
    >>> print(expand(jnp.array([0.5, -8.0, 0.0]), fmt, (0,)).k)
    [4.125]
    """
    wide = x.astype(jnp.float32)
    magnitude = jnp.abs(wide)
    nonzero = magnitude >= _SMALLEST_NORMAL
    largest = largest_magnitude(jnp.where(nonzero, wide, 0.0), axes)
    some = largest > 0
    largest = jnp.where(some, largest, 1.0)
    smallest = jnp.min(
        jnp.where(nonzero, magnitude, largest), axes, keepdims=True, initial=jnp.inf
    )
    smallest = jnp.where(some, smallest, 1.0)
    octaves = jnp.log2(largest) - jnp.log2(smallest)
    # In this order nothing overflows, not for the widest format either.
    target = 2.0 * jnp.log2(jnp.asarray(fmt.max_value)) - 1.0
    k = jnp.floor(_STEPS_OF_K * target / jnp.maximum(octaves, 2.0**-20)) / _STEPS_OF_K
    k = jnp.clip(k, 1.0 / _STEPS_OF_K, _LARGEST_K)
    k = jnp.where((octaves > 0) & fmt.scaled, k, 1.0)
    centre = jnp.sqrt(largest) * jnp.sqrt(smallest)
    centre = jnp.where(fmt.scaled, centre, 1.0)
    # XLA may divide by multiplying with the reciprocal, which of a large number is
    # subnormal and flushed to 0: both are brought near 1 first, exactly.
    towards_one = jnp.where(
        centre > 2.0**64, 2.0**-64, jnp.where(centre < 2.0**-64, 2.0**64, 1.0)
    )
    # The power of a positive number only: its sign is put back below.
    positive = jnp.where(nonzero, magnitude, centre)
    power = jnp.power((positive * towards_one) / (centre * towards_one), k)
    value = jnp.where(nonzero, jnp.sign(wide) * power, 0.0)
    return Expanded(jnp.where(fmt.scaled, value, wide), k, centre)


def contract(expanded: Expanded) -> Float32[Array, "..."]:
    """Returns the tensor that `expand` gave this for.

    >>> fmt = formats.get("float8_e4m3fn")
    >>> x = jnp.array([0.5, -8.0, 0.0])
    >>> print(contract(expand(x, fmt, (0,))))
    [ 0.5 -8.   0. ]
    """
    value, k, centre = expanded
    nonzero = value != 0
    power = jnp.power(jnp.where(nonzero, jnp.abs(value), 1.0), 1.0 / k)
    return jnp.where(nonzero, jnp.sign(value) * power * centre, 0.0)


def _check(name: str, moment: Any) -> None:
    if not isinstance(moment, Moment):
        raise ValueError(
            f"narrow_moments needs a Moment for each name, got {moment!r} for {name!r}."
        )
    check_format(f"The moment {name!r}", moment.fmt)
    if moment.group is not None and moment.group < 1:
        raise ValueError(
            f"The moment {name!r} needs a group of at least 1, got {moment.group}."
        )


def _init_recipe(moment: Moment, leaf: Array) -> Any:
    groups = 1 if moment.group is None else -(-leaf.size // moment.group)
    return moment.recipe.init((groups,))


def _name_of(path: tuple[Any, ...]) -> str | None:
    """Returns the innermost field of a state that a leaf lies in."""
    fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return fields[-1] if fields else None


def _named_leaves(
    state: PyTree, moments: Mapping[str, Moment]
) -> list[tuple[str, Array]]:
    """Returns the leaves that are to be rounded, each with its moment's name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    named = [(_name_of(path), leaf) for path, leaf in leaves]
    return [
        (name, leaf) for name, leaf in named if name is not None and name in moments
    ]


def _replace_named(
    state: PyTree, moments: Mapping[str, Moment], values: list[Array]
) -> PyTree:
    """Returns the state with these values for what `_named_leaves` lists."""
    remaining = iter(values)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: next(remaining) if _name_of(path) in moments else leaf, state
    )


def _e4m3() -> Format:
    return formats.floating(4, 3, encoding="fn")
