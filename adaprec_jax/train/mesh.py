"""Training on a mesh: the batch is spread over devices, and the state may be.

The train step is the same: under `jit` its meaning is global, so a scale's largest
magnitude, a mean and the finite test are those of the whole batch and of whole tensors
wherever their parts lie, and XLA adds the communication.

    mesh = data_mesh(tensor=2)
    where = layout(state, mesh, spread=True)
    state = put(state, where)
    dispatch = make_dispatch(train_step, (where, everywhere(mesh)))
    state, metrics = dispatch(state, shard(batches, mesh))

A mesh has two axes. "data" counts the devices that spread the batch, "model" those
that share the matrices of one layer: tensor parallelism. Parameters, masters and
optimizer state that are spread over "data" as well are gathered where a step needs
them, as in fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277).
"""

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from adaprec_jax.train.state import TrainState


class Split(NamedTuple):
    """Which axis of some parameters is spread over "model".

    Attributes:
        pattern: Of names such as "Dense_0/kernel", with wildcards.
        axis: Negative ones count from the last; None spreads none.
    """

    pattern: str
    axis: int | None


def data_mesh(devices: Sequence[Any] | None = None, tensor: int = 1) -> Mesh:
    """Returns the mesh of these devices (of all, by default).

    Args:
        devices: Neighbours share a layer.
        tensor: How many devices share one; the others spread the batch.

    Raises:
        ValueError: `tensor` does not divide their number.
    """
    found = np.array(jax.devices() if devices is None else devices)
    if tensor < 1 or found.size % tensor:
        raise ValueError(
            f"{found.size} devices cannot share layers in groups of {tensor}."
        )
    return Mesh(found.reshape(-1, tensor), ("data", "model"))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def layout(
    state: TrainState, mesh: Mesh, splits: Sequence[Split] = (), *, spread: bool = False
) -> TrainState:
    """Returns the sharding of each leaf of a state.

    Over "model", a parameter is spread along the axis of the first of `splits` that
    names it; one that none names along its largest axis that can be divided (of equal
    ones the last), and not at all if it is a vector. Its master and what the optimizer
    keeps of its shape lie as it does, everything else lies everywhere.

    Args:
        state: Arrays, or their shapes.
        mesh: What `data_mesh` returned.
        splits: Which parameters are spread how.
        spread: Whether parameters are spread over "data", too: along the largest
            axis left that can be divided, if there is one.

    Raises:
        ValueError: A split names no parameter, or an axis that cannot be divided.

    """
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    names = ["/".join(_parts(path)) for path, _ in leaves]
    for split in splits:
        if not fnmatch.filter(names, split.pattern):
            raise ValueError(
                f"{split.pattern!r} names no parameter; there are {', '.join(names)}."
            )
    sizes = dict(mesh.shape)
    specs = {
        _parts(path): (
            leaf.shape,
            _spec(name, leaf.shape, sizes, splits, spread=spread),
        )
        for name, (path, leaf) in zip(names, leaves, strict=True)
    }

    def of(path: Any, leaf: Any) -> NamedSharding:
        parts = _parts(path)
        for k in range(len(parts)):  # What is kept of a parameter ends with its path.
            found = specs.get(parts[k:])
            if found and found[0] == leaf.shape:
                return NamedSharding(mesh, found[1])
        return everywhere(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def put(tree: PyTree, where: PyTree) -> PyTree:
    """Returns `tree` on the devices of a mesh; the original may be a part of it.

    Args:
        tree: Arrays; where there are several processes, the same in all of them.
        where: A sharding for all leaves, or a tree of them.
    """
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(_put, tree, where)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns `tree` with a copy on every device; the original may be one of them."""
    return put(tree, everywhere(mesh))


def shard(batches: PyTree, mesh: Mesh) -> PyTree:
    """Returns the batches of a dispatch, each spread over "data".

    Args:
        batches: Arrays of shape (steps, batch, ...).
        mesh: What `data_mesh` returned.

    Raises:
        ValueError: The batch is no multiple of the number of devices.
    """
    parts = mesh.shape["data"]
    for leaf in jax.tree.leaves(batches):
        if leaf.shape[1] % parts:
            raise ValueError(
                f"A batch of {leaf.shape[1]} examples cannot be spread equally over "
                f"{parts} devices."
            )
    return put(batches, NamedSharding(mesh, PartitionSpec(None, "data")))


def _spec(
    name: str,
    shape: tuple[int, ...],
    sizes: dict[str, int],
    splits: Sequence[Split],
    *,
    spread: bool,
) -> PartitionSpec:
    """Returns along which axes a parameter is spread over which devices.

    >>> sizes = {"data": 4, "model": 2}
    >>> _spec("a/kernel", (8, 12), sizes, (), spread=True)
    P('data', 'model')
    >>> _spec("a/kernel", (8, 12), sizes, [Split("*/kernel", 0)], spread=False)
    P('model', None)
    """
    axes: list[str | None] = [None] * len(shape)
    if sizes["model"] > 1:
        named = [s for s in splits if fnmatch.fnmatchcase(name, s.pattern)]
        axis = (
            _checked(named[0], name, shape, sizes["model"])
            if named
            else _largest(shape, axes, sizes["model"], least=2)
        )
        if axis is not None:
            axes[axis] = "model"
    if spread and sizes["data"] > 1:
        axis = _largest(shape, axes, sizes["data"], least=1)
        if axis is not None:
            axes[axis] = "data"
    return PartitionSpec(*axes)


def _checked(split: Split, name: str, shape: tuple[int, ...], parts: int) -> int | None:
    """Returns the axis that a split says.

    Raises:
        ValueError: The parameter does not have it, or it cannot be divided.
    """
    axis = split.axis
    if axis is None:
        return None
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{name} has shape {[*shape]}, and no axis {axis}.")
    if shape[axis] % parts:
        raise ValueError(
            f"Axis {axis} of {name}, whose shape is {[*shape]}, cannot be divided "
            f"into {parts} equal parts."
        )
    return axis


def _largest(
    shape: tuple[int, ...], taken: list[str | None], parts: int, *, least: int
) -> int | None:
    """Returns the largest axis that is free and can be divided, None if none can."""
    free = [
        axis
        for axis, size in enumerate(shape)
        if taken[axis] is None and size and size % parts == 0
    ]
    if len(shape) < least or not free:
        return None
    return max(free, key=lambda axis: (shape[axis], axis))


def _parts(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _put(leaf: Any, where: NamedSharding) -> jax.Array:
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])
