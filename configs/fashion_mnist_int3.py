"""Fashion-MNIST CNN with 3-bit activations and weights, 8-bit gradients.

adaprec run fashion-mnist-int3
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
        name="fashion-mnist-int3",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=Constant(
            precision=SharedFormats(activation="int3", weight="int3", gradient="int8")
        ),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
