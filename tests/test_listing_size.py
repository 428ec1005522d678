"""The listing of a deep transformer, layers apart or as one scan, by closed form."""

import functools

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax.contractions import Table, contraction_table
from adaprec_jax.contractions.table import forward_macs
from adaprec_jax.tasks.models import Transformer

LAYERS, HEADS, WIDTH, TIME, BATCH = 24, 4, 32, 16, 2
PRODUCTS = {
    "attention/qkv": 3 * WIDTH**2,
    "attention/bqhd,bkhd->bhqk": TIME * WIDTH,
    "attention/bhqk,bkhd->bqhd": TIME * WIDTH,
    "attention/out": WIDTH**2,
    "up": 4 * WIDTH**2,
    "down": 4 * WIDTH**2,
}  # Multiply-accumulates per token and layer.


@functools.cache
def listed(*, scan: bool) -> Table:
    model = Transformer(LAYERS, HEADS, WIDTH, TIME, scan=scan)
    symbols = jax.ShapeDtypeStruct((BATCH, TIME), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), symbols)
    return contraction_table(model.apply, params, symbols)


@pytest.mark.parametrize("scan", [False, True])
def test_every_product_of_every_layer_is_listed_once(scan: bool):
    blocks = ["blocks"] if scan else [f"block_{i}" for i in range(LAYERS)]
    names = [f"{block}/{product}" for block in blocks for product in PRODUCTS]
    table = listed(scan=scan)
    assert list(table.names) == [*names, "head"]
    assert table.not_reached == ()
    layers = (LAYERS, (LAYERS,)) if scan else (1, ())
    for contraction in table.contractions[:-1]:
        assert (contraction.executions, contraction.axes) == layers
        product = contraction.name.partition("/")[2]
        assert contraction.macs == BATCH * TIME * PRODUCTS[product]


@pytest.mark.parametrize("scan", [False, True])
def test_the_work_of_all_layers_is_that_of_the_closed_form(scan: bool):
    per_token = LAYERS * (12 * WIDTH**2 + 2 * TIME * WIDTH) + 256 * WIDTH
    assert forward_macs(listed(scan=scan)) == BATCH * TIME * per_token
