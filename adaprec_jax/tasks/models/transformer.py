"""A decoder-only transformer over bytes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32


class Transformer(nn.Module):
    """A pre-norm decoder over bytes with learned positions.

    Attributes:
        layers: The number of blocks.
        heads: Attention heads; must divide `width`.
        width: Of the residual stream.
        context: The longest input.
        scan: Whether the blocks are one `nn.scan`, their parameters stacked along a
            leading layer axis, instead of a block each.
        remat: Whether a block's activations are computed again in the backward pass.
    """

    layers: int = 2
    heads: int = 4
    width: int = 128
    context: int = 128
    scan: bool = True
    remat: bool = False

    @nn.compact
    def __call__(
        self, symbols: Int32[Array, "batch time"]
    ) -> Float[Array, "batch time 256"]:
        """Returns the logits of each next byte."""
        time = symbols.shape[1]
        if time > self.context:
            raise ValueError(
                f"An input may have at most {self.context} bytes, got {time}."
            )
        normal = nn.initializers.normal(0.02)
        positions = self.param("positions", normal, (self.context, self.width))
        x = nn.Embed(256, self.width, embedding_init=normal, name="embed")(symbols)
        x = x + positions[None, :time]
        # Inside a scan nothing is left for common-subexpression elimination to undo.
        block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = stack(self.heads, name="blocks")(x, None)
        else:
            for layer in range(self.layers):
                x, _ = block(self.heads, name=f"block_{layer}")(x, None)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(256, use_bias=False, name="head")(x)


class Block(nn.Module):
    """Attention, then a network of one hidden layer, each added to its input.

    Attributes:
        heads: Attention heads.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], _: None
    ) -> tuple[Float[Array, "batch time width"], None]:
        """Returns the new residual stream, and nothing per layer, as a scan wants."""
        width = x.shape[-1]
        x = x + Attention(self.heads, name="attention")(nn.LayerNorm(name="norm_1")(x))
        hidden = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm_2")(x))
        return x + nn.Dense(width, name="down")(nn.gelu(hidden)), None


class Attention(nn.Module):
    """Causal attention (Vaswani et al. 2017, arXiv:1706.03762), in plain einsums.

    Attributes:
        heads: Attention heads; must divide the width.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"]
    ) -> Float[Array, "batch time width"]:
        """Returns, at each place, a mixture of what that place and those before say."""
        width = x.shape[-1]
        head = width // self.heads
        qkv_BxTx3xHxD = nn.DenseGeneral(
            (3, self.heads, head), use_bias=False, name="qkv"
        )(x)
        q_BxTxHxD, k_BxTxHxD, v_BxTxHxD = jnp.moveaxis(qkv_BxTx3xHxD, 2, 0)
        scores_BxHxTxT = jnp.einsum("bqhd,bkhd->bhqk", q_BxTxHxD, k_BxTxHxD)
        scores_BxHxTxT = scores_BxHxTxT / head**0.5
        past = np.tri(x.shape[1], dtype=bool)[None, None]
        lowest = jnp.finfo(scores_BxHxTxT.dtype).min
        weights_BxHxTxT = jax.nn.softmax(jnp.where(past, scores_BxHxTxT, lowest))
        mixed_BxTxHxD = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxTxT, v_BxTxHxD)
        return nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name="out")(
            mixed_BxTxHxD
        )
