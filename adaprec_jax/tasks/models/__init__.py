"""Plain Flax models of the bundled tasks, one family per file.

They know nothing of precision. Those in linen are modules; those in nnx are classes
whose last argument is `rngs`.
"""

from adaprec_jax.tasks.models.cnn import CNN as CNN, max_pool as max_pool
from adaprec_jax.tasks.models.denoiser import Denoiser as Denoiser
from adaprec_jax.tasks.models.experts import Experts as Experts
from adaprec_jax.tasks.models.graph import Graph as Graph
from adaprec_jax.tasks.models.mlp import MLP as MLP
from adaprec_jax.tasks.models.recurrent import Recurrent as Recurrent
from adaprec_jax.tasks.models.resnet import ResNet as ResNet
from adaprec_jax.tasks.models.siren import Siren as Siren
from adaprec_jax.tasks.models.transformer import (
    Attention as Attention,
    Transformer as Transformer,
)
from adaprec_jax.tasks.models.vit import ViT as ViT
