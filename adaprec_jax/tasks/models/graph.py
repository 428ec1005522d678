"""A graph convolutional network on the grid of an image's pixels; in nnx.

Kipf and Welling 2016, "Semi-Supervised Classification with Graph Convolutional
Networks", arXiv:1609.02907, equation 2, for whole graphs: the last layer's nodes are
averaged. The convolution cannot tell up from down, so each node's features are first
multiplied by a learned vector of its place.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Graph(nnx.Module):
    """Graph convolutions, a mean over the nodes, then a dense layer.

    Args:
        grid: Height and width of the grid.
        features: Of a node.
        layers: Graph convolutions.
        width: Features of a node between them.
        outputs: The number of outputs.
        rngs: Where the first parameters come from.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        features: int,
        layers: int,
        width: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
    ):
        nodes = grid[0] * grid[1]
        normal = nnx.initializers.normal(1.0)
        self.grid = grid
        self.embed = nnx.Linear(features, width, rngs=rngs)
        self.places = nnx.Param(normal(rngs.params(), (1, nodes, width)))
        self.layers = nnx.List(Convolution(width, rngs=rngs) for _ in range(layers))
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch nodes features"]
    ) -> Float[Array, "batch outputs"]:
        """Returns logits; the nodes are the pixels row by row."""
        adjacency = normalised_grid(*self.grid).astype(x.dtype)
        x = self.embed(x) * self.places[...]
        for layer in self.layers:
            x = jax.nn.relu(layer(x, adjacency))
        return self.head(x.mean(axis=1))


class Convolution(nnx.Module):
    r"""A dense layer on each node, then a sum over its neighbours, $\hat A X W$.

    Args:
        width: Features of a node.
        rngs: Where the first parameters come from.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch nodes width"],
        adjacency: Float[Array, "nodes nodes"],
    ) -> Float[Array, "batch nodes width"]:
        """Returns the new features."""
        return jnp.einsum("nm,bmf->bnf", adjacency, self.dense(x))


def normalised_grid(height: int, width: int) -> Float[Array, "nodes nodes"]:
    r"""Returns $D^{-1/2} (A + I) D^{-1/2}$ of a grid of pixels with 8 neighbours each.

    $A$ is 1 between neighbours and 0 elsewhere, $D$ the diagonal of the row sums of
    $A + I$.

    >>> normalised_grid(1, 2)
    Array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    places = jnp.indices((height, width)).reshape(2, -1)
    far = jnp.max(jnp.abs(places[:, :, None] - places[:, None]), axis=0)
    linked = (far <= 1).astype(jnp.float32)
    degrees = jnp.sum(linked, axis=1)
    return linked * jax.lax.rsqrt(degrees[:, None] * degrees[None])
