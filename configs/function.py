"""Network of sines that fits a smooth function to a mean squared error of 1e-6.

adaprec run function-float32, or another arm:

    int8    every product in 8-bit integers
    int4    activations and weights in 4 bits, gradients in 8
    cpt     cyclic precision training, 3 to 8 bits, gradients in 8

Few bits are expected to fail here: they cannot represent so small an error.
"""

from adaprec_jax.runs.config import (
    CPT,
    Adam,
    Constant,
    Cosine,
    CurrentScaling,
    Experiment,
    Float32,
    Function,
    Scaling,
    SharedFormats,
    Siren,
)

SCHEDULES = {
    "float32": Float32(),
    "int8": Constant(
        precision=SharedFormats(activation="int8", weight="int8", gradient="int8")
    ),
    "int4": Constant(
        precision=SharedFormats(activation="int4", weight="int4", gradient="int8")
    ),
    "cpt": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=8),
}
ARMS = tuple(SCHEDULES)
STOCHASTIC = Scaling(gradient=CurrentScaling(rounding="stochastic"))


def config(arm: str) -> Experiment:
    """Returns the experiment of an arm."""
    return Experiment(
        name=f"function-{arm}",
        task=Function(),
        model=Siren(hidden=(64, 64), frequency=12.0),
        optimizer=Adam(learning_rate=Cosine(peak=2e-2)),
        steps=4000,
        batch_size=256,
        steps_per_dispatch=20,
        evaluate_every=500,
        schedule=SCHEDULES[arm],
        scaling=Scaling() if arm == "float32" else STOCHASTIC,
    )
