"""Which run is which: an id made of what decides its outcome."""

import hashlib
import json
from typing import Any

from adaprec_jax.runs import imports
from adaprec_jax.runs.config import (
    Denoising,
    Digits,
    Experiment,
    FashionMNIST,
    Function,
    Imported,
    ImportedTask,
    Shakespeare,
    Supervised,
    Task,
    Teacher,
)
from adaprec_jax.tasks import pinned

_NOT_DECIDING = ("name", "tags", "sinks", "keep_checkpoints")


def run_id(experiment: Experiment) -> str:
    """Returns the id of the run: 12 hexadecimal digits.

    They are the first of the sha256 of `deciding` settings and data fingerprint, as
    canonical JSON. Typing the same experiment again gives the same id, whatever its
    name and wherever its data lies.
    """
    whole = {"config": deciding(experiment), "data": fingerprint(experiment.task)}
    return hashlib.sha256(canonical(whole).encode()).hexdigest()[:12]


def deciding(experiment: Experiment) -> dict[str, Any]:
    """Returns the settings that decide the outcome, as JSON values.

    Left out are the name, the tags, the sinks, how many checkpoints stay and the folder
    that the data lies in. What comes from somebody's own package is joined by its
    version and the digest of its source.
    """
    tree = experiment.model_dump(
        mode="json",
        exclude=dict.fromkeys(_NOT_DECIDING, True) | {"task": {"folder": True}},
    )
    own = experiment.model_copy(update={"sinks": ()})
    origins = {target: imports.origin(target) for target in imports.targets(own)}
    return tree | ({"imports": origins} if origins else {})


def canonical(tree: Any) -> str:
    """Returns the one JSON text of a tree of JSON values.

    >>> canonical({"b": 1e-3, "a": [True, None]})
    '{"a":[true,null],"b":0.001}'
    """
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(task: Task) -> str:
    """Returns what names the data of a task, as `adaprec_jax.tasks` computes it.

    The data itself is not needed: tasks accept no other than the pinned one. Of data of
    one's own it is the target, whose source is a part of the id; see `store.session`.
    """
    match task:
        case Digits() | Denoising():
            return pinned.fingerprint(pinned.DIGITS.values())
        case FashionMNIST():
            return pinned.fingerprint(pinned.FASHION_MNIST.values())
        case Shakespeare():
            return pinned.fingerprint(pinned.SHAKESPEARE.values())
        case Function(size=size):
            return f"function-franke-{size}"
        case Teacher():
            return f"teacher-{task.target}-{task.size}-{task.features}-{task.outputs}"
        case Supervised(data=Imported(target=target)) | ImportedTask(target=target):
            return f"of {target}"
