"""Settings from the command line, and where each value of an experiment came from."""

import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.validation import kinds_of, model_of, validate

Source: TypeAlias = Literal["default", "file", "command line"]


def apply(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """Returns the experiment with some settings replaced.

    A value is read as the type of its field says: JSON where that fits, plain text
    otherwise. Where a `kind` changes, the settings that the new kind also knows keep
    their values.

    Args:
        experiment: What the config file holds.
        assignments: Texts such as `schedule.min_bits=4`, in any order.

    Raises:
        InputError: With one sentence per fault: an unknown or repeated path, or a
            value that does not fit.
    """
    if not assignments:
        return experiment
    texts = _split(assignments)
    known = leaves(experiment.model_dump(mode="json"))
    tree = written(experiment)
    faults: dict[str, tuple[str, ...]] = {}
    # Parents before their fields, and among fields the kind, which decides the others.
    for path in sorted(texts, key=lambda p: (p.count("."), not p.endswith("kind"))):
        if any(_covers(wrong.removesuffix(".kind"), path) for wrong in faults):
            continue  # What its kind allows is not known.
        try:
            _assign(tree, path, texts[path], known)
        except InputError as error:
            faults[path] = error.args
    if faults:
        raise InputError(*(fault for each in faults.values() for fault in each))
    return validate(tree)


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Returns the texts that `apply` takes for values of Python.

    Args:
        settings: Values by path; a value may be an object of
            `adaprec_jax.runs.config`, or a NumPy number or array.

    >>> assignments({"steps": 200, "schedule.kind": "cpt"})
    ['steps=200', 'schedule.kind="cpt"']
    """
    return [
        f"{path}={json.dumps(value, default=_as_json)}"
        for path, value in settings.items()
    ]


def sources(
    given: Experiment, final: Experiment, assignments: Sequence[str]
) -> dict[str, Source]:
    """Returns where each value of `final` came from, by path.

    Args:
        given: What the config file holds.
        final: What `apply` returned for it.
        assignments: What `apply` was given.
    """
    assigned = _split(assignments)
    in_file, in_either = leaves(written(given)), leaves(written(final))

    def source(path: str) -> Source:
        if path in in_either and any(_covers(parent, path) for parent in assigned):
            return "command line"
        return "file" if path in in_file else "default"

    return {path: source(path) for path in leaves(final.model_dump(mode="json"))}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Returns the values of a tree of JSON values by their paths, each kind first.

    >>> leaves({"steps": 3, "model": {"hidden": [64], "kind": "mlp"}})
    {'steps': 3, 'model.kind': 'mlp', 'model.hidden': [64]}
    """
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        items = sorted(tree.items(), key=lambda item: item[0] != "kind")
    elif isinstance(tree, list) and any(isinstance(value, dict) for value in tree):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {
        leaf: value
        for key, child in items
        for leaf, value in leaves(child, f"{path}.{key}" if path else str(key)).items()
    }


def written(settings: BaseModel) -> dict[str, Any]:
    """Returns the JSON values that somebody wrote, without those left at a default."""
    chosen = settings.model_fields_set | {"kind"}
    return {name: _plain(value) for name, value in settings if name in chosen}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return written(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _as_json(value: Any) -> Any:
    """Returns JSON values in the place of what `json` does not know."""
    if isinstance(value, BaseModel):
        return written(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _covers(parent: str, path: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def _split(assignments: Sequence[str]) -> dict[str, str]:
    """Returns texts by path."""
    texts: dict[str, str] = {}
    faults: list[str] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not _is_unicode(assignment):
            faults.append(f"--set takes text in UTF-8, got {assignment!r}.")
        elif not equals:
            faults.append(f"--set takes path=value, got {assignment!r}.")
        elif path in texts:
            faults.append(f"{path} is set twice, to {texts[path]!r} and {text!r}.")
        texts[path] = text
    if faults:
        raise InputError(*faults)
    return texts


def _is_unicode(text: str) -> bool:
    """Returns whether a text holds no half of a surrogate pair, or a stray byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _assign(
    tree: dict[str, Any], path: str, text: str, known: Mapping[str, Any]
) -> None:
    """Puts one value into the tree of written values."""
    *parents, name = path.split(".")
    node, model, annotation = tree, Experiment, Experiment
    for depth, parent in enumerate(parents):
        field = _field(model, path, depth, known)
        annotation = field.annotation
        if parent not in node and isinstance(field.default, BaseModel):
            node[parent] = written(field.default)
        inner = model_of(annotation, node.get(parent))
        if inner is None:
            raise InputError(f"{path}: {parent} can only be set as a whole, as JSON.")
        model, node = inner, node.setdefault(parent, {})
    field = _field(model, path, len(parents), known)
    node[name] = _value(field.annotation, text)
    if name == "kind":
        _keep_what_the_kind_knows(node, annotation, path)


def _field(
    model: type[BaseModel], path: str, depth: int, known: Mapping[str, Any]
) -> FieldInfo:
    """Returns the field of `model` that the part of a path at `depth` names."""
    names = path.split(".")
    name, fields = names[depth], model.model_fields
    if name in fields:
        return fields[name]
    meant = [
        ".".join([*names[:depth], close, *names[depth + 1 :]])
        for close in difflib.get_close_matches(name, fields, n=1)
    ]
    meant += [other for other in known if other.endswith(f".{path}")]
    end = f"did you mean {meant[0]!r}?" if meant else suggest(name, fields)
    raise InputError(f"Unknown setting {path!r}; {end}")


def _keep_what_the_kind_knows(node: dict[str, Any], annotation: Any, path: str) -> None:
    """Drops the settings of the old kind that the new one does not have."""
    model = model_of(annotation, node)
    if model is None:
        known = suggest(str(node["kind"]), kinds_of(annotation))
        raise InputError(f"{path}: unknown {node['kind']!r}; {known}")
    for name in [name for name in node if name not in model.model_fields]:
        del node[name]


def _value(annotation: Any, text: str) -> Any:
    """Returns the JSON value that `text` stands for in a field of that type."""
    adapter = TypeAdapter(annotation)
    readings = [text, json.dumps(text), "null" if text.lower() == "none" else text]
    with contextlib.suppress(ValueError):
        readings.append(json.dumps(float(text)))  # Such as .5, which is no JSON.
    for reading in readings:
        with contextlib.suppress(ValidationError):
            adapter.validate_json(reading, strict=True)
            return json.loads(reading)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)  # Of another type: validation says so.
    return text
