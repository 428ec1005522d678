"""Diffusion model on digits: a U-Net that predicts noise.

adaprec run denoiser-float32, or another arm:

    int8    every product in 8-bit integers
    int4    activations and weights in 4 bits, gradients in 8
    cpt     cyclic precision training, 3 to 8 bits, gradients in 8
"""

from adaprec_jax.runs.config import (
    CPT,
    Adam,
    Constant,
    Cosine,
    CurrentScaling,
    Denoiser,
    Denoising,
    Experiment,
    Float32,
    Scaling,
    SharedFormats,
)

SCHEDULES = {
    "float32": Float32(),
    "int8": Constant(
        precision=SharedFormats(activation="int8", weight="int8", gradient="int8")
    ),
    "int4": Constant(
        precision=SharedFormats(activation="int4", weight="int4", gradient="int8")
    ),
    "cpt": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=6),
}
ARMS = tuple(SCHEDULES)
STOCHASTIC = Scaling(gradient=CurrentScaling(rounding="stochastic"))


def config(arm: str) -> Experiment:
    """Returns the experiment of an arm."""
    return Experiment(
        name=f"denoiser-{arm}",
        task=Denoising(),
        model=Denoiser(width=16),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3)),
        steps=600,
        batch_size=64,
        evaluate_every=200,
        schedule=SCHEDULES[arm],
        scaling=Scaling() if arm == "float32" else STOCHASTIC,
    )
