"""Digits MLP with 3 to 8 bits per layer, as underflow asks for.

adaprec run digits-two-threshold

Expect a test accuracy of 96.5 ± 1.2 % (mean of seeds 0 to 4, 95 % t-interval),
0.1 ± 0.5 points from float32 paired by seed, at 0.0422 of its bit operations.
"""

from adaprec_jax.runs.config import (
    MLP,
    Adam,
    ConstantRate,
    CurrentScaling,
    Digits,
    Experiment,
    Scaling,
    TwoThreshold,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="digits-two-threshold",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=TwoThreshold(
            min_bits=3,
            max_bits=8,
            start_bits=8,
            gradient_bits=8,
            low=0.05,
            high=0.12,
            every=20,
        ),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
