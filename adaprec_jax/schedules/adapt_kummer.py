"""Fixed-point words per layer: as short as the weights allow, longer as gradients ask.

"AdaPT", "APT" and "adaptive precision training" are three works; this is Kummer's.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from adaprec_jax.contractions.statistics import Stats
from adaprec_jax.contractions.table import Table
from adaprec_jax.contractions.weights import Weight, Weights
from adaprec_jax.formats import WIDEST_INTEGER, fixed_point
from adaprec_jax.plan import fill, integers
from adaprec_jax.precision import Plan, SharedPrecision
from adaprec_jax.quantizers import quantize
from adaprec_jax.schedules.by_layer import vectors
from adaprec_jax.schedules.schedule import Schedule, Scope, Signals, select

_LEAST_FRACTION = 4
_FLOAT32_BITS = 32
_LARGEST_DIVERSITY = 1e6  # of gradients that cancel; its square is a float32


class Limits(NamedTuple):
    """What decides about shapes, and about which rule is compiled.

    Attributes:
        max_bits: Of a word.
        max_lookback: Most gradients between two decisions.
        max_bins: Of a histogram.
        most_weights: Of a layer, in a histogram.
        quirks: Whether to do as the published code does.
    """

    max_bits: int
    max_lookback: int
    max_bins: int
    most_weights: int
    quirks: bool = False


class AdaptRule(NamedTuple):
    """The numbers of the rule; they may differ between runs.

    Attributes:
        max_bits: Of a word.
        buffer_bits: That a word has before its fraction, at least, after a decision.
        gradient_bits: Bits of the output gradients, constant.
        min_lookback: Fewest gradients that a decision looks back at.
        lookback_rate: Share of the new lookback in the one in force.
        min_resolution: Fewest bins of a histogram.
        divergence: Largest one of the histograms that a shorter word may cause.
        seed: Of the noise of stochastic rounding.
    """

    max_bits: Int32[Array, ""]
    buffer_bits: Int32[Array, ""]
    gradient_bits: Int32[Array, ""]
    min_lookback: Int32[Array, ""]
    lookback_rate: Float32[Array, ""]
    min_resolution: Int32[Array, ""]
    divergence: Float32[Array, ""]
    seed: UInt32[Array, ""]


class Word(NamedTuple):
    """What is known and decided of one contraction's weight, over its plan axes.

    Attributes:
        word: Bits of activations and weights.
        fraction: Bits of them behind the point.
        lookback: Gradients that the next decision looks back at.
        resolution: Bins of its histograms.
        gathered: Gradients since the last decision.
        norms: Sum of their norms.
        total: Their sum, of the shape of the weight.
        diversity: norms / |total|, in the last step; NaN before the first.
    """

    word: Int32[Array, "*axes"]
    fraction: Int32[Array, "*axes"]
    lookback: Int32[Array, "*axes"]
    resolution: Int32[Array, "*axes"]
    gathered: Int32[Array, "*axes"]
    norms: Float32[Array, "*axes"]
    total: Float32[Array, "*axes n"]
    diversity: Float32[Array, "*axes"]


class AdaptState(NamedTuple):
    """State of `adapt_kummer`.

    Attributes:
        scope: The contractions it plans for.
        rule: The numbers of the rule.
        words: By path.
        losses: Magnitudes of the last losses, the newest first.
        known: How many of them there are.
        strategy: 0, 1 or 2: push up by the least, the mean or the most.
    """

    scope: Scope
    rule: AdaptRule
    words: dict[str, Word]
    losses: Float32[Array, "lookback"]
    known: Int32[Array, ""]
    strategy: Int32[Array, ""]


def adapt_kummer(  # noqa: PLR0913 (one keyword for each number of the rule)
    *,
    start_word: int = 16,
    start_fraction: int = 8,
    max_bits: int = WIDEST_INTEGER,
    buffer_bits: int = 8,
    gradient_bits: int = 8,
    min_lookback: int = 25,
    max_lookback: int = 100,
    lookback_rate: float = 1.0,
    min_resolution: int = 50,
    max_resolution: int = 150,
    divergence: float = 0.01,
    most_weights: int = 16_384,
    seed: int = 0,
    quirks: bool = False,
) -> Schedule:
    """Gives each layer a fixed-point word <WL, FL> by its weights and gradients.

    After every step the diversity of the layer's gradients since its last decision is
    S = sum |g| / |sum g|. The lookback becomes ceil(m new + (1 - m) old), where new is
    ceil(max_lookback / S) within its bounds; at the largest lookback the resolution
    grows by a bin, at the smallest it shrinks. Once as many gradients are counted as
    the lookback says, the layer is decided about:

        push down: FL becomes the shortest from 4 to FL with which the histogram of the
            stochastically rounded weights diverges from that of the weights by at most
            `divergence` (Kullback-Leibler); then WL likewise, from FL to WL.
        push up: with d = ln S - 1, s = 1 if d <= 0, else from s1 = ceil(1 / d^2) and
            s2 = max(min(ceil(32 d^2), 32) - FL, 0) the smaller, the mean (rounded up)
            or the larger; FL += s, WL = max(WL, FL) + 1, within `max_bits`; at last FL
            leaves `buffer_bits` before it.

    Which of the three is the strategy: each step where the loss is at least the mean of
    the losses over the mean lookback moves it up by one, from the smaller to the mean
    to the larger, any other sets it to the smaller.

    Decides:
        Word and fraction bits of activations and weights for each layer, when its
        lookback has passed. The positions are absolute: no scaling recipe acts. A
        contraction without a parameter keeps its first word; output gradients are
        integers of constant width.

    Signal:
        The weights, and the sum of their gradients over the lookback; the loss.

        Logs S as `signal/diversity/PATH`, which is put into the formulas above, and
        `signal/lookback/PATH`, the number of gradients with which a layer is decided
        about. The words change in the step after the row in which it is reached. The
        divergence, which meets `divergence`, is not logged.

    Costs:
        A sum of gradients as large as the weights, and seven numbers a layer; every
        step a sum over each gradient, at a decision a rounding and a histogram of the
        weights, `most_weights` of them, for each candidate (`max_bits` of each kind).

    Source:
        Kummer et al. 2021, "Adaptive Precision Training (AdaPT)", arXiv:2107.13490.

    Against:
        The published results were presumably obtained with code whose search returns
        what has just failed the test, which compares the first slice of a weight alone,
        and which takes its diversity from normalised gradients; `quirks` does these
        three. It neither imitates the order of its bisection nor its divergence, which
        takes probabilities for logarithms, and does not train with the normalised
        gradients or the L1 penalty. The tolerance is ours (the code asks for 0, which
        stochastic rounding hardly meets), and so are one count added to every bin and
        words of 24 bits at most in the place of 32, and that histograms see a part of
        the weights of a large layer. How weights round in training is up to their
        scaling recipe; the source does it stochastically, and rounds the gradients of
        the weights to the same words.

    Args:
        start_word: Bits before the first decision.
        start_fraction: Of them behind the point.
        max_bits: Most bits of a word, at most 24.
        buffer_bits: Bits before the fraction, after a decision.
        gradient_bits: Bits of the output gradients, constant.
        min_lookback: Fewest gradients between two decisions about a layer.
        max_lookback: Most.
        lookback_rate: Share of the new lookback, above 0 to 1.
        min_resolution: Fewest bins of a histogram.
        max_resolution: Most bins, and those at first.
        divergence: Largest one that a shorter word may cause, at least 0.
        most_weights: Of a layer, that the histograms see, evenly spaced; at least 1.
        seed: Of the noise of stochastic rounding.
        quirks: Whether to do as the published code does; see above.

    Raises:
        ValueError: An argument is out of range.

    >>> schedule = adapt_kummer(start_word=12, start_fraction=8, buffer_bits=4)
    """
    _check(
        (start_word, start_fraction, max_bits, buffer_bits),
        (min_lookback, max_lookback),
        (min_resolution, max_resolution),
        lookback_rate,
        divergence,
        most_weights,
    )
    integers(2, gradient_bits)  # says what is wrong with a width out of range
    rule = AdaptRule(
        max_bits=jnp.int32(max_bits),
        buffer_bits=jnp.int32(buffer_bits),
        gradient_bits=jnp.int32(gradient_bits),
        min_lookback=jnp.int32(min_lookback),
        lookback_rate=jnp.float32(lookback_rate),
        min_resolution=jnp.int32(min_resolution),
        divergence=jnp.float32(divergence),
        seed=jnp.uint32(seed),
    )

    limits = Limits(max_bits, max_lookback, max_resolution, most_weights, quirks)

    def init(table: Table) -> AdaptState:
        words = {}
        for c in table.contractions:
            filled = {
                "word": start_word,
                "fraction": start_fraction,
                "lookback": max_lookback,
                "resolution": max_resolution,
                "gathered": 0,
            }
            weight = jnp.zeros(c.parameter_shape or (*c.axes, 0), jnp.float32)
            words[c.name] = Word(
                **{k: jnp.full(c.axes, v, jnp.int32) for k, v in filled.items()},
                norms=jnp.zeros(c.axes, jnp.float32),
                total=jnp.zeros_like(weight),
                diversity=jnp.full(c.axes, jnp.nan, jnp.float32),
            )
        return AdaptState(
            scope=Scope(table, limits),
            rule=rule,
            words=words,
            losses=jnp.zeros(max_lookback, jnp.float32),
            known=jnp.int32(0),
            strategy=jnp.int32(0),
        )

    def update(
        step: Int32[Array, ""], stats: Stats, state: AdaptState
    ) -> tuple[Plan, AdaptState]:
        del step
        loss = jnp.abs(stats.loss)
        weighted = [c for c in state.scope.table.contractions if c.parameter]
        lookbacks = [state.words[c.name].lookback.ravel() for c in weighted]
        counts = stats.finite & jnp.isfinite(loss)
        if lookbacks:
            mean = jnp.mean(jnp.concatenate(lookbacks).astype(jnp.float32))
            state = select(counts, _watch_loss(loss, mean, state), state)
        plan: Plan = {}
        gradient = integers(2, state.rule.gradient_bits).gradient
        for c in state.scope.table.contractions:
            found = state.words[c.name]
            fmt = fixed_point(found.word, found.fraction, scaled=False)
            plan[c.name] = fill(c, SharedPrecision(fmt, fmt, gradient))
        return plan, state

    def observe(
        step: Int32[Array, ""], weights: Weights, state: AdaptState
    ) -> AdaptState:
        words = dict(state.words)
        for index, c in enumerate(state.scope.table.contractions):
            if c.name not in weights:
                continue
            learned = _learn(
                words[c.name], weights[c.name], len(c.axes), state.rule, limits
            )
            expired = learned.gathered >= learned.lookback
            seen = weights[c.name].value
            if quirks and seen.ndim > len(c.axes) + 1:
                seen = seen[(slice(None),) * len(c.axes) + (0,)]
            key = jnp.stack(
                [state.rule.seed, step.astype(jnp.uint32), jnp.uint32(index)]
            )
            decide = functools.partial(
                _decide_all, _some(vectors(seen, c), most_weights), learned,
                state.rule, state.strategy, key, limits,
            )  # fmt: skip
            keep = functools.partial(tuple, (learned.word, learned.fraction))
            decided = lax.cond(jnp.any(expired), decide, keep)
            words[c.name] = _clear(learned, decided, expired)
        return state._replace(words=words)

    return Schedule(init, update, observe=observe, signals=_signals)


def _learn(
    word: Word, weight: Weight, axes: int, rule: AdaptRule, limits: Limits
) -> Word:
    """Returns what is known after a step; as before where that is not finite."""
    gradient = weight.gradient
    over = tuple(range(axes, gradient.ndim))
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient), over))
    if limits.quirks:
        unit = jnp.where(norm > 0, norm, 1.0)
        gradient = gradient / jnp.expand_dims(unit, over)
        norm = jnp.where(norm > 0, 1.0, 0.0)
    total, norms = word.total + gradient, word.norms + norm
    length = jnp.sqrt(jnp.sum(jnp.square(total), over))
    diversity = jnp.minimum(norms / length, _LARGEST_DIVERSITY)
    new = jnp.ceil(
        jnp.clip(
            limits.max_lookback / diversity,
            rule.min_lookback.astype(jnp.float32),
            limits.max_lookback,
        )
    )
    old = word.lookback.astype(jnp.float32)
    # Less than the rounding of float32, or a whole number would be raised.
    mixed = rule.lookback_rate * new + (1 - rule.lookback_rate) * old
    lookback = jnp.ceil(mixed - 1e-4).astype(jnp.int32)
    grows = (lookback == limits.max_lookback).astype(jnp.int32)
    shrinks = (lookback == rule.min_lookback).astype(jnp.int32)
    found = word._replace(
        lookback=lookback,
        resolution=jnp.clip(
            word.resolution + grows - shrinks, rule.min_resolution, limits.max_bins
        ),
        gathered=word.gathered + 1,
        norms=norms,
        diversity=diversity,
    )
    known = jnp.isfinite(diversity) & jnp.isfinite(norms)
    kept = select(known, found._replace(total=0), word._replace(total=0))
    spread = jnp.expand_dims(known, over)
    return kept._replace(total=jnp.where(spread, total, word.total))


def _some(x: Float32[Array, "*axes n"], most: int) -> Float32[Array, "*axes m"]:
    """Returns at most so many weights of each layer, evenly spaced.

    By an odd step, which meets every column of a matrix whose width is a power of two.
    """
    step = math.ceil(x.shape[-1] / most)
    return x[..., :: step | 1 if step > 1 else 1]


def _decide_all(
    x: Float32[Array, "*axes n"],
    word: Word,
    rule: AdaptRule,
    strategy: Int32[Array, ""],
    key: UInt32[Array, "3"],
    limits: Limits,
) -> tuple[Int32[Array, "*axes"], Int32[Array, "*axes"]]:
    """Returns word and fraction of each layer as they would be decided now."""
    shape = word.word.shape
    layers = jnp.arange(word.word.size, dtype=jnp.uint32)

    def one(
        x: Array, w: Array, f: Array, bins: Array, diversity: Array, layer: Array
    ) -> tuple[Array, Array]:
        w, f = push_down(
            x, w, f, bins, rule.divergence, jnp.concatenate([key, layer[None]]), limits
        )
        return push_up(w, f, diversity, strategy, rule.max_bits, rule.buffer_bits)

    words, fractions = jax.vmap(one)(
        x.reshape(layers.size, -1),
        word.word.ravel(),
        word.fraction.ravel(),
        word.resolution.ravel(),
        word.diversity.ravel(),
        layers,
    )
    return words.reshape(shape), fractions.reshape(shape)


def _check(
    bits: tuple[int, int, int, int],
    lookback: tuple[int, int],
    resolution: tuple[int, int],
    lookback_rate: float,
    divergence: float,
    most_weights: int,
) -> None:
    """Refuses arguments that are out of range.

    Raises:
        ValueError: One is.
    """
    start_word, start_fraction, max_bits, buffer_bits = bits
    if not (1 <= start_word <= max_bits <= WIDEST_INTEGER):
        raise ValueError(
            f"Expected 1 <= start_word <= max_bits <= {WIDEST_INTEGER}, got "
            f"{start_word=}, {max_bits=}."
        )
    if not 0 <= start_fraction <= start_word:
        raise ValueError(
            "Expected 0 <= start_fraction <= start_word, got "
            f"{start_fraction=}, {start_word=}."
        )
    if not 0 <= buffer_bits < max_bits:
        raise ValueError(
            f"Expected 0 <= buffer_bits < max_bits, got {buffer_bits=}, {max_bits=}."
        )
    for name, low, high in (
        ("lookback", *lookback),
        ("resolution", *resolution),
    ):
        if not 1 <= low <= high:
            raise ValueError(
                f"Expected 1 <= min_{name} <= max_{name}, got {low} and {high}."
            )
    if not 0 < lookback_rate <= 1:
        raise ValueError(f"lookback_rate must lie above 0 to 1, got {lookback_rate}.")
    if not 0 <= divergence < float("inf"):
        raise ValueError(f"divergence must be a number from 0 on, got {divergence}.")
    if most_weights < 1:
        raise ValueError(f"most_weights must be at least 1, got {most_weights}.")


def push_down(
    x: Float32[Array, "n"],
    word: Int32[Array, ""],
    fraction: Int32[Array, ""],
    bins: Int32[Array, ""],
    divergence: Float32[Array, ""],
    key: UInt32[Array, "words"],
    limits: Limits,
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Returns the shortest word and fraction that keep the histogram of `x`.

    Args:
        x: Weights of a layer.
        word: Bits at present; no more are returned.
        fraction: As `word`.
        bins: Of the histograms.
        divergence: Largest one that is allowed.
        key: Of stochastic rounding; the same noise for all candidates.
        limits: Of candidates and bins. With `quirks` the longest that fails is returned
            in the place of the shortest that passes, if that is a candidate.
    """
    of_x = _histogram(x, x, bins, limits.max_bins)

    def passes(word: Array, fraction: Array) -> Array:
        rounded = quantize(
            x, fixed_point(word, fraction), rounding="stochastic", key=key
        )
        of_rounded = _histogram(rounded, x, bins, limits.max_bins)
        terms = of_rounded * (jnp.log(of_rounded) - jnp.log(of_x))
        used = jnp.arange(limits.max_bins, dtype=jnp.int32) < bins
        return jnp.sum(jnp.where(used, terms, 0.0)) <= divergence

    def shortest(passed: Array, candidates: Array, low: Array, now: Array) -> Array:
        allowed = passed & (candidates >= low) & (candidates <= now)
        found = jnp.min(jnp.where(allowed, candidates, now))
        return jnp.where(found > low, found - 1, found) if limits.quirks else found

    fractions = jnp.arange(_LEAST_FRACTION, limits.max_bits + 1, dtype=jnp.int32)
    passed = jax.vmap(passes, (None, 0))(word, fractions)
    least = jnp.minimum(fraction, _LEAST_FRACTION)
    fraction = shortest(passed, fractions, least, fraction)
    words = jnp.arange(1, limits.max_bits + 1, dtype=jnp.int32)
    passed = jax.vmap(passes, (0, None))(words, fraction)
    return shortest(passed, words, jnp.maximum(fraction, 1), word), fraction


