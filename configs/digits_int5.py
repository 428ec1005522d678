"""Digits MLP with 5-bit activations and weights, 8-bit gradients.

adaprec run digits-int5

Expect a test accuracy of 96.3 ± 0.6 % (mean of seeds 0 to 4, 95 % t-interval),
-0.2 ± 0.6 points from float32 paired by seed, at 0.0342 of its bit operations.
"""

from adaprec_jax.runs.config import (
    MLP,
    Adam,
    Constant,
    ConstantRate,
    CurrentScaling,
    Digits,
    Experiment,
    Scaling,
    SharedFormats,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="digits-int5",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=Constant(
            precision=SharedFormats(activation="int5", weight="int5", gradient="int8")
        ),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
