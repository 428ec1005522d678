"""Low precision equals a hand-written reference with the casts of ml_dtypes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from adaprec_jax import formats
from adaprec_jax.contractions import contraction_table, value_and_grad
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
)
from tests.walk_models import filled, normal
from tests.walk_stats import cast_scaled

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
}
EXACT = {"precision": lax.Precision.HIGHEST}


class Six(NamedTuple):
    """Names of formats: activation and weight forward, gradient and weight, ..."""

    forward: tuple[str, str]
    dgrad: tuple[str, str]
    wgrad: tuple[str, str]


def shared(activation: str, weight: str, gradient: str) -> Six:
    return Six((activation, weight), (gradient, weight), (gradient, activation))


def separate(six: Six) -> Precision:
    pairs = [map(formats.get, pair) for pair in six]
    return Precision(Forward(*pairs[0]), Dgrad(*pairs[1]), Wgrad(*pairs[2]))


SHARED = shared("bfloat16", "float16", "float8_e5m2")
SIX = Six(
    ("bfloat16", "float16"),
    ("float8_e5m2", "float8_e4m3fn"),
    ("float8_e3m4", "float4_e2m1fn"),
)
NOTHING = shared("float32", "float32", "float32")
FOUR_BITS = shared("float4_e2m1fn", "float4_e2m1fn", "float4_e2m1fn")
ENTRIES = {
    "shared": (SHARED, SharedPrecision(*map(formats.get, (*SHARED[0], SHARED[1][0])))),
    "six formats": (SIX, separate(SIX)),
}


def through(dtype: str, x: Any) -> Any:
    """Casts on the host: XLA would drop a pair of casts."""
    like = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    cast = lambda x: cast_scaled(x, DTYPES[dtype])
    return jax.pure_callback(cast, like, x, vmap_method="sequential")


def lowered(product: Callable[[Any, Any], Any], six: Six) -> Callable[[Any, Any], Any]:
    """The product of an activation and a weight, its operands cast as `six` says."""

    @jax.custom_vjp
    def low(a: Any, w: Any) -> Any:
        return product(through(six.forward[0], a), through(six.forward[1], w))

    def backward(kept: Any, g: Any) -> Any:
        a, w = kept
        _, to_a = jax.vjp(lambda a: product(a, through(six.dgrad[1], w)), a)
        _, to_w = jax.vjp(lambda w: product(through(six.wgrad[1], a), w), w)
        (da,), (dw,) = to_a(through(six.dgrad[0], g)), to_w(through(six.wgrad[0], g))
        return da, dw

    low.defvjp(lambda a, w: (low(a, w), (a, w)), backward)
    return low


class Net(nn.Module):
    """Convolutions and dense layers, over products given to Flax's own arguments."""

    six: Six | None = None

    def low(self, product: Any) -> Any:
        def call(a: Any, w: Any, *args: Any, **options: Any) -> Any:
            options |= EXACT
            return lowered(lambda a, w: product(a, w, *args, **options), self.six)(a, w)

        return product if self.six is None else call

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = self.low(lax.conv_general_dilated)
        dot = self.low(lax.dot_general)
        x = nn.Conv(6, (3, 3), 2, conv_general_dilated=conv)(x)
        x = nn.relu(x)
        x = nn.Conv(4, (2, 2), kernel_dilation=2, feature_group_count=2,
                    conv_general_dilated=conv)(x)  # fmt: skip
        x = nn.relu(nn.ConvTranspose(4, (2, 2), padding="VALID")(x))
        x = nn.DenseGeneral(6, axis=(-3, -2), dot_general=dot)(x)
        return nn.Dense(3, dot_general=dot)(nn.relu(x))


def assert_equal(found: Any, expected: Any):
    """The sums that are not rounded, of biases and losses, may differ in order."""
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert np.any(np.asarray(b)), path
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7, err_msg=str(path))


def mean_square(outs: Any) -> Any:
    return jnp.mean(jnp.square(outs)), outs


@pytest.mark.parametrize(("six", "entry"), ENTRIES.values(), ids=ENTRIES)
def test_flax_layers_equal_flax_with_low_products_injected(six: Six, entry: Entry):
    x = normal(0, 2, 8, 8, 4)
    params = filled(jax.eval_shape(Net().init, jax.random.key(0), x))
    loss = lambda p, x: mean_square(Net().apply(p, x))
    low = lambda p, x: mean_square(Net(six).apply(p, x))
    plan = {c.name: entry for c in contraction_table(loss, params, x).contractions}
    none = SharedPrecision(*[formats.get("float32")] * 3)
    plan["ConvTranspose_0"] = none  # Flax lets nobody replace its product
    (value, out), gradients, _ = jax.jit(
        lambda plan, p: value_and_grad(loss)(p, x, plan=plan)
    )(plan, params)
    expected = jax.jit(jax.value_and_grad(low, has_aux=True))(params, x)
    np.testing.assert_array_equal(out, expected[0][1])
    assert_equal((value, gradients), (expected[0][0], expected[1]))


