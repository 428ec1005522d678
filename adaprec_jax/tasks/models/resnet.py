"""A residual network with batch normalisation; in linen.

He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition",
arXiv:1512.03385, section 4.2: the network for small images, with projections as
shortcuts where the shape changes (their option B). Batch normalisation is that of Ioffe
and Szegedy 2015, arXiv:1502.03167; its running averages are model state.
"""

import functools

from flax import linen as nn
from jaxtyping import Array, Float


class ResNet(nn.Module):
    """A convolution, stages of residual blocks, a mean over the image, then dense.

    Attributes:
        channels: Of each stage; from the second stage on, each halves the image.
        blocks: Residual blocks per stage.
        outputs: The number of outputs.
    """

    channels: tuple[int, ...] = (16, 32)
    blocks: int = 1
    outputs: int = 10

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch outputs"]:
        """Returns logits; in training, normalised by the statistics of the batch."""
        x = nn.Conv(self.channels[0], (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(_norm(train=train)(name="norm")(x))
        for stage, channels in enumerate(self.channels):
            for block in range(self.blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                x = Residual(channels, strides, name=name)(x, train=train)
        return nn.Dense(self.outputs, name="head")(x.mean(axis=(1, 2)))


class Residual(nn.Module):
    """Two convolutions of 3 x 3, added to the input or to a projection of it.

    Attributes:
        channels: Of the result.
        strides: Of the first convolution.
    """

    channels: int
    strides: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """Returns the new image."""
        norm, channels, strides = _norm(train=train), self.channels, self.strides
        conv = functools.partial(nn.Conv, use_bias=False)
        y = conv(channels, (3, 3), strides, name="conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = norm(name="norm_2")(conv(channels, (3, 3), name="conv_2")(y))
        if x.shape != y.shape:
            x = conv(channels, (1, 1), strides, name="shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


def _norm(*, train: bool) -> functools.partial[nn.BatchNorm]:
    # Runs are of hundreds of steps: an average over the last ten, not over a hundred.
    return functools.partial(nn.BatchNorm, not train, momentum=0.9)
