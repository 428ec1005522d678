"""The multi-layer perceptron."""

from flax import linen as nn
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Dense layers with rectifiers between them.

    Attributes:
        hidden: The widths of the hidden layers.
        outputs: The number of outputs.
    """

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"]
    ) -> Float[Array, "batch outputs"]:
        """Returns the outputs, or logits."""
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)
