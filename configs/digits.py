"""Digits MLP: float32, narrower formats, and schedules between them.

adaprec run digits-float32, or another arm:

    arm             test accuracy, %   minus float32   bit operations
    float32               96.4 ± 0.9                           1.0000
    bf16                  96.5 ± 1.0       0.1 ± 0.2           0.2500
    int8                  96.4 ± 0.7       0.0 ± 0.3           0.0625
    int5                  96.3 ± 0.6      -0.2 ± 0.6           0.0342
    int3                  92.3 ± 2.3      -4.1 ± 2.7           0.0186
    cpt                   96.9 ± 1.0       0.4 ± 0.2           0.0394
    two-threshold         96.5 ± 1.2       0.1 ± 0.5           0.0422

Means of seeds 0 to 4 with 95 % t-intervals, the difference paired by seed. int5 and
int3 are bits of activations and weights; their gradients have 8. cpt goes from 3 to 8
bits and back; two-threshold has 3 to 8 bits per layer, as underflow asks for.
"""

from adaprec_jax.runs.config import (
    CPT,
    MLP,
    Adam,
    Constant,
    ConstantRate,
    CurrentScaling,
    Digits,
    Experiment,
    Float32,
    Scaling,
    SharedFormats,
    TwoThreshold,
)

SCHEDULES = {
    "float32": Float32(),
    "bf16": Constant(
        precision=SharedFormats(
            activation="bfloat16", weight="bfloat16", gradient="bfloat16"
        )
    ),
    "int8": Constant(
        precision=SharedFormats(activation="int8", weight="int8", gradient="int8")
    ),
    "int5": Constant(
        precision=SharedFormats(activation="int5", weight="int5", gradient="int8")
    ),
    "int3": Constant(
        precision=SharedFormats(activation="int3", weight="int3", gradient="int8")
    ),
    "cpt": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=6),
    "two-threshold": TwoThreshold(
        min_bits=3,
        max_bits=8,
        start_bits=8,
        gradient_bits=8,
        low=0.05,
        high=0.12,
        every=20,
    ),
}
ARMS = tuple(SCHEDULES)
STOCHASTIC = Scaling(gradient=CurrentScaling(rounding="stochastic"))


def config(arm: str) -> Experiment:
    """Returns the experiment of an arm."""
    return Experiment(
        name=f"digits-{arm}",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=SCHEDULES[arm],
        scaling=Scaling() if arm in ("float32", "bf16") else STOCHASTIC,
    )