def push_up(
    word: Int32[Array, ""],
    fraction: Int32[Array, ""],
    diversity: Float32[Array, ""],
    strategy: Int32[Array, ""],
    max_bits: Int32[Array, ""],
    buffer_bits: Int32[Array, ""],
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Returns word and fraction with the bits that the gradients ask for.

    >>> numbers = (jnp.int32(n) for n in (8, 6, 0, 24, 4))
    >>> word, fraction, strategy, *bounds = numbers
    >>> new = push_up(word, fraction, jnp.float32(2.0), strategy, *bounds)
    >>> [int(bits) for bits in new]
    [11, 7]
    """
    d = jnp.log(diversity) - 1.0
    square = jnp.where(d > 0, d * d, 1.0)
    first = jnp.maximum(jnp.ceil(jnp.minimum(1 / square, 1e6)), 1).astype(jnp.int32)
    asked = jnp.ceil(jnp.minimum(_FLOAT32_BITS * square, _FLOAT32_BITS))
    second = jnp.maximum(asked.astype(jnp.int32) - fraction, 0)
    by_strategy = jnp.stack(
        [
            jnp.minimum(first, second),
            (first + second + 1) // 2,
            jnp.maximum(first, second),
        ]
    )
    more = jnp.where(d > 0, by_strategy[strategy], 1)
    fraction = jnp.minimum(fraction + more, max_bits)
    word = jnp.minimum(jnp.maximum(word, fraction) + 1, max_bits)
    fraction = jnp.minimum(fraction, max_bits - buffer_bits)
    return jnp.maximum(jnp.minimum(fraction + buffer_bits, max_bits), word), fraction


def _histogram(
    values: Float32[Array, "n"],
    x: Float32[Array, "n"],
    bins: Int32[Array, ""],
    max_bins: int,
) -> Float32[Array, "max_bins"]:
    """Returns the share of `values` in each bin of the range of `x`, one added to each.

    What lies outside of the range counts in the outermost bins.
    """
    low, high = jnp.min(x), jnp.max(x)
    number = bins.astype(jnp.float32)
    per_bin = jnp.where(high > low, number / (high - low), 0.0)
    place = jnp.clip(jnp.floor((values - low) * per_bin), 0.0, number - 1)
    place = jnp.where(jnp.isnan(place), 0.0, place).astype(jnp.int32)
    counted = jnp.ones(max_bins, jnp.float32).at[place].add(1.0)
    return counted / (x.size + number)


def _watch_loss(
    loss: Float32[Array, ""], lookback: Float32[Array, ""], state: AdaptState
) -> AdaptState:
    """Returns the state after a loss: the newest of all, and what follows from it."""
    window = jnp.floor(lookback)
    places = jnp.arange(state.losses.size, dtype=jnp.int32)
    inside = places.astype(jnp.float32) < window
    mean = jnp.sum(jnp.where(inside, state.losses, 0.0)) / window
    full = state.known.astype(jnp.float32) >= window
    stalls = jnp.minimum(state.strategy + 1, 2)
    strategy = jnp.where(mean <= loss, stalls, 0)
    return state._replace(
        losses=jnp.roll(state.losses, 1).at[0].set(loss),
        known=jnp.minimum(state.known + 1, state.losses.size),
        strategy=jnp.where(full, strategy, state.strategy),
    )


def _clear(
    word: Word,
    decided: tuple[Int32[Array, "*axes"], Int32[Array, "*axes"]],
    expired: Bool[Array, "*axes"],
) -> Word:
    """Returns the word as decided where its lookback is over, and counts from 0."""
    over = tuple(range(expired.ndim, word.total.ndim))
    return word._replace(
        word=jnp.where(expired, decided[0], word.word),
        fraction=jnp.where(expired, decided[1], word.fraction),
        gathered=jnp.where(expired, 0, word.gathered),
        norms=jnp.where(expired, 0.0, word.norms),
        total=jnp.where(jnp.expand_dims(expired, over), 0.0, word.total),
    )


def _signals(state: AdaptState) -> Signals:
    return {
        "diversity": {path: word.diversity for path, word in state.words.items()},
        "lookback": {
            path: word.lookback.astype(jnp.float32)
            for path, word in state.words.items()
        },
    }
