"""A config from a Python file, from JSON, or by the name of a bundled one."""

import json
import runpy
import traceback
from pathlib import Path

from pydantic import ValidationError

import adaprec_jax
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.runs.validation import faults, validate


def load(config: str) -> Experiment:
    """Returns the experiment that a config holds.

    Args:
        config: The path of a Python file that defines `config() -> Experiment`; of a
            JSON file, which is read and never run; or a bundled name.

    Raises:
        InputError: There is no such config, or it is wrong: one sentence per fault.

    >>> load("digits-cpt").schedule.kind
    'cpt'
    """
    match Path(config).suffix:
        case ".py":
            return _from_python(Path(config))
        case ".json":
            return from_json(Path(config))
    known, name = bundled(), config.replace("_", "-")
    if name not in known:
        raise InputError(f"Unknown config {config!r}; {suggest(name, known)}")
    return _from_python(known[name])


def bundled() -> dict[str, Path]:
    """Returns the files of the bundled configs by name.

    >>> sorted(bundled())[:2]
    ['digits-bf16', 'digits-cpt']
    """
    package = Path(adaprec_jax.__file__).parent
    installed = package / "bundled_configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem.replace("_", "-"): path for path in sorted(folder.glob("*.py"))}


def from_json(path: Path) -> Experiment:
    """Returns the experiment in a JSON file.

    Raises:
        InputError: It cannot be read, is not JSON, or is wrong.
    """
    try:
        return validate(json.loads(_read(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    except InputError as error:
        raise InputError(*(f"{path}: {fault}" for fault in error.args)) from error


def _from_python(path: Path) -> Experiment:
    _read(path)
    try:
        config = runpy.run_path(str(path)).get("config")
        made = config() if callable(config) else None
    except ValidationError as error:
        raise InputError(*(f"{path}: {fault}" for fault in faults(error))) from error
    except Exception as error:
        raise InputError(_where(error, path)) from error
    if not callable(config):
        raise InputError(f"{path} defines no function config().")
    if not isinstance(made, Experiment):
        raise InputError(
            f"{path}: config() must return an Experiment, got {type(made).__name__}."
        )
    return made


def _where(error: Exception, path: Path) -> str:
    """Returns a sentence with the last line of the file that led to the error."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    reason = error.msg if isinstance(error, SyntaxError) else error
    return f"{path}, line {line}: {type(error).__name__}: {reason}."


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read {path}: it is not UTF-8 text.") from error
