"""Data-parallel training: the batch is spread over devices, the state is everywhere.

The train step is the same: under `jit` its meaning is global, so a scale's largest
magnitude, a mean and the finite test are those of the whole batch, and XLA adds the
communication.

    mesh = data_mesh()
    state = replicate(state, mesh)
    dispatch = make_dispatch(train_step, out_shardings=everywhere(mesh))
    state, metrics = dispatch(state, shard(batches, mesh))
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of these devices (of all, by default): one axis, "data"."""
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns `tree` with a copy on every device; the original may be one of them."""
    return jax.device_put(tree, everywhere(mesh))


def shard(batches: PyTree, mesh: Mesh) -> PyTree:
    """Returns the batches of a dispatch, each spread over the devices.

    Args:
        batches: Arrays of shape (steps, batch, ...).
        mesh: What `data_mesh` returned.

    Raises:
        ValueError: The batch is no multiple of the number of devices.
    """

    def put(leaf: Any) -> jax.Array:
        if leaf.shape[1] % mesh.size:
            raise ValueError(
                f"A batch of {leaf.shape[1]} examples cannot be spread equally over "
                f"{mesh.size} devices."
            )
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, "data")))

    return jax.tree.map(put, batches)
