"""A BERT encoder of sentences in linen, as all-MiniLM-L6-v2 is one.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv:1810.04805; a sentence's embedding is the mean over its tokens
(Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084). It knows nothing of
precision.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int32

_Norm = functools.partial(nn.LayerNorm, epsilon=1e-12, use_fast_variance=False)


class Encoder(nn.Module):
    """Embeds sentences as unit vectors; the defaults are the sizes of MiniLM-L6.

    Attributes:
        layers: The number of blocks.
        heads: Attention heads; must divide `width`.
        width: Of the residual stream.
        hidden: Between the two dense layers of a block.
        vocabulary: Word pieces.
        context: The longest input.
    """

    layers: int = 6
    heads: int = 12
    width: int = 384
    hidden: int = 1536
    vocabulary: int = 30522
    context: int = 512

    @nn.compact
    def __call__(
        self, ids: Int32[Array, "batch time"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch width"]:
        """Returns the embedding of each sentence; `mask` is false at its padding."""
        x = nn.Embed(self.vocabulary, self.width, name="words")(ids)
        normal = nn.initializers.normal(0.02)
        positions = self.param("positions", normal, (self.context, self.width))
        x = _Norm(name="norm")(x + positions[None, : ids.shape[1]])
        for layer in range(self.layers):
            x = Block(self.heads, self.hidden, name=f"layer_{layer}")(x, mask)
        # The mean over tokens, but for a factor that the norm takes away again.
        total = jnp.sum(jnp.where(mask[..., None], x, 0), axis=1)
        return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


class Block(nn.Module):
    """Attention, then a network of one hidden layer; each sum is normalised.

    Attributes:
        heads: Attention heads.
        hidden: Width of the hidden layer.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time width"]:
        """Returns the new residual stream."""
        mixed = Attention(self.heads, name="attention")(x, mask)
        x = _Norm(name="norm_1")(x + mixed)
        inside = nn.gelu(nn.Dense(self.hidden, name="up")(x), approximate=False)
        return _Norm(name="norm_2")(x + nn.Dense(x.shape[-1], name="down")(inside))


class Attention(nn.Module):
    """Every token looks at all tokens of its sentence.

    Attributes:
        heads: Attention heads.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time width"]:
        """Returns, for each token, a mixture of the values of all."""
        batch, time, width = x.shape
        head = width // self.heads
        q_BxTxHxD, k_BxTxHxD, v_BxTxHxD = (
            nn.Dense(width, name=name)(x).reshape(batch, time, self.heads, head)
            for name in ("query", "key", "value")
        )
        scores_BxHxTxT = jnp.einsum("bqhd,bkhd->bhqk", q_BxTxHxD, k_BxTxHxD)
        scores_BxHxTxT = scores_BxHxTxT / head**0.5
        lowest = jnp.finfo(scores_BxHxTxT.dtype).min
        weights_BxHxTxT = jax.nn.softmax(
            jnp.where(mask[:, None, None], scores_BxHxTxT, lowest)
        )
        mixed_BxTxHxD = jnp.einsum("bhqk,bkhd->bqhd", weights_BxHxTxT, v_BxTxHxD)
        return nn.Dense(width, name="out")(mixed_BxTxHxD.reshape(x.shape))
