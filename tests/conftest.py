"""Flags and fixtures of the whole suite: strict dtypes, eight CPU devices."""

import os

# Before JAX starts: eight devices for the sharding tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")  # noqa: TID251
jax.config.update("jax_numpy_rank_promotion", "raise")  # noqa: TID251

# The same examples in every run: a failure is one of the change under test.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture
def key() -> jax.Array:
    """A fresh key; split it, never reuse it."""
    return jax.random.key(20240501)


@pytest.fixture(scope="module")
def fresh_caches() -> None:
    """An empty table of compiled functions.

    JAX keeps some thousand of them in a process and drops the oldest: after as many
    tests a function that was compiled once may count as not compiled at all.
    """
    jax.clear_caches()
