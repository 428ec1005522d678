"""Digits MLP with every product in bfloat16.

adaprec run digits-bf16

Expect a test accuracy of 96.5 ± 1.0 % (mean of seeds 0 to 4, 95 % t-interval),
0.1 ± 0.2 points from float32 paired by seed, at 0.2500 of its bit operations.
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
