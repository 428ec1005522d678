"""A vision transformer; in nnx.

Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929: an image is
a sequence of patches after a learned class token, with learned positions, read by a
pre-norm encoder.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class ViT(nnx.Module):
    """Patches, encoder blocks, and a dense layer that reads the class token.

    Args:
        image: Height, width and channels of an image.
        patch: Height and width of a patch; must divide the image's.
        layers: Encoder blocks.
        width: Of the residual stream.
        heads: Attention heads; must divide `width`.
        outputs: The number of outputs.
        rngs: Where the first parameters come from.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        patch: int,
        layers: int,
        width: int,
        heads: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = image
        if height % patch or image_width % patch:
            raise ValueError(
                f"Patches of {patch} x {patch} do not fill an image of {height} x "
                f"{image_width}."
            )
        tokens = 1 + (height // patch) * (image_width // patch)
        # As large as the patches: from 0.02, a thousand digits teach no positions.
        normal = nnx.initializers.normal(0.5)
        self.patch = patch
        self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List(Encoder(width, heads, rngs=rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch outputs"]:
        """Returns logits."""
        x = self.embed(patches(x, self.patch))
        token = jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Encoder(nnx.Module):
    """Attention, then a network of one hidden layer, each added to its input.

    Args:
        width: Of the residual stream.
        heads: Attention heads.
        rngs: Where the first parameters come from.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm_1 = nnx.LayerNorm(width, rngs=rngs)
        # Without dropout there is nothing to keep random numbers for.
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, keep_rngs=False, rngs=rngs
        )
        self.norm_2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        """Returns the new residual stream."""
        x = x + self.attention(self.norm_1(x))
        return x + self.down(jax.nn.gelu(self.up(self.norm_2(x))))


def patches(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches features"]:
    """Returns the square patches of images, row by row.

    >>> patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(batch, rows, size, columns, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, size * size * channels)
