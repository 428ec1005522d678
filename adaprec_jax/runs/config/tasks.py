"""What is trained: a task and a model."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import (
    Count,
    Imported,
    NotNegative,
    Positive,
    Settings,
)


class Digits(Settings):
    """scikit-learn's digits, 8 x 8 pixels; each seed draws its own split."""

    outputs: ClassVar[int] = 10  # of the model
    kind: Literal["digits"] = "digits"


class Denoising(Settings):
    """The noise in scikit-learn's digits is to be predicted, arXiv:2006.11239."""

    outputs: ClassVar[int] = 64  # of the model
    kind: Literal["denoising"] = "denoising"


class FashionMNIST(Settings):
    """Fashion-MNIST, 28 x 28 pixels, split as published."""

    outputs: ClassVar[int] = 10  # of the model
    kind: Literal["fashion_mnist"] = "fashion_mnist"
    folder: str | None = Field(
        default=None, description="that holds the four files; no part of the run id"
    )


class Shakespeare(Settings):
    """Shakespeare's works as bytes, each to be predicted from those before."""

    outputs: ClassVar[int] = 256  # of the model
    kind: Literal["shakespeare"] = "shakespeare"
    folder: str | None = Field(
        default=None, description="that holds the archive; no part of the run id"
    )
    context: Count = Field(default=128, description="bytes per example")


class Function(Settings):
    """A synthetic task: Franke's smooth function of two variables, to be fitted."""

    outputs: ClassVar[int] = 1  # of the model
    kind: Literal["function"] = "function"
    size: Annotated[int, Field(ge=4)] = Field(
        default=4096, description="points, of which half are for training"
    )


class Teacher(Settings):
    """A synthetic task: the outputs of a fixed random network."""

    kind: Literal["teacher"] = "teacher"
    target: Literal["classification", "regression"] = Field(
        default="classification",
        description="the index of the teacher's largest output, or its outputs",
    )
    size: Annotated[int, Field(ge=4)] = Field(
        default=2048, description="examples, of which half are for training"
    )
    features: Count = Field(default=16, description="inputs per example")
    outputs: Count = Field(default=4, description="outputs of the teacher")


class Supervised(Settings):
    """Examples of somebody's own, to be classified or fitted."""

    kind: Literal["supervised"] = "supervised"
    data: Imported = Field(description="returns a Data")
    target: Literal["classification", "regression"] = Field(
        default="classification", description="what is learned of an example"
    )
    outputs: Count = Field(description="classes, or numbers per example")


class ImportedTask(Imported):
    """A task of somebody's own; the factory takes the `model`, and returns a Task."""

    offers: ClassVar[tuple[str, ...]] = ("model",)
    outputs: Count = Field(default=10, description="of the model")


Task: TypeAlias = Annotated[
    Digits
    | Denoising
    | FashionMNIST
    | Shakespeare
    | Function
    | Teacher
    | Supervised
    | ImportedTask,
    Field(discriminator="kind"),
]


class MLP(Settings):
    """Dense layers with rectifiers between them."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = Field(default=(64,), description="units per layer")


class CNN(Settings):
    """Convolutions of 3 x 3, each with a 2 x 2 max-pooling, then one dense layer."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Count, ...] = Field(
        default=(16, 32),
        min_length=1,
        max_length=2,  # 28 pixels halve twice
        description="channels per convolution",
    )


class Transformer(Settings):
    """A pre-norm decoder with learned positions."""

    kind: Literal["transformer"] = "transformer"
    layers: Count = Field(default=2, description="blocks")
    width: Count = Field(default=128, description="of the residual stream")
    heads: Count = Field(default=4, description="attention heads; divide the width")
    scan: bool = Field(default=True, description="one scan over the blocks")
    remat: bool = Field(
        default=False, description="compute activations again in the backward pass"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "Transformer":
        _check_heads(self)
        return self


class ResNet(Settings):
    """Stages of residual blocks with batch normalisation, arXiv:1512.03385."""

    kind: Literal["resnet"] = "resnet"
    channels: tuple[Count, ...] = Field(
        default=(16, 32),
        min_length=1,
        max_length=4,  # 8 pixels halve three times
        description="channels per stage; each after the first halves the image",
    )
    blocks: Count = Field(default=1, description="residual blocks per stage")


class ViT(Settings):
    """An encoder over patches of an image, arXiv:2010.11929."""

    kind: Literal["vit"] = "vit"
    patch: Literal[1, 2, 4, 8] = Field(default=2, description="pixels per side")
    layers: Count = Field(default=2, description="blocks")
    width: Count = Field(default=32, description="of the residual stream")
    heads: Count = Field(default=4, description="attention heads; divide the width")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ViT":
        _check_heads(self)
        return self


class Recurrent(Settings):
    """A recurrent layer over the rows of an image."""

    kind: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru"] = Field(default="lstm", description="what is repeated")
    width: Count = Field(default=64, description="of the state")


class Experts(Settings):
    """A mixture of experts, of which each example reaches a few, arXiv:1701.06538."""

    kind: Literal["experts"] = "experts"
    members: Count = Field(default=4, description="experts")
    # Of one expert the weight is always 1, which teaches the gate nothing.
    top: Annotated[int, Field(ge=2)] = Field(default=2, description="experts in use")
    width: Count = Field(default=32, description="between the layers")
    hidden_width: Count = Field(default=32, description="inside an expert")
    balance: NotNegative = Field(
        default=0.1, description="weight of the loss that spreads the examples"
    )

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> "Experts":
        if self.top > self.members:
            raise ValueError(
                f"top ({self.top}) must not be above members ({self.members})."
            )
        return self


class Graph(Settings):
    """Graph convolutions on the grid of an image's pixels, arXiv:1609.02907."""

    kind: Literal["graph"] = "graph"
    layers: Count = Field(default=2, description="graph convolutions")
    width: Count = Field(default=64, description="features of a node")


class Denoiser(Settings):
    """A small U-Net that is told the timestep, arXiv:2006.11239."""

    kind: Literal["denoiser"] = "denoiser"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        default=16, description="channels of the whole image, in groups of 8"
    )


class Siren(Settings):
    """Dense layers with sines between them, arXiv:2006.09661."""

    kind: Literal["siren"] = "siren"
    hidden: tuple[Count, ...] = Field(
        default=(64, 64), min_length=1, description="units per layer"
    )
    frequency: Positive = Field(default=12.0, description="factor of the inputs")


class ImportedModel(Imported):
    """A linen module of somebody's own, or a function that makes an nnx module."""

    offers: ClassVar[tuple[str, ...]] = ("outputs",)


Model: TypeAlias = Annotated[
    MLP
    | CNN
    | Transformer
    | ResNet
    | ViT
    | Recurrent
    | Experts
    | Graph
    | Denoiser
    | Siren
    | ImportedModel,
    Field(discriminator="kind"),
]


def _check_heads(settings: Transformer | ViT) -> None:
    """Refuses heads of different widths."""
    if settings.width % settings.heads:
        raise ValueError(
            f"width ({settings.width}) must be a multiple of heads ({settings.heads})."
        )
