"""A recurrent network, LSTM or GRU; in linen.

LSTM: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", Neural Computation
9(8). GRU: Cho et al. 2014, arXiv:1406.1078.
"""

from typing import Literal, cast

from flax import linen as nn
from jaxtyping import Array, Float


class Recurrent(nn.Module):
    """One recurrent layer; a dense layer reads its state after the last input.

    Attributes:
        cell: What is repeated, one scan over time.
        width: Of the state.
        outputs: The number of outputs.
    """

    cell: Literal["lstm", "gru"] = "lstm"
    width: int = 64
    outputs: int = 10

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time features"]
    ) -> Float[Array, "batch outputs"]:
        """Returns logits."""
        cell = nn.LSTMCell if self.cell == "lstm" else nn.GRUCell
        states = cast(Array, nn.RNN(cell(self.width, name="cell"))(x))
        return nn.Dense(self.outputs, name="head")(states[:, -1])
