"""Whether a rounded model with float32 entries is the model itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaprec_jax import formats
from adaprec_jax.contractions import contraction_table, value_and_grad
from adaprec_jax.plan import uniform
from adaprec_jax.precision import (
    Dgrad,
    Entry,
    Forward,
    Precision,
    SharedPrecision,
    Wgrad,
)
from tests.walk_models import MODELS, Model

F32 = formats.get("float32")
SHARED = SharedPrecision(F32, F32, F32)
SEPARATE = Precision(Forward(F32, F32), Dgrad(F32, F32), Wgrad(F32, F32))


def together(names: list[str]) -> Model:
    """Several models as one, so that they compile once."""
    models = {name: MODELS[name]() for name in names}

    def fn(params: Any, inputs: Any) -> Any:
        return {name: m.fn(params[name], *inputs[name]) for name, m in models.items()}

    inputs = {name: m.inputs for name, m in models.items()}
    return Model(fn, {name: m.params for name, m in models.items()}, (inputs,))


def mean(out: Any) -> Any:
    return jnp.mean(jnp.sin(out.astype(jnp.float32)))


def loss_of(fn: Any) -> Any:
    def loss(params: Any, *inputs: Any) -> Any:
        outs = fn(params, *inputs)
        return sum(map(mean, jax.tree.leaves(outs))), outs

    return loss


def assert_same(names: list[str], entry: Entry = SHARED):
    """Loss and outputs to the bit, gradients to 1e-6 of their largest element."""
    model = together(names)
    loss, args = loss_of(model.fn), (model.params, *model.inputs)
    plan = uniform(contraction_table(model.fn, *args), entry)
    plain = jax.jit(jax.value_and_grad(loss, has_aux=True))(*args)
    rounded = jax.jit(lambda plan, *args: value_and_grad(loss)(*args, plan=plan))
    value, gradients, _ = rounded(plan, *args)
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_array_equal(a, b, str(path)),
        plain[0], value,
    )  # fmt: skip
    for (path, a), b in zip(
        jax.tree.leaves_with_path(plain[1]), jax.tree.leaves(gradients), strict=True
    ):
        assert np.max(np.abs(a - b)) <= 1e-6 * np.max(np.abs(a)), path
