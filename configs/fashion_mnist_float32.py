"""Fashion-MNIST CNN in float32, the baseline.

adaprec run fashion-mnist-float32
"""

from adaprec_jax.runs.config import (
    CNN,
    Adam,
    ConstantRate,
    Experiment,
    FashionMNIST,
    Float32,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion-mnist-float32",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=Float32(),
    )
