"""What `--sink` chooses."""

import importlib.util
from collections.abc import Iterable
from typing import Final

from adaprec_jax.runs.config import ImportedSink
from adaprec_jax.runs.errors import InputError, suggest

# The module that each needs.
_NEEDS: Final = {
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


def chosen(options: Iterable[str]) -> tuple[ImportedSink, ...]:
    """Returns the sinks that are meant by NAME or NAME:FOLDER.

    Args:
        options: Such as `tensorboard`, `wandb:offline`, or
            `mlflow:http://localhost:5000`.

    Raises:
        InputError: There is no such tracker, or its extra is not installed.
    """
    return tuple(map(_chosen, options))


def _chosen(option: str) -> ImportedSink:
    name, colon, folder = option.partition(":")
    if name not in _NEEDS:
        raise InputError(f"There is no sink {name!r}; {suggest(name, _NEEDS)}")
    if colon and not folder:
        raise InputError(f"--sink {option} names no folder after the colon.")
    for module in _NEEDS[name]:
        if not _is_installed(module):
            raise InputError(
                f"The sink {name} needs {module}, which is not installed: "
                f"pip install 'adaprec-jax[{name}]'."
            )
    return ImportedSink(
        target=f"adaprec_jax.runs.trackers.{name}:sink",
        arguments={"folder": folder} if folder else {},
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # Set to None, or made by hand.
        return False
