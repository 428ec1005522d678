"""The schedule kinds that a config can name, as their settings describe them."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from adaprec_jax.runs.config import Experiment, Schedule
from adaprec_jax.runs.config.base import Settings
from adaprec_jax.runs.config.bounds import Loop
from adaprec_jax.runs.errors import InputError, suggest

_ENDLESS = 1e9  # a bound that only keeps numbers within their type


class Kind(NamedTuple):
    """A schedule kind in one line.

    Attributes:
        kind: Its name in a config.
        summary: What it does.
        loop: "open" if it depends on the step alone, "closed" if it reads what
            is measured in training, "either" if its parts or its target decide.
        source: Where it comes from.
    """

    kind: str
    summary: str
    loop: Loop
    source: str


class Setting(NamedTuple):
    """A setting of a schedule kind.

    Attributes:
        name: Of the setting.
        required: Whether it has no default.
        default: As a JSON value; None if it is required.
        allowed: Which values it may have, in words.
        description: What it means.
    """

    name: str
    required: bool
    default: Any
    allowed: str
    description: str


def models() -> dict[str, type[Settings]]:
    """Returns the settings of every schedule kind, by name.

    >>> models()["cpt"].__name__
    'CPT'
    """
    union, _ = get_args(Schedule)
    return {model.model_fields["kind"].default: model for model in get_args(union)}


def kinds() -> tuple[Kind, ...]:
    """Returns every schedule kind.

    >>> [kind.loop for kind in kinds() if kind.kind in ("cpt", "two_threshold")]
    ['open', 'closed']
    """
    return tuple(map(_described, models().values()))


def find(kind: str) -> tuple[Kind, tuple[Setting, ...]]:
    """Returns a schedule kind and its settings.

    Args:
        kind: Its name; a dash stands for an underscore.

    Raises:
        InputError: There is no such kind.

    >>> _, settings = find("cpt")
    >>> settings[0]
    Setting(name='min_bits', required=False, default=3, allowed='integer from 2 to 16',
            description='fewest, of activations and weights')
    """
    kind, known = kind.replace("-", "_"), models()
    if kind not in known:
        meant = suggest(kind, known, name_all=True)
        raise InputError(f"Unknown schedule kind {kind!r}; {meant}")
    return _described(known[kind]), settings_of(known[kind])


def examples(kind: str) -> tuple[Settings, ...]:
    """Returns schedules that show what a kind does; none if it needs what is not known.

    They have the examples of each setting that has some, else its default.

    >>> [example.products for example in examples("late_switch")]
    ['all', 'forward']
    """
    model = models()[kind]
    fields = model.model_fields.items()
    shown = {name: field.examples for name, field in fields if field.examples}
    if any(field.is_required() and name not in shown for name, field in fields):
        return ()
    count = max(map(len, shown.values()), default=1)
    return tuple(
        model.model_validate(
            {name: each[min(k, len(each) - 1)] for name, each in shown.items()}
        )
        for k in range(count)
    )


def is_closed(settings: Any) -> bool:
    """Returns whether settings say that the loop is closed, or those of a part do.

    >>> is_closed(models()["cpt"]())
    False
    """
    if isinstance(settings, tuple):
        return any(map(is_closed, settings))
    if not isinstance(settings, BaseModel):
        return False
    parts = tuple(value for _, value in settings)
    return getattr(settings, "loop", "open") == "closed" or is_closed(parts)


def check_open(experiment: Experiment) -> None:
    """Refuses an experiment whose settings say that its loop is closed.

    Raises:
        InputError: It does.
    """
    if is_closed(experiment.schedule):
        raise closed(experiment)


def closed(experiment: Experiment) -> InputError:
    """Returns the error that an experiment's decisions are not known in advance."""
    name = experiment.name
    return InputError(
        f"The schedule of {name} decides by what is measured in training: run it first "
        "(`adaprec run`), and plot its run."
    )


def _described(model: type[Settings]) -> Kind:
    text = inspect.getdoc(model) or ""
    source = re.search(r"^Source: (.*?)\.?$", text, re.MULTILINE | re.DOTALL)
    return Kind(
        kind=model.model_fields["kind"].default,
        summary=text.partition("\n")[0].rstrip("."),
        loop=getattr(model, "loop"),  # noqa: B009 (declared by each of the union)
        source=" ".join(source[1].split()) if source else "",
    )


def kind_of(model: type[Settings]) -> str | None:
    """Returns the `kind` by which a config chooses these settings, None without one.

    >>> kind_of(models()["cpt"])
    'cpt'
    """
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def settings_of(model: type[Settings]) -> tuple[Setting, ...]:
    """Returns the settings of any part of a config, `kind` aside.

    >>> [setting.name for setting in settings_of(models()["cpt"])]
    ['min_bits', 'max_bits', 'gradient_bits', 'cycles']
    """
    return tuple(_settings(model))


def _settings(model: type[Settings]) -> Iterator[Setting]:
    schema = model.model_json_schema()
    # A model that refers to itself stands among its own definitions.
    known = schema.get("$defs", {})
    properties = schema.get("properties") or known[model.__name__]["properties"]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        yield Setting(
            name=name,
            required=field.is_required(),
            default=properties[name].get("default"),
            allowed=_allowed(properties[name], known),
            description=field.description or "",
        )


def _allowed(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Returns the values that a JSON schema allows, in words."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    if parts := schema.get("oneOf") or schema.get("anyOf"):
        if "discriminator" in schema:
            return (
                f"settings of kind {_either(list(schema['discriminator']['mapping']))}"
            )
        return _either([_allowed(part, known) for part in parts])
    if "enum" in schema:
        return _either(list(map(str, schema["enum"])))
    match schema.get("type"):
        case "integer" | "number" as kind:
            return " ".join([kind, *_between(schema)])
        case "array":
            return f"list of {_allowed(schema['items'], known)}"
        case "object" if "properties" in schema:
            return f"settings {', '.join(schema['properties'])}"
    words = {"string": "text", "boolean": "true or false", "object": "values by name"}
    return words.get(str(schema.get("type")), str(schema.get("type", "any value")))


def _between(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yields the bounds of a number in words; a very large one is left out."""
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to",
        "exclusiveMaximum": "below",
    }
    for name, word in words.items():
        if (bound := schema.get(name)) is not None and abs(bound) < _ENDLESS:
            yield f"{word} {bound:g}"


def _either(values: list[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} or {last}" if first else last
