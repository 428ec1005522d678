"""Fashion-MNIST CNN with every product in bfloat16.

adaprec run fashion-mnist-bf16
"""

from adaprec_jax.runs.config import (
    CNN,
    Adam,
    Constant,
    ConstantRate,
    Experiment,
    FashionMNIST,
    SharedFormats,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="fashion-mnist-bf16",
        task=FashionMNIST(),
        model=CNN(channels=(16, 32)),
        optimizer=Adam(learning_rate=ConstantRate(peak=1e-3)),
        steps=1200,
        batch_size=128,
        evaluate_every=400,
        schedule=Constant(
            precision=SharedFormats(
                activation="bfloat16", weight="bfloat16", gradient="bfloat16"
            )
        ),
    )
