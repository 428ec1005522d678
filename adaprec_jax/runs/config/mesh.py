"""How the devices of a run share its batch, its layers and its parameters."""

from pydantic import Field

from adaprec_jax.runs.config.base import Count, Settings


class Split(Settings):
    """Along which axis the devices that share a layer hold parameters."""

    pattern: str = Field(
        min_length=1, description='of names as "Dense_0/kernel", with wildcards'
    )
    axis: int | None = Field(
        description="negative ones count from the last; none is held by every device"
    )


class Mesh(Settings):
    """Which device holds what; by default each holds all but its share of the batch."""

    tensor: Count = Field(
        default=1,
        description="devices that share the matrices of one layer; the others share "
        "the batch",
    )
    splits: tuple[Split, ...] = Field(
        default=(),
        description="of these matrices; the first that matches counts, and where none "
        "does the largest axis that can be divided",
    )
    spread_parameters: bool = Field(
        default=False,
        description="over the devices that share the batch, too, with their masters "
        "and optimizer state (FSDP)",
    )
