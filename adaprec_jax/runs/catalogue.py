"""The bundled configs, each in a line; imports no JAX."""

from typing import NamedTuple

from adaprec_jax.runs.expected import precision
from adaprec_jax.runs.load import bundled_experiments


class Bundled(NamedTuple):
    """A bundled config in one line.

    Attributes:
        config: Its name.
        task: The kind of what is learnt.
        model: The kind of what learns it.
        precision: The formats, and how they change.
    """

    config: str
    task: str
    model: str
    precision: str


def catalogue() -> tuple[Bundled, ...]:
    """Returns all bundled configs, those of a task and a model next to each other.

    >>> [each.precision for each in catalogue() if each.config == "digits-cpt"]
    ['int3 to int8 in 6 cycles']
    """
    found = [
        Bundled(each.name, each.task.kind, each.model.kind, precision(each))
        for each in bundled_experiments()
    ]
    return tuple(sorted(found, key=lambda each: (each.task, each.model)))
