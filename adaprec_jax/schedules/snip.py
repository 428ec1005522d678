"""A share of all products in a low format: those that lose the least by it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from adaprec_jax.contractions.fitting import fit_entry
from adaprec_jax.contractions.statistics import ROLES, Stats, Watch
from adaprec_jax.contractions.table import Contraction, Table, macs_shares
from adaprec_jax.formats import Format, describe
from adaprec_jax.precision import Dgrad, Forward, Plan, Precision, Wgrad
from adaprec_jax.schedules.by_layer import by_path, end_to_end, gathered
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select

_PRODUCTS: tuple[str, ...] = ("forward", "dgrad", "wgrad")


class Estimate(NamedTuple):
    """What is known of one product of every layer, laid end to end.

    Attributes:
        low: Whether its operands are in the low format.
        loss: Estimated loss of quality by that, as of the last look; NaN before it.
    """

    low: Bool[Array, "layers"]
    loss: Float32[Array, "layers"]


class SnipState(NamedTuple):
    """State of `snip`.

    Attributes:
        scope: The contractions it plans for.
        share: Of the multiply-accumulates, to be in the low format.
        every: Calls between two solutions.
        products: By product.
    """

    scope: Scope
    share: Float32[Array, ""]
    every: Int32[Array, ""]
    products: dict[str, Estimate]


def snip(low: Format, high: Format, *, share: float, every: int = 100) -> Schedule:
    """Puts a share of all products into a low format, where it harms the least.

    Items are the three products of each layer. With e(x) = |x - Q(x)| / |x|, the error
    of a tensor relative to its own 2-norm, an item loses by the low format

        forward: r (sqrt(e(a)^2 + e(w)^2) in low - the same in high),
        dgrad:     sqrt(e(g)^2 + e(w)^2) in low - the same in high,
        wgrad:     sqrt(e(g)^2 + e(a)^2) in low - the same in high,

    a, w and g being activation, weight and output gradient: the error of a product
    relative to the product, if its operands err independently. r weighs a layer's
    forward error by its first-order effect on the loss, |g| |a w|, relative to the mean
    over the layers, with |a w| = |a| |w| / sqrt(k) for a contraction over k numbers.
    The items are taken by rising loss per multiply-accumulate until those taken hold
    `share` of all. That is the least loss if all items are equally large; else it may
    miss it by one item.

    Decides:
        One of two formats for each of the three products of each layer, all anew every
        `every` calls; high before the first statistics.

    Signal:
        Squares and squared errors of all tensors in both formats, in the last step.

        Logs `signal/forward_loss/PATH`, `signal/dgrad_loss/PATH` and
        `signal/wgrad_loss/PATH`, what each item loses, as of the last solution. They
        are ranked by multiply-accumulate and meet no threshold but `share`. The formats
        of the same row follow from them.

    Costs:
        Two roundings of every tensor and a sort of 3 items a layer in the steps that
        are looked at; a number and a flag per item.

    Source:
        SNIP, layer-wise allocation of FP4 and FP8, ASPLOS 2026, arXiv:2602.01410.

    Against:
        The source is known to us in extracts only. It measures the divergence of the
        loss and of the optimizer's update, the latter with the state of AdamW and with
        passes under added noise, and solves an integer linear programme about every
        100,000 steps. The estimate above, the greedy solution and the default of
        `every` are ours; the source's scales are per block, and it rounds FP4 gradients
        stochastically, which is up to the scaling recipe here.

    Args:
        low: Format of the products that are taken, FP4 in the source.
        high: Format of the others, FP8 in the source.
        share: Of the multiply-accumulates of all products, at least to be in the low
            format, 0 to 1. dgrad of the first layer counts, as in the cost of a step.
        every: Calls from one solution to the next, at least 1.

    Raises:
        ValueError: An argument is out of range; (in `init`) the multiplications cannot
            be counted; (in `update`) the statistics were not gathered.

    >>> from adaprec_jax.formats import get
    >>> schedule = snip(get("float4_e2m1fn"), get("float8_e4m3fn"), share=0.75)
    >>> list(schedule.reads.what_if)
    ['float4_e2m1fn', 'float8_e4m3fn']
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0 to 1, got {share}.")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    names = describe(low), describe(high)

    def init(table: Table) -> SnipState:
        layers = macs_shares(table).shape
        unknown = Estimate(
            jnp.zeros(layers, jnp.bool_), jnp.full(layers, jnp.nan, jnp.float32)
        )
        products = dict.fromkeys(_PRODUCTS, unknown)
        scope = Scope(table, names)
        return SnipState(scope, jnp.float32(share), jnp.int32(every), products)

    def update(
        step: Int32[Array, ""], stats: Stats, state: SnipState
    ) -> tuple[Plan, SnipState]:
        table = state.scope.table
        losses = _losses(table, stats, *names)
        row = jnp.concatenate([losses[product] for product in _PRODUCTS])
        due = stats.finite & (step % state.every == 0) & jnp.all(jnp.isfinite(row))
        taken = greedy(row, _macs(table), state.share).reshape(len(_PRODUCTS), -1)
        products = {
            product: select(
                due, Estimate(taken[k], losses[product]), state.products[product]
            )
            for k, product in enumerate(_PRODUCTS)
        }
        chosen = {product: by_path(table, one.low) for product, one in products.items()}
        plan: Plan = {}
        for c in table.contractions:
            forward, dgrad, wgrad = (
                select(chosen[product][c.name], low, high) for product in _PRODUCTS
            )
            entry = Precision(
                Forward(forward, forward), Dgrad(dgrad, dgrad), Wgrad(wgrad, wgrad)
            )
            plan[c.name] = fit_entry(entry, c)
        return plan, state._replace(products=products)

    watched = Watch(("rms", "sqnr_db"), what_if={names[0]: low, names[1]: high})
    return Schedule(init, update, watched, every, signals=_signals)


