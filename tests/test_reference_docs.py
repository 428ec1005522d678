"""The pages that are made of docstrings hold what they should; no site is built."""

import functools
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import griffe
import pytest

from adaprec_jax import scaling, transforms
from adaprec_jax.runs import config, kinds

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = (
    "adaprec_jax",
    "adaprec_jax.contractions",
    "adaprec_jax.cost",
    "adaprec_jax.meters",
    "adaprec_jax.scaling",
    "adaprec_jax.schedules",
    "adaprec_jax.train",
    "adaprec_jax.transforms",
)


def load_hook():
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings = load_hook()


@functools.cache
def source() -> griffe.Object:
    """What is written in the package, read and not run."""
    return griffe.load("adaprec_jax", search_paths=[ROOT])


def found(path: str) -> griffe.Object:
    return source()[path.removeprefix("adaprec_jax.")] if "." in path else source()


@functools.cache
def rendered() -> frozenset[str]:
    """The paths of all that the reference shows."""
    shown = set()
    for page in sorted((DOCS / "reference").glob("*.md")):
        asked = re.findall(r"^::: (\S+)\n((?:    .*\n|\n)*)", page.read_text(), re.M)
        for path, options in asked:
            here = found(path)
            shown.add(path)
            if "members: false" in options or not here.is_module:
                continue
            for name, member in here.members.items():
                mine = not member.is_alias or name in (here.exports or ())
                if mine and member.has_docstring and not name.startswith("_"):
                    shown |= {member.path, member.canonical_path}
    return frozenset(shown)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    here = found(package)
    names = {*importlib.import_module(package).__all__} - {"__version__"}
    missing = [
        name
        for name in sorted(names)
        if not any(
            path == (mine := here[name].canonical_path)
            or (here[name].is_module and path.startswith(f"{mine}."))
            for path in rendered()
        )
    ]
    assert missing == []


def test_every_scaling_module_is_in_the_reference():
    modules = [
        f"adaprec_jax.scaling.{path.stem}"
        for path in (ROOT / "adaprec_jax" / "scaling").glob("*.py")
        if path.stem != "__init__"
    ]
    assert set(modules) <= rendered()


@pytest.mark.parametrize(
    ("package", "made", "some"),
    [
        (
            scaling,
            (scaling.Recipe, scaling.Recipes),
            {"current", "mx", "nvfp4", "swalp", "nvfp4_recipes"},
        ),
        (
            transforms,
            docstrings._TRANSFORMATIONS,
            {"averaging", "coat", "hysteresis", "narrow_all_reduce", "narrow_moments"},
        ),
    ],
)
def test_a_recipe_says_in_a_line_what_it_does_and_where_it_comes_from(
    package, made, some
):
    functions = docstrings.factories(package, made)
    assert some <= {function.__name__ for function in functions}
    for function in functions:
        named = docstrings.source(function)
        assert named.endswith("."), function
        assert re.search(
            r"arXiv:\d{4}\.\d{4,5}|\b(19|20)\d\d\b|common practice|NVIDIA", named
        ), function
        first, second, *_ = f"{inspect.getdoc(function)}\n\n".splitlines()
        assert first.endswith("."), function
        assert second == "", function


def test_the_page_of_recipes_has_a_line_for_each():
    page = docstrings.on_page_markdown((DOCS / "recipes.md").read_text())
    for name in ("nvfp4", "mxfp8_recipes", "swalp", "oscillation_reset", "fp8_lm"):
        (line,) = [
            line for line in page.splitlines() if line.startswith(f"| [`{name}`")
        ]
        assert "https://arxiv.org/abs/" in line


def test_every_setting_has_a_row_with_values_default_and_meaning():
    page = docstrings.on_page_markdown((DOCS / "reference" / "configs.md").read_text())
    row = "| `cycles` | integer from 1 | `8` | rises from min_bits to max_bits |"
    assert row in page  # of CPT
    heads = re.findall(r"^### (\w+) ", page, re.M)
    models = [
        model
        for name, model in vars(config).items()
        if isinstance(model, type) and issubclass(model, config.base.Settings)
    ]
    assert {model.__name__ for model in models} <= set(heads)
    for model in models:
        for setting in kinds.settings_of(model):
            assert setting.description, (model, setting.name)
            assert f"| `{setting.name}` | {setting.allowed} |" in page


def test_a_default_that_is_made_of_settings_is_short():
    rows = [*docstrings.settings("adaprec_jax.runs.config.experiment")]
    assert any('| `{"kind": "float32"}` |' in row for row in rows)
