"""The maths is light to import: no framework, no config, no files, no command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adaprec_jax"
MODULES = (
    "bit_counts", "formats", "loss_scaling", "plan", "precision", "quantizers",
    "random_bits", "scaling", "stats",
)  # fmt: skip
PACKAGES = ("contractions", "cost", "meters", "schedules")
HEAVY = ("flax", "orbax", "pooch", "pydantic", "rich", "sklearn", "typer")
MATHS = (
    *MODULES,
    *PACKAGES,
    *sorted(
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (PACKAGE / package).glob("*.py")
        if path.stem != "__init__"
    ),
)
# Imported one after another, and once for all: what comes with one of them must not
# come with any.
PROGRAM = f"""
import importlib, json, sys
found = {{}}
for name in {MATHS!r}:
    importlib.import_module(f"adaprec_jax.{{name}}")
    found[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What was there after the import of each module, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MATHS)
def test_the_maths_is_imported_without(name: str, found: dict[str, list[str]]):
    assert found[name] == []
