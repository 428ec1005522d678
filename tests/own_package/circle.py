"""An experiment whose pieces are somebody's own: as a task, or a data set alone."""

from typing import Any

from adaprec_jax.runs.config import (
    Adam,
    ConstantRate,
    Cost,
    CurrentScaling,
    Experiment,
    Imported,
    ImportedModel,
    ImportedSchedule,
    ImportedSink,
    ImportedTask,
    Scaling,
    Supervised,
)

ARMS = ("task", "data")


def own(kind: type, name: str, **arguments: Any) -> Any:
    return kind(target=f"somebodys.{name}", arguments=arguments)


def config(arm: str) -> Experiment:
    if arm == "task":
        task = ImportedTask(target="somebodys.task:sides", outputs=2)
        model = own(ImportedModel, "model:Wide", width=8)
    else:
        data = own(Imported, "data:circle", size=200)
        task = Supervised(data=data, outputs=2)
        model = own(ImportedModel, "model:linear", features=2)
    return Experiment(
        name=f"circle-{arm}",
        task=task,
        model=model,
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-2)),
        steps=1200,
        batch_size=16,
        steps_per_dispatch=20,
        evaluate_every=400,
        checkpoint_every=40,
        schedule=own(ImportedSchedule, "schedule:by_loss", low=4, high=8),
        scaling=Scaling(
            activation=CurrentScaling(quantizer=own(Imported, "quantizer:away")),
            weight=own(Imported, "recipe:by_mean", multiple=3.0),
        ),
        costs=(Cost(name="bytes", target="somebodys.cost:weight_bytes"),),
        sinks=(own(ImportedSink, "sink:table"),),
    )
