"""Pieces of somebody's own package, named in a config as an import target.

A target is `package.module:factory`. The factory is called with the arguments in the
config, checked against its signature and (of a function) its annotations, and with our
own values that it asks for by name (`steps`). Its source decides the outcome of a run,
so distribution, version and the digest of its file are a part of the run's id.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, validate_call

from adaprec_jax.runs.config.base import Imported
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.wording import about

_Kind = TypeVar("_Kind")


def make(kind: type[_Kind], piece: Imported, **offered: Any) -> _Kind:
    """Returns what the factory makes.

    Args:
        kind: What it must make.
        piece: Target and arguments, from the config.
        **offered: Values that the factory may ask for by name.

    Raises:
        InputError: There is no such target, importing it fails, the arguments do not
            fit its signature, or it makes something else: one sentence per fault.

    >>> from fractions import Fraction
    >>> half = {"numerator": 3, "denominator": 6}
    >>> make(Fraction, Imported(target="fractions:Fraction", arguments=half))
    Fraction(1, 2)
    """
    target, arguments = piece.target, piece.arguments
    factory = _factory(target)
    known = _parameters(target, factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = [] if takes_any else [name for name in arguments if name not in known]
    _refuse_unknown(target, unknown, known)
    wanted = {name: value for name, value in offered.items() if name in known}
    if not inspect.isclass(factory):  # pydantic checks functions alone
        check = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
        factory = check(factory)
    with blamed(target, always=True):
        try:
            made = factory(**wanted | dict(arguments))
        except ValidationError as error:
            faults = [
                f"{target}: {about('.'.join(map(str, each['loc'])), each)}, "
                f"got {each['input']!r:.60}."
                for each in error.errors()
            ]
            raise InputError(*faults) from error
    if not isinstance(made, kind):
        raise InputError(
            f"{target} must return a {kind.__name__}, got {type(made).__name__}."
        )
    return made


def make_function(piece: Imported, **offered: Any) -> Callable[..., Any]:
    """Returns the function that the factory makes; as `make`."""
    made = make(object, piece, **offered)
    if not callable(made):
        raise InputError(
            f"{piece.target} must return a function, got {type(made).__name__}."
        )
    return made


@contextlib.contextmanager
def blamed(*targets: str, always: bool = False) -> Iterator[None]:
    """Says of an error inside a piece in which line it was raised.

    Args:
        *targets: Whose files may be to blame.
        always: Whether the targets are to blame for any error.

    Raises:
        InputError: The block failed while code of a target's file was running.
    """
    files: dict[str, str] = {}
    for target in targets:
        path = str(_source(target))
        files[path] = path if path in files else target  # of several, the file alone
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [
            f"{files[frame.filename]}, line {frame.lineno}"
            for frame in frames
            if frame.filename in files
        ]
        if not lines and not (always and targets):
            raise
        where = lines[-1] if lines else " with ".join(targets)
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        if type(error).__name__ == "TracerBoolConversionError":
            reason += "; traced code chooses by jnp.where"
        raise InputError(f"{where}: {type(error).__name__}: {reason}.") from error


def pieces(settings: Any) -> Iterator[Imported]:
    """Yields everything in a tree of settings that is somebody's own."""
    if isinstance(settings, Imported):
        yield settings
    if isinstance(settings, BaseModel):
        settings = tuple(value for _, value in settings)
    if isinstance(settings, tuple):
        for part in settings:
            yield from pieces(part)


def targets(settings: Any) -> tuple[str, ...]:
    """Returns the import targets in a tree of settings."""
    return tuple(piece.target for piece in pieces(settings))


def check(experiment: BaseModel) -> None:
    """Checks the arguments of all pieces against their sources, which are not run.

    What only running them can tell (types, or a factory that is no plain function of
    its module) is left to `make`.

    Raises:
        InputError: There is no such file, it cannot be parsed, or its function takes
            other arguments.
    """
    for piece in pieces(experiment):
        _check(piece.target, piece.arguments, piece.offers)


def origin(target: str) -> dict[str, str | None]:
    """Returns where a target comes from; its module is not imported for that.

    Returns:
        `distribution` and `version`, None outside of any, and the sha256 of the file.

    Raises:
        InputError: There is no such module, or it has no source file.
    """
    digest = hashlib.sha256(_source(target).read_bytes()).hexdigest()
    package = _module_name(target).partition(".")[0]
    distribution = _distributions().get(package, [None])[0]
    return {
        "distribution": distribution,
        "version": distribution and importlib.metadata.version(distribution),
        "sha256": digest,
    }


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Returns the installed distributions by package; slow to find out."""
    return importlib.metadata.packages_distributions()


def _check(target: str, arguments: Mapping[str, Any], offered: Iterable[str]) -> None:
    source = _source(target).read_bytes()
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(_import_fault(target, error)) from error
    functions = [
        node.args
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name == target.partition(":")[2]
        if not node.decorator_list
    ]
    if not functions:
        return
    last = functions[-1]
    known = [each.arg for each in (*last.args, *last.kwonlyargs)]
    unknown = [name for name in arguments if name not in known]
    _refuse_unknown(target, [] if last.kwarg else unknown, known)
    required = [each.arg for each in last.args][: len(last.args) - len(last.defaults)]
    required += [
        each.arg
        for each, default in zip(last.kwonlyargs, last.kw_defaults, strict=True)
        if default is None
    ]
    given = {*arguments, *offered}
    if missing := [name for name in required if name not in given]:
        raise InputError(
            *(f"{target}: {name}: Missing required argument." for name in missing)
        )


def _source(target: str) -> Path:
    """Returns the source file of a target's module."""
    name = _module_name(target)
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:
        raise InputError(_import_fault(target, error)) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise InputError(
            f"There is no source file of the module {name!r} in {target!r}; it must be "
            "installed, or lie in the current folder."
        )
    return Path(spec.origin)


def _refuse_unknown(target: str, unknown: list[str], known: Iterable[str]) -> None:
    if unknown:
        known = list(known)
        raise InputError(
            *(f"{target} takes no {name!r}; {suggest(name, known)}" for name in unknown)
        )


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
    module_name = _module_name(target)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(_import_fault(target, error)) from error
    name = target.partition(":")[2]
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise InputError(f"{target}: no {name!r} there; {suggest(name, public)}")
    _check_not_stale(target, module)
    return getattr(module, name)


def _check_not_stale(target: str, module: ModuleType) -> None:
    """Refuses a module one of whose functions was changed after it was imported.

    What runs must be what the run's id stands for, and a notebook imports a module
    once. A constant or a default argument alone that was changed is not noticed.
    """
    path = _source(target)
    if path.suffix != ".py":
        return
    there = compile(path.read_bytes(), str(path), "exec").co_consts
    for made in vars(module).values():
        own = inspect.isfunction(made) and made.__module__ == module.__name__
        code = made.__code__ if own else None
        if code and code.co_filename == str(path) and code not in there:
            raise InputError(
                f"The file of {target} was changed after it was imported; start Python "
                "anew, so that what runs is what the run's id stands for."
            )


def _import_fault(target: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return f"Importing {target} failed: {type(error).__name__}: {reason}."
