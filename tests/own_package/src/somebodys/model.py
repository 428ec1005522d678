"""A model in linen and one in nnx."""

from flax import linen as nn, nnx


class Wide(nn.Module):
    """One hidden layer."""

    outputs: int
    width: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(self.width)(x)))


def linear(features: int, outputs: int):
    """A single layer; called with `rngs` it makes the module."""
    return lambda rngs: nnx.Linear(features, outputs, rngs=rngs)
