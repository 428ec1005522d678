"""What a checkpoint promises: leaf by leaf a dtype, a shape and a digest.

A store that is asked for another dtype casts without a word, and does not notice a
flipped byte. So the leaves are stored under their own names, with a manifest beside
them that is compared with the template before, and with the bytes after, reading.
"""

import hashlib
import json
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# By name of the leaf; arrays of NumPy's own dtypes, which every store knows.
Arrays: TypeAlias = dict[str, np.ndarray]


class Leaf(NamedTuple):
    """What is known of one leaf.

    Attributes:
        dtype: Its name, "key" for a PRNG key.
        shape: Of the array, of the words of a key.
    """

    dtype: str
    shape: tuple[int, ...]


class CheckpointError(Exception):
    """A checkpoint cannot be written or used; the message is one sentence."""


def leaves_of(tree: PyTree) -> dict[str, Leaf]:
    """Returns name, dtype and shape of every leaf.

    >>> leaves_of({"w": jnp.zeros(2, jnp.bfloat16)})
    {"['w']": Leaf(dtype='bfloat16', shape=(2,))}
    """
    return {name: _leaf(leaf) for name, leaf in _named(tree)}


def snapshot(tree: PyTree) -> Arrays:
    """Returns a copy on the host, which shares no memory with the device."""
    names, leaves = zip(*_named(tree), strict=True)
    data = [jax.random.key_data(x) if _is_key(x) else x for x in leaves]
    # On a CPU device_get may return a view of a buffer that is about to be donated.
    return {
        name: _storable(np.array(array, copy=True))
        for name, array in zip(names, jax.device_get(data), strict=True)
    }


def manifest(leaves: dict[str, Leaf], arrays: Arrays) -> dict[str, Any]:
    """Returns, as JSON, what was stored; with a digest of itself."""
    listed = {
        name: [leaf.dtype, list(leaf.shape), _digest(arrays[name])]
        for name, leaf in leaves.items()
    }
    return {"leaves": listed, "sha256": _digest_of_json(listed)}


def read_manifest(stored: Any) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Returns leaves and digests from a manifest.

    Raises:
        ValueError: It is damaged.
    """
    listed = stored["leaves"]
    if stored["sha256"] != _digest_of_json(listed):
        raise ValueError("the manifest is damaged")
    leaves = {
        name: Leaf(dtype, tuple(shape)) for name, (dtype, shape, _) in listed.items()
    }
    return leaves, {name: digest for name, (_, _, digest) in listed.items()}


def first_difference(stored: dict[str, Leaf], wanted: dict[str, Leaf]) -> str | None:
    """Returns a clause about the first leaf that is not as wanted, None if all are.

    >>> first_difference({"a": Leaf("float32", (2,))}, {"a": Leaf("bfloat16", (2,))})
    'a is float32[2] there and bfloat16[2] here'
    """
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        there, here = stored.get(name), wanted.get(name)
        if there != here:
            return f"{name} is {_describe(there)} there and {_describe(here)} here"
    return None


def first_damaged(arrays: Arrays, digests: dict[str, str]) -> str | None:
    """Returns the first leaf whose bytes are not those that were stored."""
    for name, digest in digests.items():
        if name not in arrays or _digest(arrays[name]) != digest:
            return name
    return None


def storage(leaf: Leaf) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of the array that `snapshot` makes of a leaf."""
    return jax.ShapeDtypeStruct(leaf.shape, _storage_dtype(_dtype(leaf)))


def assemble(arrays: Arrays, template: PyTree) -> PyTree:
    """Returns the tree whose `snapshot` was read, on the device.

    Args:
        arrays: By name; leaves that are not there have no elements.
        template: A tree of the same leaves.
    """

    def restored(name: str, like: Any) -> jax.Array:
        leaf = _leaf(like)
        stored = arrays[name] if name in arrays else np.zeros(leaf.shape, _dtype(leaf))
        array = jnp.array(stored.view(_dtype(leaf)), copy=True)
        if _is_key(like):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return array

    rebuilt = [restored(name, like) for name, like in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), rebuilt)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaf(leaf: Any) -> Leaf:
    if _is_key(leaf):
        return Leaf("key", jax.eval_shape(jax.random.key_data, leaf).shape)
    return Leaf(str(leaf.dtype), tuple(leaf.shape))


def _dtype(leaf: Leaf) -> np.dtype:
    return jnp.dtype("uint32" if leaf.dtype == "key" else leaf.dtype)


def _storage_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype itself, or for bfloat16, float8, int4 the bits in its place."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _storable(array: np.ndarray) -> np.ndarray:
    return array.view(_storage_dtype(array.dtype))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _digest_of_json(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _describe(leaf: Leaf | None) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if leaf else "missing"
