"""A config from a Python file, from JSON, or by the name of a bundled one.

A Python file holds one experiment or several arms of one:

- `config() -> Experiment`, or
- `ARMS`, a tuple of names, and `config(arm) -> Experiment`. An arm is named behind the
  file, as in `my.py:int8`; a bundled arm is named after file and arm, such as
  `digits-int8` in `digits.py`.

A file may also define `sweep() -> list[Experiment]`: what belongs together in a study.
"""

import difflib
import json
import runpy
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

import adaprec_jax
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.overrides import written
from adaprec_jax.runs.validation import faults, validate

_Kind = TypeVar("_Kind")
_NAMED = 8  # arms of a file that an error may name


def load(config: str) -> Experiment:
    """Returns the experiment that a config holds.

    Args:
        config: The path of a Python file, with a colon and an arm if it has several;
            of a JSON file, which is read and never run; or a bundled name.

    Raises:
        InputError: There is no such config, or it is wrong: one sentence per fault.

    >>> load("digits-cpt").schedule.kind
    'cpt'
    """
    path, _, arm = config.rpartition(":")
    if path.endswith(".py"):
        return _from_python(Path(path), arm)
    match Path(config).suffix:
        case ".py":
            return _from_python(Path(config))
        case ".json":
            return from_json(Path(config))
    name = config.replace("_", "-")
    for path in _files():  # No other file is run.
        arm = name.removeprefix(f"{_stem(path)}-")
        if arm != name and arm in _arms(path, names := _names_in(path)):
            return _experiment(path, names, arm)
    raise InputError(f"Unknown config {config!r}; {_meant(name, bundled())}")


def load_sweep(config: str) -> tuple[str, list[Experiment]]:
    """Returns the name of a file and the experiments that its `sweep` returns.

    Args:
        config: The path of a Python file, or the name of a bundled one, such as
            `digits`.

    Raises:
        InputError: There is no such file, it defines no `sweep`, or what that returns
            is wrong.

    >>> name, experiments = load_sweep("digits")
    >>> name, len(experiments) > 20
    ('digits', True)
    """
    path, made = _made(config, "sweep")
    if not isinstance(made, list) or not all(isinstance(e, Experiment) for e in made):
        raise InputError(f"{path}: sweep() must return a list of Experiments.")
    return _stem(path), [_checked(path, written(each)) for each in made]


def load_function(config: str, name: str, kind: type[_Kind]) -> tuple[str, _Kind]:
    """Returns the name of a file and what a function of it returns.

    Args:
        config: As `load_sweep` takes it.
        name: Of the function, which takes no arguments.
        kind: What it must return.

    Raises:
        InputError: There is no such file or function, or it returns something else.
    """
    path, made = _made(config, name)
    if not isinstance(made, kind):
        raise InputError(f"{path}: {name}() must return a {kind.__name__}.")
    return _stem(path), made


def _made(config: str, name: str) -> tuple[Path, Any]:
    """Returns the file that is meant, and what its function returns."""
    path, files = Path(config), {_stem(each): each for each in _files()}
    if path.suffix != ".py":
        stem = config.replace("_", "-")
        if stem not in files:
            raise InputError(
                f"Unknown {name} {config!r}; {suggest(stem, files, name_all=True)} "
                f"Or name a Python file with a function {name}()."
            )
        path = files[stem]
    function = _names_in(path).get(name)
    if not callable(function):
        raise InputError(f"{path} defines no function {name}().")
    return path, _run(path, function)


def bundled() -> dict[str, tuple[Path, str]]:
    """Returns file and arm of the bundled configs, by name.

    >>> sorted(name for name in bundled() if name.startswith("resnet"))
    ['resnet-cpt', 'resnet-float32', 'resnet-int4', 'resnet-int8']
    """
    return {
        f"{_stem(path)}-{arm}": (path, arm)
        for path in _files()
        for arm in _arms(path, _names_in(path))
    }


def bundled_experiments() -> Iterator[Experiment]:
    """Yields the experiments of all bundled configs; each has its config's name.

    >>> next(bundled_experiments()).name
    'denoiser-float32'
    """
    for path in _files():
        names = _names_in(path)
        for arm in _arms(path, names):
            yield _experiment(path, names, arm)


