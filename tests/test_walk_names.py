"""Every contraction has the name that its user would give it, whatever the shapes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adaprec_jax.contractions import Contraction, contraction_table
from tests.walk_models import (
    MODELS,
    TOKENS,
    Cnn,
    Mlp,
    Model,
    Transformer,
    linen,
    normal,
)


def line(c: Contraction) -> str:
    roles = {"activation": "a", "weight": "w"}
    letters = "".join(roles[role] for role in c.roles)
    axes = ",".join(map(str, c.axes))
    return f"{c.name} | {c.einsum} | {letters} | {axes} | {c.macs} x {c.executions}"


def lines(model: Model) -> list[str]:
    table = contraction_table(model.fn, model.params, *model.inputs)
    assert table.not_reached == ()
    return [line(c) for c in table.contractions]


def names(model: Model) -> tuple[str, ...]:
    return contraction_table(model.fn, model.params, *model.inputs).names


def attention(prefix: str, axes: str, times: int) -> list[str]:
    tail = f"| {axes} | {{}} x {times}"
    rows = {
        "query": "abc,cde->abde | aw",
        "key": "abc,cde->abde | aw",
        "value": "abc,cde->abde | aw",
        "...qhd,...khd->...hqk": "abcd,aecd->acbe | aa",
        "...hqk,...khd->...qhd": "abcd,aceb->acde | aa",
        "out": "abcd,cde->abe | aw",
    }
    return [
        f"{prefix}/attention/{name} | {row} {tail.format(200 if '>' in name else 160)}"
        for name, row in rows.items()
    ]


def block(prefix: str, axes: str, times: int) -> list[str]:
    return [
        *attention(prefix, axes, times),
        f"{prefix}/up | abc,cd->abd | aw | {axes} | 320 x {times}",
        f"{prefix}/down | abc,cd->abd | aw | {axes} | 320 x {times}",
    ]


GOLDEN = {
    "mlp": [
        "Dense_0 | ab,bc->ac | aw |  | 160 x 1",
        "head | ab,bc->ac | aw |  | 120 x 1",
    ],
    "cnn": [
        "Conv_0 | conv2d | aw |  | 7776 x 1",
        "Conv_1 | conv2d | aw |  | 2592 x 1",
        "Dense_0 | ab,bc->ac | aw |  | 216 x 1",
    ],
    "conv local": [
        "conv2d | conv2d | aa |  | 288 x 1",
        "kernel | abcd,bcde->bcae | aw | 3,3 | 144 x 1",
    ],
    "scanned transformer": [
        *block("blocks", "3", 3),
        "embed | abc,cd->abd | aw |  | 280 x 1",
    ],
    "LSTMCell": [
        *(
            f"LSTMCell_0/{kind}{gate} | ab,bc->ac | aw |  | {macs} x 5"
            for gate in "ifgo"
            for kind, macs in (("i", 24), ("h", 18))
        ),
        "Dense_0 | abc,cd->abd | aw |  | 60 x 1",
    ],
    "twice": [
        "shared | ab,bc->ac | aw |  | 80 x 1",
        "shared#1 | ab,bc->ac | aw |  | 80 x 1",
    ],
    "low rank": [
        "b | ab,bc->ac | ww |  | 40 x 1",
        "kernel | ab,bc->ac | aw |  | 100 x 1",
    ],
    "ensemble": [
        "members/Dense_0 | abc,acd->abd | aw | 3 | 480 x 1",
        "members/head | abc,acd->abd | aw | 3 | 360 x 1",
    ],
    "experts": [
        "up | abc,acd->abd | aw | 3 | 360 x 1",
        "down | abc,acd->abd | aw | 3 | 360 x 1",
    ],
    "ragged": ["experts | ragged | aw |  | 120 x 1"],
    "list": [
        "0 | ab,bc->ac | aw |  | 80 x 1",
        "1 | ab,bc->ac | aw |  | 80 x 1",
    ],
    "layers in time": [
        "in | ab,bc->ac | aw | 2 | 48 x 10",
        "rec | ab,bc->ac | aw | 2 | 48 x 10",
    ],
    "nnx attention": [
        "query | abc,cde->abde | aw |  | 160 x 1",
        "key | abc,cde->abde | aw |  | 160 x 1",
        "value | abc,cde->abde | aw |  | 160 x 1",
        "BTNH,BSNH->BNTS | abcde,afce->acbdf | aa |  | 200 x 1",
        "BNTS,BSNH->BTNH | abcd,eacfb->acdef | aa |  | 200 x 1",
        "out | abcd,cde->abe | aw |  | 160 x 1",
    ],
    "nnx stack": [
        "layers/up | ab,bc->ac | aw | 3 | 160 x 3",
        "layers/down | ab,bc->ac | aw | 3 | 160 x 3",
    ],
    "nnx tied and adapted": [
        "adapted | abc,cd->abd | aw |  | 160 x 1",
        "adapted/lora/lora_a | abc,cd->abd | aw |  | 80 x 1",
        "adapted/lora/lora_b | abc,cd->abd | aw |  | 80 x 1",
        "embed | abc,cd->abd | aw |  | 280 x 1",
    ],
    "equinox": [
        "layers/0 | ab,cb->ac | aw |  | 160 x 1",
        "layers/1 | ab,cb->ac | aw |  | 320 x 1",
        "layers/2 | ab,cb->ac | aw |  | 120 x 1",
    ],
}
RESIZED = {
    "transformer": (
        lambda: linen(Transformer(scanned=False, width=8), jnp.zeros((3, 7), int)),
        lambda: linen(Transformer(scanned=False), TOKENS),
    ),
    "scanned transformer": (
        lambda: linen(Transformer(width=8), jnp.zeros((1, 2), int)),
        lambda: linen(Transformer(), TOKENS),
    ),
    "cnn": (
        lambda: linen(Cnn(), normal(0, 5, 10, 8, 1)),
        lambda: linen(Cnn(), normal(0, 2, 6, 6, 3)),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_table_is_frozen(name: str):
    assert lines(MODELS[name]()) == GOLDEN[name]


def test_table_of_an_unrolled_transformer_is_frozen():
    assert lines(linen(Transformer(scanned=False), TOKENS)) == [
        *block("block_0", "", 1),
        *block("block_1", "", 1),
        "embed | abc,cd->abd | aw |  | 280 x 1",
    ]


@pytest.mark.parametrize("name", RESIZED)
def test_names_do_not_depend_on_shapes(name: str):
    one, other = (names(make()) for make in RESIZED[name])
    assert one == other


def test_names_do_not_depend_on_a_vmap_over_examples():
    model = MODELS["mlp"]()

    def each(p, x):
        return jax.vmap(lambda x: model.fn(p, x[None]))(x)

    assert names(model._replace(fn=each)) == names(model)


def test_backward_products_inside_the_function_are_further_uses():
    model = MODELS["mlp"]()
    fn = jax.grad(lambda p, x: jnp.sum(model.fn(p, x)))
    assert names(model._replace(fn=fn)) == (
        "Dense_0",
        "head",
        "head/ab,ac->bc",  # the gradient of head's kernel: two activations
        "head#1",
        "Dense_0/ab,ac->bc",
    )


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (jnp.ones((4, 4)), ["params"]),
        ({"attn": {"query": jnp.ones((4, 4)), "value": jnp.ones((4, 4))}},
         ["attn/query", "attn/value"]),
        ({"params": {"moe": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((4, 4))}}},
         ["moe/bias", "moe/kernel"]),
    ],
)  # fmt: skip
def test_parameters_of_one_module_keep_their_own_names_if_several_are_contracted(
    params, expected
):
    def fn(p, x):
        for w in jax.tree.leaves(p):
            x = x @ w
        return x

    assert list(names(Model(fn, params, (jnp.ones((2, 4)),)))) == expected


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda p, x: x @ p["w"].T.astype("float32").reshape(2, 4, 2)[0], "w"),
        (lambda p, x: x @ jnp.concatenate([2 * p["w"] + p["b"], p["w"]], 1), "w"),
        (lambda p, x: lax.dynamic_index_in_dim(p["s"], jnp.argmax(x))[0] @ x.T, "s"),
        (lambda p, x: x @ (p["w"] * x[0, 0]), "ab,bc->ac"),
        (lambda p, x: x @ x.T, "ab,bc->ac"),
    ],
    ids=["shape-only", "arithmetic", "selected layer", "data enters", "no parameter"],
)  # fmt: skip
def test_parameter_is_found_through_shapes_and_arithmetic(fn, expected):
    p = {"w": jnp.ones((4, 4)), "b": jnp.ones((1, 4)), "s": jnp.ones((3, 4, 4))}
    assert expected in names(Model(fn, p, (jnp.ones((4, 4)),)))


def test_products_without_parameters_are_named_by_scope_or_by_what_comes_before():
    def fn(p, x):
        h = x @ p["first"]["query"]["kernel"]
        scores = jnp.einsum("qd,kd->qk", h, h)
        with jax.named_scope("mixing"):
            return jnp.einsum("qk,kd->qd", scores, h)

    p = {"first": {"query": {"kernel": jnp.ones((4, 4))}}}
    assert names(Model(fn, p, (jnp.ones((3, 4)),))) == (
        "first/query",
        "first/qd,kd->qk",
        "mixing/qk,kd->qd",
    )


def test_root_class_and_method_names_are_dropped():
    model = linen(Mlp(), normal(0, 5, 4))
    module = Mlp()

    def fn(p, x):
        return module.apply(p, module.apply(p, x), method=lambda _, y: y @ y.T)

    assert names(model._replace(fn=fn)) == ("Dense_0", "head", "ab,bc->ac")


def test_members_without_a_batch_axis_share_an_entry():
    """Known limits: one input for all members, and a convolution by groups."""
    module = nn.vmap(
        nn.Sequential, variable_axes={"params": 0}, split_rngs={"params": True},
        in_axes=None, axis_size=3,
    )  # fmt: skip
    dense = linen(module([nn.Dense(4), nn.Dense(2)]), normal(0, 5, 4))
    conv = linen(module([nn.Conv(4, (3,)), nn.Conv(2, (3,))]), normal(0, 2, 5, 4))
    axes = [
        [c.axes for c in contraction_table(m.fn, m.params, *m.inputs).contractions]
        for m in (dense, conv)
    ]
    assert axes == [[(), (3,)], [(), ()]]
