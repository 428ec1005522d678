"""Block scales equal those of qwix, which only the benchmarks install."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats
from adaprec_jax.scaling import Recipe, Use, mx, nvfp4
from tests.walk_models import normal


def restored(recipe: Recipe, x: np.ndarray, name: str) -> np.ndarray:
    values, scale = recipe.round(
        jnp.asarray(x), formats.get(name), (), axes=(0, 1), key=None,
        use=Use("forward", (1,)),
    )  # fmt: skip
    return np.asarray(values * scale)


def of_qwix(x: np.ndarray, qtype: str, size: int) -> np.ndarray:
    import qwix

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = qwix.quantize(
            jnp.asarray(x), qtype, channelwise_axes=[0], tiled_axes={1: size}
        )
        return np.asarray(qwix.dequantize(found))


@pytest.mark.parametrize(
    ("qtype", "name"), [("mxfp8", "float8_e4m3fn"), ("mxfp4", "float4_e2m1fn")]
)
def test_microscaling_that_rounds_up(qtype, name):
    x = np.asarray(normal(0, 6, 64) * 100)
    found = restored(mx(shared_exponent="up"), x, name)
    np.testing.assert_array_equal(found, of_qwix(x, qtype, 32))


def test_nvfp4_where_the_tensor_needs_no_scale():
    x = np.array(normal(0, 6, 64) * 100)
    x[0, 0] = 2688
    found = restored(nvfp4(), x, "float4_e2m1fn")
    # It divides by the scale, where the rule here multiplies by the reciprocal.
    np.testing.assert_allclose(found, of_qwix(x, "nvfp4", 16), rtol=1e-6)