def greedy(
    loss: Float32[Array, "items"],
    macs: Float32[Array, "items"],
    share: Float32[Array, ""],
) -> Bool[Array, "items"]:
    """Returns which items to take: by rising loss per work, until the share is met.

    Args:
        loss: What taking an item loses.
        macs: Its work; an item without any is taken only if it loses nothing.
        share: Of the sum of `macs`, to be reached.

    >>> loss, macs = jnp.array([4.0, 1.0, 3.0]), jnp.array([1.0, 1.0, 2.0])
    >>> greedy(loss, macs, jnp.float32(0.7)).tolist()
    [False, True, True]
    """
    per_mac = jnp.where(macs > 0, loss / macs, jnp.where(loss > 0, jnp.inf, 0.0))
    order = jnp.argsort(per_mac)
    ordered = macs[order]
    before = jnp.cumsum(ordered) - ordered
    # A float32 sum of shares ends within a few ulp of where it should.
    target = share * jnp.sum(macs) * (1 - 1e-6)
    return jnp.zeros(macs.shape, jnp.bool_).at[order].set(before < target)


def _macs(table: Table) -> Float32[Array, "items"]:
    """Returns the work of the items; what is not differentiated has one product."""
    forward = jnp.asarray(macs_shares(table), jnp.float32)
    differentiated = {c.name: jnp.float32(c.differentiated) for c in table.contractions}
    backward = forward * end_to_end(table, differentiated)
    return jnp.concatenate([forward, backward, backward])


def _losses(
    table: Table, stats: Stats, low: str, high: str
) -> dict[str, Float32[Array, "layers"]]:
    """Returns what each product of each layer loses; NaN where that is not known."""
    errors = {
        name: {role: _error(table, stats, name, role) for role in ROLES}
        for name in (low, high)
    }
    a, w, g = (gathered(table, stats, role, "sum_squares", low) for role in ROLES)
    lengths = {c.name: jnp.float32(_length(c)) for c in table.contractions}
    effect = jnp.sqrt(a) * jnp.sqrt(w) * jnp.sqrt(g / end_to_end(table, lengths))
    mean = jnp.mean(effect)
    weight = jnp.where(mean > 0, effect / mean, 1.0)

    def lost(one: str, other: str) -> Float32[Array, "layers"]:
        root = {
            name: jnp.sqrt(jnp.square(error[one]) + jnp.square(error[other]))
            for name, error in errors.items()
        }
        return root[low] - root[high]

    return {
        "forward": weight * lost("activation", "weight"),
        "dgrad": lost("gradient", "weight"),
        "wgrad": lost("gradient", "activation"),
    }


def _error(table: Table, stats: Stats, fmt: str, role: str) -> Float32[Array, "layers"]:
    """Returns the relative error of a tensor of each layer.

    It is 0 for a tensor of zeros, and for a gradient that there is none of.
    """
    elements, squares, noise = (
        gathered(table, stats, role, field, fmt)
        for field in ("elements", "sum_squares", "noise_squares")
    )
    error = jnp.sqrt(noise) / jnp.where(squares == 0, 1.0, jnp.sqrt(squares))
    differentiated = {c.name: jnp.bool_(c.differentiated) for c in table.contractions}
    absent = (role == "gradient") & ~end_to_end(table, differentiated)
    return jnp.where(absent, 0.0, jnp.where(elements == 0, jnp.nan, error))


def _length(c: Contraction) -> float:
    """Returns over how many numbers the forward product sums."""
    results = 1
    for size in c.shapes[2]:
        results *= size
    return max(c.macs / max(results, 1), 1.0)


def _signals(state: SnipState) -> Signals:
    return {
        f"{product}_loss": by_path(state.scope.table, one.loss)
        for product, one in state.products.items()
    }
