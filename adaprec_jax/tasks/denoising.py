r"""Predicting the noise in a digit: the training of a diffusion model.

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239:
the digit $x_0$, scaled to -1 to 1, is mixed with noise $\epsilon$,
$x_t = \sqrt{\bar\alpha_t} \, x_0 + \sqrt{1 - \bar\alpha_t} \, \epsilon$, and the loss
is the mean of $(\epsilon - \epsilon_\theta(x_t, t))^2$ over the pixels (equation 14).

In training, timestep and noise are drawn from the key of the loss. In evaluation both
are made from the number of the example, so every model and every precision is asked the
same, and a score is the same each time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from adaprec_jax.tasks import digits, objectives
from adaprec_jax.tasks.network import Model, Params, Result, Variables, of
from adaprec_jax.tasks.task import Aux, Batch, Data, Scores, Task, check_arrays

STEPS = 1000


class Asked(NamedTuple):
    """What the model is asked about: a timestep and a noise per image."""

    timesteps: Int32[Array, " batch"]
    noise: Float[Array, "batch 8 8 1"]


def load() -> Data:
    """Returns the digits, each with its number in place of its class.

    Arrays: inputs uint8 (1797, 64) with values 0 to 16, targets int32 (1797,).

    Raises:
        DataError: scikit-learn ships other data than the results here were made with.

    >>> load().arrays.targets[:3].tolist()
    [0, 1, 2]
    """
    data = digits.load()
    numbers = np.arange(len(data.arrays.inputs), dtype=np.int32)
    return data._replace(arrays=data.arrays._replace(targets=numbers))


def task(data: Data, model: Model) -> Task:
    """Returns the task of predicting the noise in a digit.

    Args:
        data: What `load` returned.
        model: Maps noisy images, float32 (batch, 8, 8, 1), and timesteps, int32
            (batch,) from 0 to `STEPS` - 1, to the noise.
    """
    check_arrays("denoising", data.arrays)
    network, objective = of(model), objectives.regression()

    def init(key: Key[Array, ""]) -> Variables:
        return network.init(key, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32))

    def run(
        params: Params, model_state: Any, batch: Batch, asked: Asked, *, train: bool
    ) -> tuple[Scores, Result]:
        pixels = digits.pixels(jnp.asarray(batch.inputs))
        images = 2 * pixels.reshape(asked.noise.shape) - 1
        noisy = diffuse(images, asked)
        found = network.apply(params, model_state, noisy, asked.timesteps, train=train)
        rows = (x.reshape(len(x), -1) for x in (found.outputs, asked.noise))
        return objective.scores(*rows), found

    def scores(params: Params, model_state: Any, batch: Batch) -> Scores:
        asked = asked_of(jnp.asarray(batch.targets))
        return run(params, model_state, batch, asked, train=False)[0]

    def loss(
        params: Params, model_state: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Aux]:
        asked = drawn(key, len(batch.inputs))
        scores, found = run(params, model_state, batch, asked, train=True)
        metrics = jax.tree.map(jnp.mean, scores)
        return metrics["loss"] + found.penalty, Aux(metrics, found.model_state)

    return Task("denoising", data, objective.metric, init, loss, scores)


def drawn(key: Key[Array, ""], size: int) -> Asked:
    """Returns random timesteps and noise, for a batch in training."""
    first, second = jax.random.split(key)
    timesteps = jax.random.randint(first, (size,), 0, STEPS)
    return Asked(timesteps, jax.random.normal(second, (size, 8, 8, 1)))


def asked_of(numbers: Int32[Array, " batch"]) -> Asked:
    """Returns timestep and noise of each example in evaluation, from its number."""
    # 619 is prime and near the golden section of 1000: its multiples meet each timestep
    # once, and those of a few neighbours lie far apart.
    timesteps = numbers % STEPS * 619 % STEPS
    root = jax.random.key(0)
    each = lambda number: jax.random.normal(jax.random.fold_in(root, number), (8, 8, 1))
    return Asked(timesteps, jax.vmap(each)(numbers))


def diffuse(
    images: Float[Array, "batch 8 8 1"], asked: Asked
) -> Float[Array, "batch 8 8 1"]:
    r"""Returns $x_t$, the images mixed with noise.

    Args:
        images: Values -1 to 1.
        asked: Timestep 0 leaves nearly the image, `STEPS` - 1 nearly the noise.
    """
    kept = jnp.asarray(signal())[asked.timesteps][:, None, None, None]
    return jnp.sqrt(kept) * images + jnp.sqrt(1 - kept) * asked.noise


@functools.lru_cache
def signal() -> Float[np.ndarray, " steps"]:
    r"""Returns the share of the signal, $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$.

    $\beta$ rises linearly from 1e-4 to 0.02 (section 4).

    >>> signal()[[0, -1]]
    array([9.9989998e-01, 4.0358...e-05], dtype=float32)
    """
    return np.cumprod(1 - np.linspace(1e-4, 0.02, STEPS)).astype(np.float32)
