"""Arguments of a wrong type, as users see them: without the suite's type checker."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json
import jax.numpy as jnp, numpy as np
from adaprec_jax import Options, SharedPrecision, formats, stats, with_precision
from adaprec_jax.scaling import current
from adaprec_jax.tasks.objectives import regression
f32 = formats.get("float32")
product = lambda p, x: x @ p["w"]
args = {"w": jnp.eye(2)}, jnp.eye(2)
full = {"w": SharedPrecision(f32, f32, f32)}
cases = {
    "plan None": lambda: with_precision(product)(None, *args),
    "entry None": lambda: with_precision(product)({"w": None}, *args),
    "entry a format": lambda: with_precision(product)({"w": f32}, *args),
    "entry a name": lambda: with_precision(product)({"w": "int8"}, *args),
    "entry a tuple": lambda: with_precision(product)({"w": (f32, f32, f32)}, *args),
    "no format": lambda: with_precision(product)(
        {"w": SharedPrecision(f32, None, f32)}, *args),
    "recipes a tuple": lambda: with_precision(
        product, Options(recipes=(current(),) * 3))(full, *args),
    "recipes None": lambda: with_precision(product, Options(recipes=None))(full, *args),
    "compute_dtype": lambda: with_precision(
        product, Options(compute_dtype="bfloat16"))(full, *args),
    "width 2.5": lambda: formats.integer(2.5),
    "width '8'": lambda: formats.integer("8"),
    "width None": lambda: formats.integer(None),
    "width list": lambda: formats.integer([4, 5]),
    "width floats": lambda: formats.integer(np.array([4.5])),
    "name None": lambda: formats.get(None),
    "shapes": lambda: regression().scores(jnp.zeros((8, 1)), jnp.zeros(8)),
    "sums": lambda: stats.sqnr_db({"weight": None}),
}
said = {}
for name, call in cases.items():
    try:
        said[name] = repr(call())
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
EXPECTED = {
    "plan None": "TypeError: A plan is a dict from names to entries, got NoneType.",
    "entry": "TypeError: The plan's entry of 'w' must be a Precision or a Shared",
    "no format": "TypeError: The plan's entry of 'w' must be a Precision or a Shared",
    "recipes": "TypeError: Options.recipes must be Recipes(activation, weight, grad",
    "compute_dtype": "TypeError: Options.compute_dtype must be a Compute, such as",
    "width": "TypeError: word_bits must be an integer or an array of them, got",
    "name": "ValueError: Unknown format None; the nearest names are",
    "shapes": "ValueError: The model's outputs (8, 1) must have the shape of the targ",
    "sums": "TypeError: sqnr_db takes the sums of one tensor, such as stats.tensors[",
}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each call answers, by its name."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", EXPECTED)
def test_one_sentence_says_what_is_allowed(kind: str, said: dict[str, str]):
    sentences = [said[name] for name in said if name.startswith(kind)]
    assert sentences
    for sentence in sentences:
        assert sentence.startswith(EXPECTED[kind])
