"""What pydantic found wrong with a value, in the words of the other sentences."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def about(path: str, detail: ErrorDetails) -> str:
    """Returns the path of a value and what is wrong with it, without a full stop.

    >>> from pydantic import TypeAdapter, ValidationError
    >>> try:
    ...     TypeAdapter(int).validate_python("many")
    ... except ValidationError as error:
    ...     print(about("steps", error.errors()[0]))
    steps should be an integer
    """
    reason = _reason(detail["type"], detail.get("ctx", {}), detail["msg"])
    if not path:
        return reason
    return f"{path} {reason}" if reason.startswith("should") else f"{path}: {reason}"


def _reason(error: str, context: Mapping[str, Any], message: str) -> str:
    kind = re.sub("_(type|parsing|from_float)$", "", error)
    if kind in _TYPES:
        return f"should be {_TYPES[kind]}"
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"should be {word} {context[name]:.15g}"
    match kind:
        case "literal_error":
            return f"should be {context['expected']}"
        case "string_too_short":
            return f"should have at least {_counted(context, 'character')}"
        case "too_short":
            return f"should have at least {_counted(context, 'item')}"
    return re.sub(r"^(\w+ (?=should)|Value error, )", "", message).rstrip(".")


def _counted(context: Mapping[str, Any], what: str) -> str:
    count = context["min_length"]
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
