"""What is trained: a task and a model."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from adaprec_jax.runs.config.base import Count, Settings


class Digits(Settings):
    """scikit-learn's digits, 8 x 8 pixels; each seed draws its own split."""

    kind: Literal["digits"] = "digits"


class FashionMNIST(Settings):
    """Fashion-MNIST, 28 x 28 pixels, split as published."""

    kind: Literal["fashion_mnist"] = "fashion_mnist"
    folder: str | None = Field(
        default=None, description="that holds the four files; no part of the run id"
    )


class Shakespeare(Settings):
    """Shakespeare's works as bytes, each to be predicted from those before."""

    kind: Literal["shakespeare"] = "shakespeare"
    folder: str | None = Field(
        default=None, description="that holds the archive; no part of the run id"
    )
    context: Count = Field(default=128, description="bytes per example")


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


Task: TypeAlias = Annotated[
    Digits | FashionMNIST | Shakespeare | Teacher, Field(discriminator="kind")
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
        if self.width % self.heads:
            raise ValueError(
                f"width ({self.width}) must be a multiple of heads ({self.heads})."
            )
        return self


Model: TypeAlias = Annotated[MLP | CNN | Transformer, Field(discriminator="kind")]
