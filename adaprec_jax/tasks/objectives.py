"""What is asked of a model's outputs, one float32 number per example.

Each function returns an `Objective`. Outputs are widened to float32 first, whatever
precision the model ran in: a mean or a logarithm in less is not a measurement.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from adaprec_jax.tasks.task import Metric, Objective, Scores


def classification(classes: int | None = None) -> Objective:
    r"""Returns the negative log-likelihood of the right class, and accuracy.

    $-\log \mathrm{softmax}(z)_y$ in nats; accuracy is 1 where $y$ is the largest of
    the logits $z$ and 0 elsewhere.

    Args:
        classes: How many there are, if logits of another number are to be refused with
            a ValueError.

    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0]])
    >>> classification().scores(logits, jnp.array([0, 1]))["accuracy"].tolist()
    [1.0, 0.0]
    """

    def scores(
        logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]
    ) -> Scores:
        if logits.shape[:-1] != labels.shape or (
            classes and logits.shape[-1] != classes
        ):
            raise ValueError(
                f"The model's outputs {logits.shape} must be logits, "
                f"{(*labels.shape, classes or 'classes')}."
            )
        right = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        return {
            "loss": _negative_log_likelihood(logits, labels),
            "accuracy": right.astype(jnp.float32),
        }

    return Objective(scores, Metric("accuracy", higher_is_better=True))


def bits_per_byte() -> Objective:
    r"""Returns the mean negative log-likelihood of each window's bytes.

    The loss is in nats; bits per byte is the loss divided by $\log 2$.

    >>> logits = jnp.zeros((1, 3, 256))
    >>> bits_per_byte().scores(logits, jnp.zeros((1, 3), int))["bits_per_byte"].tolist()
    [8.0]
    """

    def scores(
        logits: Float[Array, "batch time bytes"], targets: Integer[Array, "batch time"]
    ) -> Scores:
        nats = jnp.mean(_negative_log_likelihood(logits, targets), axis=-1)
        return {"loss": nats, "bits_per_byte": nats / np.log(2, dtype=np.float32)}

    return Objective(scores, Metric("bits_per_byte", higher_is_better=False))


def regression() -> Objective:
    r"""Returns the squared error, averaged over the outputs of an example.

    Its scores raise a ValueError where outputs and targets differ in shape.

    >>> regression().scores(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))["loss"].tolist()
    [5.0]
    """

    def scores(
        outputs: Float[Array, "batch outputs"], targets: Float[Array, "batch outputs"]
    ) -> Scores:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"The model's outputs {outputs.shape} must have the shape of the "
                f"targets, {targets.shape}."
            )
        error = outputs.astype(jnp.float32) - targets
        return {"loss": jnp.mean(jnp.square(error), axis=-1)}

    return Objective(scores, Metric("loss", higher_is_better=False))


def _negative_log_likelihood(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]
) -> Float[Array, "*batch"]:
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels.astype(jnp.int32)
    )
