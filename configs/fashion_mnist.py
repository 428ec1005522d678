"""Fashion-MNIST CNN: float32, narrower formats, and schedules between them.

adaprec run fashion-mnist-float32, or another arm:

    bf16, int8      every product in that format
    int5, int3      activations and weights in that format, gradients in int8
    cpt             cyclic precision training, 3 to 8 bits, gradients in int8
    two-threshold   3 to 8 bits per layer, as underflow asks for, gradients in int8
"""

from adaprec_jax.runs.config import (
    CNN,
    CPT,
    Adam,
    Constant,
    ConstantRate,
    CurrentScaling,
    Experiment,
    FashionMNIST,
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
    "cpt": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=8),
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
        name=f"fashion-mnist-{arm}",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=SCHEDULES[arm],
        scaling=Scaling() if arm in ("float32", "bf16") else STOCHASTIC,
    )
