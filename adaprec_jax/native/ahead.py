"""Compilation for devices that are not there, and what it leaves.

XLA needs a description of a device, not the device. That of a GPU is in the target's
data file; a TPU's compiler knows its own.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jaxtyping import PyTree

from adaprec_jax.contractions import jax_internals as internals
from adaprec_jax.native import hlo
from adaprec_jax.targets import Target

# The module that must be there -> the extra that brings it.
_NEEDS = {
    "cuda": ("jax_plugins.xla_cuda13", "aot-gpu"),
    "tpu": ("libtpu", "aot-tpu"),
}
# A matrix product goes to cuBLAS; without a device nothing can be tried out.
_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


class Missing(Exception):  # noqa: N818 (no error of the program)
    """A compiler is not installed, or what it made cannot be read; one sentence."""


class Ahead(NamedTuple):
    """A program compiled for a target.

    Attributes:
        found: What its HLO holds.
        temporary: Bytes of temporary memory.
        arguments: Bytes of what goes in.
        accessed: Bytes that it reads and writes; None where XLA does not say.
        text: The optimised HLO.
    """

    found: hlo.Compiled
    temporary: int
    arguments: int
    accessed: float | None
    text: str


def compile_for(
    target: Target,
    fn: Callable[..., Any],
    *args: PyTree,
    in_shardings: PyTree = None,
    out_shardings: PyTree = None,
) -> Ahead:
    """Returns `fn(*args)` compiled for a target.

    Args:
        target: It need not be here.
        fn: What is compiled.
        *args: Arrays, or their shapes; nothing is computed.
        in_shardings: Of each array, on a mesh of what `devices` returned; by default
            all are on one device.
        out_shardings: Of the results.

    Raises:
        Missing: The compiler for the target is not installed, or newer than JAX.
    """
    if in_shardings is None:
        one = jax.sharding.SingleDeviceSharding(devices(target)[0])
        in_shardings = jax.tree.map(lambda _: one, args)
    with _quiet():
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            args,
            in_shardings,
        )
        lowered = (
            jax.jit(fn, donate_argnums=0, out_shardings=out_shardings)
            .trace(*shapes)
            .lower(lowering_platforms=(target.platform,))
        )
        options = _GPU if target.platform == "cuda" else {}
        compiled = lowered.compile(compiler_options=options)
    executable, memory = compiled.runtime_executable(), compiled.memory_analysis()
    if executable is None or memory is None:
        raise RuntimeError(f"XLA does not show what it compiled for {target.title}.")
    try:
        text = executable.hlo_modules()[0].to_string()
    except jax.errors.JaxRuntimeError as error:  # Compilers newer than JAX's XLA.
        reason = str(error).splitlines()[0]
        raise Missing(
            f"What the compiler for {target.title} made of it cannot be read by this "
            f"version of JAX: {reason}."
        ) from error
    return Ahead(
        hlo.read(text),
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        _accessed(compiled),
        text,
    )


def _accessed(compiled: Any) -> float | None:
    try:
        return compiled.cost_analysis()["bytes accessed"]
    except (KeyError, TypeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def devices(target: Target, count: int = 1, topology: str = "") -> list[Any]:
    """Returns devices of a target, which need not be there.

    Args:
        target: It says which.
        count: How many.
        topology: How the chips of a TPU slice lie, such as "2x4"; by default as few as
            the target's data file names.

    Raises:
        Missing: The compiler for the target is not installed.
        ValueError: There is no such slice, or it has fewer devices, or this is no TPU.
    """
    if topology and target.platform != "tpu":
        raise ValueError(f"{target.title} is no TPU, and has no topology {topology}.")
    with _quiet():
        found = _described(target, count, topology)
    if len(found) < count:
        more = {"cpu": "XLA_FLAGS=--xla_force_host_platform_device_count gives more",
                "tpu": "a larger topology has more, such as 2x4 or 2x2x2"}  # fmt: skip
        raise ValueError(
            f"{count} devices are asked for, and there are {len(found)} of "
            f"{target.title}; {more.get(target.platform, 'ask for fewer')}."
        )
    return found[:count]


def _described(target: Target, count: int, topology: str) -> list[Any]:
    if target.platform == "cpu":
        return jax.devices("cpu")
    module, extra = _NEEDS[target.platform]
    if not _installed(module):
        raise Missing(
            f"To compile for {target.title} without one, install the extra [{extra}]: "
            f"pip install 'adaprec-jax[{extra}]'."
        )
    if target.platform == "cuda":
        internals.discover_plugins()
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target.device, topology=f"1x1x{count}"
        )
        return list(found.devices)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # No device is taken, so several processes may compile at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chips = target.topology.partition(":")[0]
    name = f"{chips}:{topology}" if topology else target.topology
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{target.title} has no topology {topology}.") from error
    return list(found.devices)


def _installed(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps away what plugins say when they find no device, in C++ as well."""
    before, error_stream = logging.root.manager.disable, os.dup(2)
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(error_stream, 2)
        os.close(error_stream)
        logging.disable(before)
