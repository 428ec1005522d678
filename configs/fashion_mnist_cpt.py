"""Fashion-MNIST CNN under cyclic precision training, 3 to 8 bits, 8-bit gradients.

adaprec run fashion-mnist-cpt
"""

from adaprec_jax.runs.config import (
    CNN,
    CPT,
    Adam,
    ConstantRate,
    CurrentScaling,
    Experiment,
    FashionMNIST,
    Scaling,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion-mnist-cpt",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=8),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
