"""Pieces of somebody's own package, named in a config as an import target.

A target is `package.module:factory`. The factory is called with the arguments in the
config, checked against its signature and (of a function) its annotations, and with our
own numbers that it asks for by name (`steps`). Its source decides the outcome of a run,
so distribution, version and the digest of its file are a part of the run's id.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from adaprec_jax.runs.errors import InputError, suggest


def make(target: str, arguments: Mapping[str, Any], **offered: Any) -> Any:
    """Returns what the factory makes.

    Args:
        target: `package.module:factory`.
        arguments: From the config.
        **offered: Numbers that the factory may ask for by name.

    Raises:
        InputError: There is no such target, importing it fails, or the arguments do
            not fit its signature: one sentence per fault.

    >>> make("fractions:Fraction", {"numerator": 3, "denominator": 6})
    Fraction(1, 2)
    """
    factory = _factory(target)
    known = _parameters(target, factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if unknown := [name for name in arguments if name not in known and not takes_any]:
        raise InputError(
            *(f"{target} takes no {name!r}; {suggest(name, known)}" for name in unknown)
        )
    wanted = {name: value for name, value in offered.items() if name in known}
    if not inspect.isclass(factory):  # pydantic checks functions alone
        check = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
        factory = check(factory)
    try:
        return factory(**wanted | dict(arguments))
    except ValidationError as error:
        faults = [
            f"{target}: {'.'.join(map(str, each['loc']))}: {each['msg']}, "
            f"got {each['input']!r:.60}."
            for each in error.errors()
        ]
        raise InputError(*faults) from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{target} failed: {type(error).__name__}: {reason}"
        ) from error


def origin(target: str) -> dict[str, str | None]:
    """Returns where a target comes from; its module is not imported for that.

    Returns:
        `distribution` and `version`, None outside of any, and the sha256 of the file.

    Raises:
        InputError: There is no such module, or it has no source file.
    """
    name = _module_name(target)
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:
        raise InputError(_import_fault(target, error)) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise InputError(
            f"There is no source file of the module {name!r} in {target!r}."
        )
    package = name.partition(".")[0]
    distribution = importlib.metadata.packages_distributions().get(package, [None])[0]
    return {
        "distribution": distribution,
        "version": distribution and importlib.metadata.version(distribution),
        "sha256": hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest(),
    }


def _parameters(target: str, factory: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"{target} cannot be called: {error}.") from error


def _module_name(target: str) -> str:
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise InputError(f"An import target is package.module:factory, got {target!r}.")
    return module


def _factory(target: str) -> Any:
    """Imports what a target names."""
    try:
        module = importlib.import_module(_module_name(target))
    except InputError:
        raise
    except Exception as error:
        raise InputError(_import_fault(target, error)) from error
    name = target.partition(":")[2]
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise InputError(f"{target}: no {name!r} there; {suggest(name, public)}")
    return getattr(module, name)


def _import_fault(target: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return f"Importing {target} failed: {type(error).__name__}: {reason}."
