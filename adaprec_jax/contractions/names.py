"""Names of contractions: from parameter paths and name scopes, never from shapes."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Use(NamedTuple):
    """One contraction, as far as its name goes.

    Attributes:
        parameter: Path of the parameter in the weight slot, or "".
        module: Path of the module by the name scopes, or "".
        einsum: The contraction in einsum notation, as it was written if that is known.
    """

    parameter: str
    module: str
    einsum: str


def contraction_names(uses: Sequence[Use]) -> list[str]:
    """Returns the unique names of a program's contractions, in program order.

    A contraction with a parameter is called as the module that holds the parameter,
    or, if several parameters of the module are contracted, as the parameter. One
    without is called by its einsum within its module; where no scope tells the module,
    within the one that holds the contraction before it. Equals are numbered.

    >>> value = Use("attention/value/kernel", "", "abc,cde->abde")
    >>> scores = Use("", "", "qhd,khd->hqk")
    >>> up, down = (Use(f"moe/{name}", "", "abc,acd->abd") for name in ("up", "down"))
    >>> contraction_names([value, scores, up, down, value])
    ['attention/value', 'attention/qhd,khd->hqk', 'moe/up', 'moe/down',
     'attention/value#1']
    """
    contracted = {use.parameter for use in uses if use.parameter}
    siblings = Counter(_parent(parameter) for parameter in contracted)
    names: list[str] = []
    seen: Counter[str] = Counter()
    before = ""
    for use in uses:
        if use.parameter:
            module = _parent(use.parameter)
            alone = module and siblings[module] == 1
            name = module if alone else use.parameter
            before = _parent(name)
        else:
            name = f"{use.module or before}/{use.einsum}".lstrip("/")
        names.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def parameter_paths(params: Any) -> list[str]:
    """Returns the path of each parameter leaf.

    A leading `params` collection is dropped, and the trailing `value` of the variables
    in an nnx state. Parameters that are one array are called `params`.

    >>> parameter_paths({"params": {"Dense_0": {"kernel": 1, "bias": 2}}})
    ['Dense_0/bias', 'Dense_0/kernel']
    >>> parameter_paths([{"w": 1}])
    ['0/w']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [[_key_name(key) for key in path] for path, _ in leaves]
    if all(len(path) > 1 and path[-1] == "value" for path in paths):
        paths = [path[:-1] for path in paths]
    paths = [p[1:] if len(p) > 1 and p[0] == "params" else p for p in paths]
    return ["/".join(path) or "params" for path in paths]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


_TRANSFORM = re.compile(r"^\w+\((.*)\)$")


def scope_path(stack: str, tops: set[str]) -> tuple[str, str]:
    """Returns the module path of a name stack, and the einsum that ends it (or "").

    Transforms and the names of methods are no part of a path, nor is the class of the
    root module: the path begins where it meets a top-level name of the parameters, or
    else after a class name.

    Args:
        stack: Name scopes separated by slashes.
        tops: The top-level names of the parameters.

    >>> scope_path("jvp(Net)/encoder.encode/attention/qhd,khd->hqk", {"encoder"})
    ('encoder/attention', 'qhd,khd->hqk')
    """
    parts = []
    for part in stack.split("/"):
        while match := _TRANSFORM.match(part):
            part = match[1]
        parts.append(part if "->" in part else part.partition(".")[0])
    einsum = parts[-1] if "->" in parts[-1] else ""
    parts = [part for part in parts if part and "->" not in part]
    starts = [i for i, part in enumerate(parts) if part in tops]
    start = starts[0] if starts else int(bool(parts) and parts[0][0].isupper())
    return "/".join(parts[start:]), einsum
