"""Digits MLP under cyclic precision training, 3 to 8 bits, 8-bit gradients.

adaprec run digits-cpt

Expect a test accuracy of 96.9 ± 1.0 % (mean of seeds 0 to 4, 95 % t-interval),
0.4 ± 0.2 points from float32 paired by seed, at 0.0394 of its bit operations.
"""

from adaprec_jax.runs.config import (
    CPT,
    MLP,
    Adam,
    ConstantRate,
    CurrentScaling,
    Digits,
    Experiment,
    Scaling,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="digits-cpt",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=6),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
