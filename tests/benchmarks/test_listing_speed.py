"""How long it takes to trace and list a transformer of a billion parameters.

They are shapes alone: nothing is allocated, and the memory of the process must show it.

    pytest tests/benchmarks/test_listing_speed.py -m speed -s
"""

import math
import resource
import time

import jax
import jax.numpy as jnp
import pytest

from adaprec_jax.contractions import contraction_table
from adaprec_jax.tasks import objectives
from adaprec_jax.tasks.models import Transformer

LAYERS = 24
SECONDS = {"a block each": 30.0, "scanned": 3.0}
LARGEST_MIB = 256  # The weights would be 4 GiB.


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("kind", SECONDS)
def test_a_billion_parameters_are_listed_in_time(benchmark, kind: str):
    model = Transformer(LAYERS, 16, 1920, 1024, scan=kind == "scanned")
    symbols = jax.ShapeDtypeStruct((8, 1024), jnp.int32)
    scores = objectives.bits_per_byte().scores

    def loss(params, inputs, targets):
        return jnp.mean(scores(model.apply(params, inputs), targets)["loss"]), None

    jax.clear_caches()
    before, start = peak_mib(), time.perf_counter()
    params = jax.eval_shape(model.init, jax.random.key(0), symbols)
    shaped = time.perf_counter()
    table = contraction_table(loss, params, symbols, symbols)
    listed = time.perf_counter()
    grown = peak_mib() - before
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    print(
        f"\n{kind}: {size / 1e9:.2f} billion parameters, {len(table.names)} "
        f"contractions; shapes {shaped - start:.2f} s, "
        f"listing {listed - shaped:.2f} s; {grown:.0f} MiB more"
    )
    benchmark.extra_info |= {"listing, s": listed - shaped, "memory, MiB": grown}
    benchmark.pedantic(lambda: None, rounds=1)
    assert size > 1e9
    assert len(table.names) == 1 + 6 * (1 if kind == "scanned" else LAYERS)
    assert listed - start <= SECONDS[kind]
    assert grown <= LARGEST_MIB
