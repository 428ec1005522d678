"""Digits MLP with every product in bfloat16.

adaprec run digits-bf16
"""

from adaprec_jax.runs.config import (
    MLP,
    Adam,
    Constant,
    ConstantRate,
    Digits,
    Experiment,
    SharedFormats,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="digits-bf16",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=Constant(
            precision=SharedFormats(
                activation="bfloat16", weight="bfloat16", gradient="bfloat16"
            )
        ),
    )
