"""Fashion-MNIST CNN with 3 to 8 bits per layer, as underflow asks for.

adaprec run fashion-mnist-two-threshold
"""

from adaprec_jax.runs.config import (
    CNN,
    Adam,
    ConstantRate,
    CurrentScaling,
    Experiment,
    FashionMNIST,
    Scaling,
    TwoThreshold,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion-mnist-two-threshold",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
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
