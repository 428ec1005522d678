"""A task: which side of the circle, judged by the share of wrong answers."""

from adaprec_jax.tasks import network, objectives
from adaprec_jax.tasks.task import Metric, Objective, Task, from_network
from somebodys.data import circle


def sides(model, size: int = 240) -> Task:
    """The points of `circle`, with an error rate beside the accuracy."""
    usual = objectives.classification()

    def scores(outputs, targets):
        found = usual.scores(outputs, targets)
        return found | {"error_rate": 1 - found["accuracy"]}

    objective = Objective(scores, Metric("error_rate", higher_is_better=False))
    data = circle(size)
    return from_network("sides", data, network.of(model), objective, lambda x: x)
