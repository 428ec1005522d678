"""Fashion-MNIST CNN with every product in 8-bit integers.

adaprec run fashion-mnist-int8
"""

from adaprec_jax.runs.config import (
    CNN,
    Adam,
    Constant,
    ConstantRate,
    CurrentScaling,
    Experiment,
    FashionMNIST,
    Scaling,
    SharedFormats,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion-mnist-int8",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=Constant(
            precision=SharedFormats(activation="int8", weight="int8", gradient="int8")
        ),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
