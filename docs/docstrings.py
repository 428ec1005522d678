"""For mkdocs: writes out what docstrings say of schedules, recipes and settings."""

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_type_hints

import optax

from adaprec_jax import scaling, schedules, transforms
from adaprec_jax.runs import kinds
from adaprec_jax.runs.config.base import Settings

_SECTIONS = ("Decides", "Signal", "Costs", "Source", "Against")
_TRANSFORMATIONS = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
    dict[str, transforms.Moment],
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Puts what is generated into the pages that ask for it."""
    made = {
        "<!-- schedules -->": prose,
        "<!-- recipes -->": recipes,
        "<!-- transformations -->": transformations,
    }
    for mark, make in made.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    return re.sub(
        r"<!-- settings: (\S+) -->",
        lambda found: "\n".join(settings(found[1])),
        markdown,
    )


def prose() -> Iterator[str]:
    """Yields what the docstring of each schedule says of it."""
    for name in schedules.__all__:
        factory = getattr(schedules, name)
        if not _is_schedule(factory):
            continue
        text = inspect.getdoc(factory) or ""
        module = factory.__module__
        yield f"\n## {name}\n"
        yield text.partition("\n")[0]
        yield f"[Arguments](reference/schedules.md#{module}.{name}).\n"
        for title in _SECTIONS:
            found = re.search(rf"^{title}:\n((?: .*\n|\n)+)", text, re.MULTILINE)
            if found:
                said = inspect.cleandoc(found[1]).strip()
                yield f"**{title}.** {linked(said)}\n"


def recipes() -> Iterator[str]:
    """Yields a table of the scaling recipes."""
    made = (scaling.Recipe, scaling.Recipes)
    yield from _table(scaling, made, "reference/scaling.md")


def transformations() -> Iterator[str]:
    """Yields a table of the transformations of `adaprec_jax.transforms`."""
    yield from _table(transforms, _TRANSFORMATIONS, "reference/transforms.md")


def settings(module: str) -> Iterator[str]:
    """Yields the settings of each class of a module: values, default, meaning."""
    for name, model in vars(importlib.import_module(module)).items():
        if not _is_public_model(model, name, module):
            continue
        yield f'\n### {name} {{ #{module}.{name} data-toc-label="{name}" }}\n'
        yield f"{linked(inspect.getdoc(model) or '')}\n"
        if kind := kinds.kind_of(model):
            yield f"`kind`: `{kind}`\n"
        rows = [_row(model, setting) for setting in kinds.settings_of(model)]
        if rows:
            yield "| setting | values | default | meaning |\n| --- | --- | --- | --- |"
            yield "\n".join(rows) + "\n"


def summary(function: Callable[..., Any]) -> str:
    """Returns the first line of a docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def source(function: Callable[..., Any]) -> str:
    """Returns the source that a docstring names in a paragraph, "" if it names none."""
    text = inspect.getdoc(function) or ""
    found = re.search(r"^Source: (.*?)(?=\n\s*\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def linked(text: str) -> str:
    """Returns the text with links to the papers it names."""
    return re.sub(r"arXiv:([0-9.]+\d)", r"[\g<0>](https://arxiv.org/abs/\1)", text)


def factories(package: ModuleType, made: tuple[Any, ...]) -> list[Callable[..., Any]]:
    """Returns the public functions of a package that return one of these types."""
    public = [getattr(package, name) for name in package.__all__]
    return [
        each
        for each in public
        if inspect.isfunction(inner := inspect.unwrap(each))
        and get_type_hints(inner).get("return") in made
    ]


def _table(package: ModuleType, made: tuple[Any, ...], page: str) -> Iterator[str]:
    yield "| name | what it does | source |\n| --- | --- | --- |"
    for each in factories(package, made):
        name = f"[`{each.__name__}`]({page}#{each.__module__}.{each.__name__})"
        said = summary(each).removeprefix("Returns ")
        yield f"| {name} | {said} | {linked(source(each))} |"


def _row(model: type[Settings], setting: kinds.Setting) -> str:
    default = "" if setting.required else f"`{_default(model, setting)}`"
    cells = [f"`{setting.name}`", setting.allowed, default, setting.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(model: type[Settings], setting: kinds.Setting) -> str:
    """Returns a default as JSON; of settings only what differs from their own."""
    value = model.model_fields[setting.name].default
    if not isinstance(value, Settings):
        return json.dumps(setting.default)
    own = value.model_dump(mode="json", exclude_defaults=True)
    kind = kinds.kind_of(type(value))
    return json.dumps(({"kind": kind} if kind else {}) | own)


def _is_public_model(model: object, name: str, module: str) -> bool:
    return (
        isinstance(model, type)
        and issubclass(model, Settings)
        and model is not Settings
        and model.__module__ == module
        and not name.startswith("_")
    )


def _is_schedule(factory: object) -> bool:
    """Returns whether it makes a schedule, and not of other schedules."""
    if not inspect.isfunction(factory):
        return False
    hints = get_type_hints(factory)
    made = hints.pop("return", None)
    return made is schedules.Schedule and "Schedule" not in str(hints)
