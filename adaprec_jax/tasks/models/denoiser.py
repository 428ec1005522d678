"""A small U-Net that predicts the noise in an image; in linen.

Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239,
appendix B, with one halving of the image, one residual block for each size, and no
attention. The blocks have group normalisation, and are told the timestep by sinusoids.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32


class Denoiser(nn.Module):
    """A residual block on the image, one on its half, and convolutions of both.

    Attributes:
        width: Channels of the image, half of those of its half; a multiple of 8.
    """

    width: int = 16

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "batch height width channels"],
        timesteps: Int32[Array, " batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Returns the noise; height and width must be even."""
        width = self.width
        time = nn.Dense(4 * width, name="time")(sinusoids(timesteps, 2 * width))
        time = nn.silu(time)
        x = nn.Conv(width, (3, 3), name="stem")(noisy)
        fine = Residual(name="fine")(x, time)
        x = nn.Conv(2 * width, (3, 3), strides=2, name="shrink")(fine)
        x = Residual(name="coarse")(x, time)
        x = nn.Conv(width, (3, 3), name="grow")(x.repeat(2, axis=1).repeat(2, axis=2))
        x = jnp.concatenate([x, fine], axis=-1)
        x = nn.Conv(width, (3, 3), name="join")(
            nn.silu(nn.GroupNorm(8, name="norm")(x))
        )
        x = nn.silu(x)
        # At first the prediction is 0, the mean of the noise.
        zeros = nn.initializers.zeros_init()
        return nn.Conv(noisy.shape[-1], (3, 3), kernel_init=zeros, name="noise")(x)


class Residual(nn.Module):
    """Two normalised convolutions with the time between them, added to the input."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch features"],
    ) -> Float[Array, "batch height width channels"]:
        """Returns the new image."""
        channels = x.shape[-1]
        y = nn.silu(nn.GroupNorm(8, name="norm_1")(x))
        y = nn.Conv(channels, (3, 3), name="conv_1")(y)
        y = y + nn.Dense(channels, name="time")(time)[:, None, None]
        y = nn.silu(nn.GroupNorm(8, name="norm_2")(y))
        return x + nn.Conv(channels, (3, 3), name="conv_2")(y)


def sinusoids(
    timesteps: Int32[Array, " batch"], features: int
) -> Float[Array, "batch features"]:
    r"""Returns sines, then cosines, of timesteps at falling frequencies.

    $\sin(t \, 10^{-4 k / (n - 1)})$ for $k$ = 0 to $n - 1$, $n$ half of the features
    (Vaswani et al. 2017, arXiv:1706.03762, as Ho et al. use it).

    Args:
        timesteps: From 0 on.
        features: Even, at least 4.

    >>> sinusoids(jnp.array([0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    frequencies = 1e4 ** -np.linspace(0, 1, features // 2, dtype=np.float32)
    angles = timesteps[:, None].astype(jnp.float32) * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
