"""From JSON to an experiment, or one sentence for each thing that is wrong with it."""

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.wording import about


def validate(tree: Any) -> Experiment:
    """Returns the experiment that a tree of JSON values describes.

    Raises:
        InputError: With one sentence per fault.

    >>> validate({"name": "x", "stepz": 3})
    Traceback (most recent call last):
    ...
    adaprec_jax.runs.errors.InputError: task is missing.
    model is missing.
    optimizer is missing.
    steps is missing.
    batch_size is missing.
    Unknown setting 'stepz'; did you mean 'steps'?
    """
    try:
        return Experiment.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise InputError(*faults(error, tree)) from error


def faults(error: ValidationError, tree: Any = None) -> Iterator[str]:
    """Yields one sentence per fault.

    Args:
        error: What pydantic raised.
        tree: The JSON values that it refused, where they were JSON.
    """
    details = error.errors(include_url=False)
    for detail in details:
        if any(_is_inside(other["loc"], detail["loc"]) for other in details):
            continue  # A consequence, such as a list without its wrong items.
        model, path = _place(detail["loc"], tree)
        prefix = path or ("" if error.title == "Experiment" else error.title)
        yield from _sentences(detail, prefix, model)


def model_of(annotation: Any, data: Any) -> type[BaseModel] | None:
    """Returns the settings model of a field, by the `kind` in `data` if it is a union.

    Args:
        annotation: The field's type.
        data: The field's JSON value.
    """
    models = list(_models(annotation))
    if len(models) == 1:
        return models[0]
    kind = data.get("kind") if isinstance(data, dict) else None
    return next((m for m in models if m.model_fields["kind"].default == kind), None)


def kinds_of(annotation: Any) -> list[str]:
    """Returns the values that `kind` may have in a field of that type."""
    return [model.model_fields["kind"].default for model in _models(annotation)]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _is_inside(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _place(loc: tuple[int | str, ...], tree: Any) -> tuple[type[BaseModel] | None, str]:
    """Returns the model whose field is meant, and its path without pydantic's tags."""
    path: list[str] = []
    model, annotation = None, Experiment
    for part in loc:
        if isinstance(tree, dict) and tree.get("kind") == part:
            continue
        path.append(str(part))
        model = model_of(annotation, tree)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        tree = _inside(tree, part)
    return model, ".".join(path)


def _inside(tree: Any, part: int | str) -> Any:
    try:
        return tree[part]
    except (KeyError, IndexError, TypeError):
        return None


def _sentences(
    detail: ErrorDetails, path: str, model: type[BaseModel] | None
) -> Iterator[str]:
    context, given = detail.get("ctx", {}), detail["input"]
    match detail["type"]:
        case "missing":
            yield f"{path} is missing."
        case "extra_forbidden":
            fields = model.model_fields if model else ()
            known = suggest(path.rpartition(".")[2], fields)
            yield f"Unknown setting {path!r}; {known}"
        case "union_tag_invalid":
            kinds = context["expected_tags"].replace("'", "").split(", ")
            known = suggest(context["tag"], kinds)
            yield f"{path}.kind: unknown {context['tag']!r}; {known}"
        case "union_tag_not_found":
            yield f"{path}.kind is missing."
        case "value_error":
            # A rule between fields begins with the field's name.
            join = ": " if not isinstance(given, dict | BaseModel) else "."
            for line in str(context["error"]).splitlines():
                yield f"{path}{join}{line}" if path else line
        case "json_invalid":
            yield f"A text is not Unicode: {context['error']}."
        case _:
            given = list(given) if isinstance(given, tuple) else given
            yield f"{about(path or 'A config', detail)}, got {given!r}."