def attention(p: Any, x: Any, dot: Callable[[str, str, Any, Any], Any]) -> Any:
    """One layer: projections, both products of attention, and a dense layer."""
    query, key, value = (dot(n, "td,dhk->thk", x, p[n]) for n in ("q", "k", "v"))
    scores = dot("qk", "qhd,khd->hqk", query, key)
    mixed = dot("av", "hqk,khd->qhd", jax.nn.relu(scores), value)
    return x + dot("o", "qhd,hdm->qm", mixed, p["o"])


def stacked(*entries: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *entries)


LAYERS = {n: normal(i, 3, *s) for i, (n, s) in enumerate({
    "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "o": (2, 3, 4),
}.items())}  # fmt: skip


def scanned(p: Any, x: Any) -> Any:
    def layer(x: Any, p: Any) -> Any:
        dot = lambda name, spec, a, w: jnp.einsum(spec, a, w)
        return attention(p, x, dot), None

    return mean_square(lax.scan(jax.checkpoint(layer), x, p)[0])


def unrolled(p: Any, x: Any, sixes: list[dict[str, Six]]) -> Any:
    for i, six in enumerate(sixes):

        def dot(name: str, spec: str, a: Any, w: Any, six: Any = six) -> Any:
            product = lambda a, w: jnp.einsum(spec, a, w, **EXACT)
            if name == "av":  # JAX has the values left, in the activation's slot
                low = lowered(lambda w, a: product(a, w), six.get(name, NOTHING))
                return low(w, a)
            return lowered(product, six.get(name, NOTHING))(a, w)

        x = attention(jax.tree.map(lambda leaf, i=i: leaf[i], p), x, dot)
    return mean_square(x)


STACKS = {
    "one layer in four bits": [NOTHING, FOUR_BITS, NOTHING],
    "first layer shared, last six": [SHARED, NOTHING, SIX],
}
# Names in the table, by the names above.
PATHS = {"qk": "qhd,khd->hqk", "av": "hqk,khd->qhd"}


X = normal(9, 5, 4)
NAMES = contraction_table(scanned, LAYERS, X).names
STEP = jax.jit(lambda plan, p: value_and_grad(scanned)(p, X, plan=plan))


def expected_of(sixes: list[dict[str, Six]]) -> Any:
    low = lambda p: unrolled(p, X, sixes)
    return jax.jit(jax.value_and_grad(low, has_aux=True))(LAYERS)


def test_layers_of_a_scanned_stack_differ_in_one_compilation():
    assert set(NAMES) == {"q", "k", "v", "o", *PATHS.values()}
    for sixes in STACKS.values():
        entry = stacked(*map(separate, sixes))
        (value, out), gradients, _ = STEP(dict.fromkeys(NAMES, entry), LAYERS)
        every = [dict.fromkeys([*LAYERS, *PATHS], six) for six in sixes]
        expected = expected_of(every)
        np.testing.assert_array_equal(out, expected[0][1])
        assert_equal((value, gradients), (expected[0][0], expected[1]))
    assert STEP._cache_size() == 1


def test_one_product_of_one_layer_alone():
    plan = dict.fromkeys(NAMES, stacked(*[separate(NOTHING)] * 3))
    plan[PATHS["qk"]] = stacked(*map(separate, [NOTHING, NOTHING, SIX]))
    (value, _), gradients, _ = STEP(plan, LAYERS)
    expected = expected_of([{}, {}, {"qk": SIX}])
    assert_equal((value, gradients), (expected[0][0], expected[1]))


def test_one_expert_alone_and_each_with_its_own_scale():
    """Experts lie along a batch axis that is not the first one of the weight."""
    x, p = normal(0, 5, 3, 4), {"up": normal(1, 4, 3, 6), "down": normal(2, 3, 6, 4)}
    x = x * jnp.array([1.0, 100.0, 0.01])[None, :, None]
    up, down = "ted,def->etf", "etf,efd->etd"

    def loss(p: Any, x: Any) -> Any:
        h = jax.nn.relu(jnp.einsum(up, x, p["up"]))
        return mean_square(jnp.einsum(down, h, p["down"]))

    def low(p: Any, x: Any) -> Any:
        outs = []
        for e, six in enumerate((SIX, FOUR_BITS, SHARED)):
            one = lowered(lambda a, w: jnp.dot(a, w, **EXACT), six)
            outs.append(one(jax.nn.relu(one(x[:, e], p["up"][:, e])), p["down"][e]))
        return mean_square(jnp.stack(outs))

    entry = stacked(*map(separate, (SIX, FOUR_BITS, SHARED)))
    (value, out), gradients, _ = jax.jit(
        lambda plan, p: value_and_grad(loss)(p, x, plan=plan)
    )({"up": entry, "down": entry}, p)
    expected = jax.jit(jax.value_and_grad(low, has_aux=True))(p, x)
    np.testing.assert_array_equal(out, expected[0][1])
    assert_equal((value, gradients), (expected[0][0], expected[1]))
