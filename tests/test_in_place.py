"""Parameters without a master: what is swallowed, and that runs without it stay."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaprec_jax import formats, transforms
from adaprec_jax.runs import identity, overrides
from adaprec_jax.runs.build import make_transformation
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import bytes_per_parameter
from adaprec_jax.runs.load import load

IN_PLACE = "optimizer.in_place={}"


def test_updates_are_added_as_numpy_adds_them_in_float16():
    """NumPy's float16 is another implementation of the format and of its rounding."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=200).astype(np.float16)
    tx = transforms.in_place(formats.get("float16"))
    params = jnp.asarray(w, jnp.float32)
    for scale in (1e-5, 1e-4, 1e-3, 0.1):
        u = (scale * rng.normal(size=200)).astype(np.float32)
        updates, _ = tx.update(jnp.asarray(u), tx.init(params), params)
        params = optax.apply_updates(params, updates)
        w = (w.astype(np.float32) + u).astype(np.float16)
        np.testing.assert_array_equal(np.asarray(params), w.astype(np.float32))


def test_small_steps_are_lost_where_there_is_no_master():
    """20 steps of 0.0004 make 1.008; in float16 each of them rounds back to 1."""
    tx = optax.chain(optax.sgd(1.0), transforms.in_place(formats.get("float16")))
    w, state = jnp.ones(1), tx.init(jnp.ones(1))
    for _ in range(20):
        updates, state = tx.update(jnp.array([-0.0004]), state, w)
        w = optax.apply_updates(w, updates)
    assert float(w[0]) == 1.0


def test_what_is_not_finite_stays_so_and_spoils_nothing():
    tx = transforms.in_place(formats.get("float16"))
    w = jnp.array([1.0, 2.0])
    updates, _ = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(w), w)
    np.testing.assert_array_equal(np.asarray(w + updates), [np.nan, 3.0])


def test_the_setting_makes_all_parameters_numbers_of_the_format():
    made = overrides.apply(load("digits-float32"), [IN_PLACE])
    tx = make_transformation(made)
    params = {"w": jnp.full((3, 2), 0.1), "b": jnp.full(2, 0.3)}
    grads = {"w": jnp.full((3, 2), 1e-3), "b": jnp.full(2, -1e-3)}
    updates, _ = tx.update(grads, tx.init(params), params)
    for leaf in optax.apply_updates(params, updates).values():
        found = np.asarray(leaf)
        np.testing.assert_array_equal(found, found.astype(np.float16))


def test_runs_without_the_setting_have_the_ids_of_before():
    plain = load("digits-float32")
    assert "in_place" not in identity.canonical(identity.deciding(plain))
    narrow = overrides.apply(plain, [IN_PLACE])
    assert identity.run_id(narrow) != identity.run_id(plain)


def test_the_parameter_counts_with_the_bits_of_its_format():
    """Emulated, the array is float32; the format has two bytes, and no master."""
    made = overrides.apply(load("digits-float32"), [IN_PLACE])
    assert bytes_per_parameter(made) == 2 + 4 + 2 * 4  # its gradient, Adam's moments


def test_it_is_not_set_beside_narrow_parameters_that_have_a_master():
    with pytest.raises(InputError, match="parameter_dtype must be float32"):
        overrides.apply(load("digits-bf16"), [IN_PLACE, "parameter_dtype=bfloat16"])
