"""How a plan is carried out: emulated, or natively in the dtypes of a device."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from adaprec_jax.runs.config.base import Count, Settings

Dispatches: TypeAlias = Annotated[int, Field(ge=0, le=100)]


class Emulated(Settings):
    """Rounded numbers are multiplied in float32; any format, for claims of accuracy."""

    kind: Literal["emulated"] = "emulated"
    late: Dispatches | None = Field(
        default=None,
        description="dispatches between a closed-loop decision and the first that "
        "follows it; none is the next step",
    )


class Native(Settings):
    """Rounded numbers are multiplied in dtypes of the device, for claims of speed."""

    kind: Literal["native"] = "native"
    target: Literal[
        "here", "b200", "cpu", "h100", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu7x"
    ] = Field(default="here", description="whose dtypes; here is what JAX finds")
    late: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1,
        description="dispatches between a closed-loop decision and the first that "
        "follows it, for compilation",
    )
    max_executables: Count = Field(
        default=16, description="a run that needs more of them stops"
    )
    on_compile_failure: Literal["stop", "emulate"] = Field(
        default="stop",
        description="what becomes of an executable that cannot be compiled; a run that "
        "emulates it depends on the machine",
    )


Execution: TypeAlias = Annotated[Emulated | Native, Field(discriminator="kind")]