def from_json(path: Path) -> Experiment:
    """Returns the experiment in a JSON file.

    Raises:
        InputError: It cannot be read, is not JSON, or is wrong.
    """
    text = _read(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    return _checked(path, tree)


def _files() -> list[Path]:
    """Returns the files of the bundled configs."""
    package = Path(adaprec_jax.__file__).parent
    installed = package / "bundled_configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return sorted(folder.glob("*.py"))


def _from_python(path: Path, arm: str = "") -> Experiment:
    """Returns the experiment in a Python file, of its only arm if none is named."""
    return _experiment(path, _names_in(path), arm)


def _experiment(path: Path, names: dict[str, Any], arm: str) -> Experiment:
    """Returns the experiment of a file that defines `names`."""
    arms, config = _arms(path, names), names.get("config")
    if arm and arm not in arms:
        allowed = f"its arms are {', '.join(arms)}" if arms else "it defines no ARMS"
        raise InputError(f"{path} has no arm {arm!r}; {allowed}.")
    if not callable(config):
        raise InputError(f"{path} defines no function config().")
    if not arm and len(arms) > 1:
        raise InputError(
            f"{path} has {len(arms)} arms; name one: "
            f"{', '.join(f'{path}:{each}' for each in arms[:-1])} or {path}:{arms[-1]}."
        )
    made = _run(path, config, *([arm or arms[0]] if arms else []))
    if not isinstance(made, Experiment):
        raise InputError(
            f"{path}: config() must return an Experiment, got {type(made).__name__}."
        )
    return _checked(path, written(made))  # `model_copy` has checked nothing.


def _checked(path: Path, tree: Any) -> Experiment:
    """Returns the experiment that JSON values describe; faults name the file."""
    try:
        return validate(tree)
    except InputError as error:
        raise InputError(*(f"{path}: {fault}" for fault in error.args)) from error


def _names_in(path: Path) -> dict[str, Any]:
    """Returns what a Python file defines."""
    _read(path)
    return _run(path, runpy.run_path, str(path))


def _arms(path: Path, names: dict[str, Any]) -> tuple[str, ...]:
    """Returns the arms of a file that defines `names`, () if it has none."""
    if "ARMS" not in names:
        return ()
    arms = names["ARMS"]
    named = isinstance(arms, tuple) and all(isinstance(arm, str) for arm in arms)
    if not arms or not named:
        raise InputError(
            f"{path}: ARMS must be a tuple of names, at least one, got {arms!r}."
        )
    return arms


def _run(path: Path, function: Callable[..., Any], *arguments: str) -> Any:
    """Returns what code of a file returns, its errors as sentences."""
    try:
        return function(*arguments)
    except ValidationError as error:
        raise InputError(*(f"{path}: {fault}" for fault in faults(error))) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A config that exits is wrong, too.
        raise InputError(_where(error, path)) from error


def _stem(path: Path) -> str:
    return path.stem.replace("_", "-")


def _meant(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence on a name that is not bundled.

    Where it begins with the name of a file, its arms are named: all, or the nearest.
    """
    known = list(known)
    begins = [f"{_stem(path)}-" for path in _files()]
    mine = [begin for begin in begins if f"{name}-".startswith(begin)]
    near = [each for each in known for begin in mine if each.startswith(begin)]
    if len(near) > _NAMED and f"{name}-" in mine:
        near = []  # all are as near
    elif not near or len(near) > _NAMED:
        near = difflib.get_close_matches(name, near or known, 3 if near else 1)
    *most, last = [*map(repr, near)] or [""]
    meant = f"did you mean {', '.join(most)} or {last}? " if most else ""
    meant = meant or (f"did you mean {last}? " if last else "")
    return f"{meant}`adaprec configs` lists all."


def _where(error: BaseException, path: Path) -> str:
    """Returns a sentence with the last line of the file that led to the error.

    There is none where `config` itself could not be called.
    """
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    reason = str(error)
    if isinstance(error, SyntaxError):
        lines, reason = [error.lineno], error.msg
    where = f"{path}, line {lines[-1]}" if lines and lines[-1] else str(path)
    first = f": {reason.splitlines()[0].rstrip('.')}" if reason.strip() else ""
    return f"{where}: {type(error).__name__}{first}."


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read {path}: it is not UTF-8 text.") from error
