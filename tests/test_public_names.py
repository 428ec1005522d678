import importlib.metadata
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

import adaprec_jax

# What users write; every name here is a promise.
PROMISED = [
    "Contraction", "Options", "Precision", "Run", "SharedPrecision", "Stats", "Table",
    "Watch", "__version__", "binary", "contraction_table", "cost", "experiment",
    "formats", "init_recipes", "load", "loss_scaling", "plan", "quantize", "run",
    "scaling", "schedules", "stats", "ternary", "transforms", "update_recipes",
    "value_and_grad", "with_precision",
]  # fmt: skip


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_public_names_are_those_promised():
    assert sorted(adaprec_jax.__all__) == sorted(PROMISED)
    assert set(PROMISED) <= set(dir(adaprec_jax))
    for name in PROMISED:
        assert getattr(adaprec_jax, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'adaprec_jax' has no attribute 'qantize"):
        adaprec_jax.qantize  # noqa: B018


def test_importing_the_package_and_the_formats_imports_no_jax():
    program = (
        "import sys, adaprec_jax; from adaprec_jax import formats;"
        "adaprec_jax.__version__; print(formats.get('int8') is not None,"
        "[m for m in ('jax', 'flax', 'pydantic', 'scipy') if m in sys.modules])"
    )
    assert run(program) == "True []"


def test_names_are_what_they_say_whatever_was_imported_before():
    program = (
        "import adaprec_jax.quantizers, adaprec_jax.contractions.transform as t;"
        "from adaprec_jax import quantize, value_and_grad, with_precision, schedules;"
        "import adaprec_jax as a; print(a.quantize is a.quantizers.quantize,"
        "value_and_grad is t.value_and_grad, with_precision is t.with_precision,"
        "schedules.bits is a.bit_counts.cyclic_bits, a.cost.bitops_ratio([8], 8))"
    )
    assert run(program) == "True True True True 0.0625"


def test_numbers_known_before_a_run_are_computed_without_jax():
    program = (
        "import sys; from adaprec_jax.bit_counts import bitops_ratio, cyclic_bits;"
        "bits = cyclic_bits('CPT', min_bits=3, max_bits=8, cycles=2, steps=20);"
        "print(round(bitops_ratio(bits, 8), 4), 'jax' in sys.modules)"
    )
    # 3, 3, 3, 4, 5, 6, 6, 7, 8, 8: mean of b^2 + 16 b is 317 / 10 + 16 * 53 / 10.
    assert run(program) == f"{round((31.7 + 84.8) / 3072, 4)} False"


def test_any_jax_from_the_floor_on_may_stay_where_it_is_installed():
    needed = [
        Requirement(text)
        for text in importlib.metadata.requires("adaprec-jax") or ()
        if "extra ==" not in text
    ]
    assert "jaxlib" not in {each.name for each in needed}
    [jax] = [each for each in needed if each.name == "jax"]
    assert not jax.extras  # an extra would choose an accelerator
    assert [each.operator for each in jax.specifier] == [">="]
