"""Which runs can train together: those that differ in numbers alone; imports no JAX."""

from collections.abc import Hashable, Iterable

from adaprec_jax.runs import expected, identity, imports, store
from adaprec_jax.runs.config import (
    CNN,
    CPT,
    WAGE,
    Adam,
    AdamW,
    Constant,
    ConstantRate,
    Cyclic,
    Deficit,
    Denoiser,
    Emulated,
    Experiment,
    Float32,
    Forked,
    LateSwitch,
    Piecewise,
    ResNet,
    Schedule,
    ShuffledCPT,
    Transformer,
    ViT,
    Warmup,
)
from adaprec_jax.studies.states import Found
from adaprec_jax.studies.study import Cell

# Their decisions are a table, which is data.
_TABULATED = (
    CPT, Constant, Cyclic, Deficit, Float32, LateSwitch, Piecewise, ShuffledCPT, Warmup,
)  # fmt: skip
# In a pack convolutions become grouped ones, which are several times slower; products
# as large as those of transformers fill the machine without one, and its memory with.
_ALONE = (CNN, Denoiser, ResNet, Transformer, ViT)
LARGEST = 64  # runs of a pack, so that what a kill loses stays small


def packs(found: Iterable[Found]) -> list[list[Cell]]:
    """Returns the cells in groups that can train together, in their order.

    Runs share a pack if they differ in their seeds, in a constant learning rate, and in
    schedules that depend on the step alone. Convolutions and transformers, what is
    somebody's own, and what is native, has several devices, sinks, or an optimizer
    with noise from the seed, trains alone. A run that was begun goes on as it was
    begun: alone, or with the same others.

    Args:
        found: The cells, and what became of them.

    Raises:
        InputError: What a run wrote is damaged.

    >>> from pathlib import Path
    >>> from adaprec_jax.runs.load import load_sweep
    >>> from adaprec_jax.studies.states import look
    >>> from adaprec_jax.studies.study import study_of
    >>> name, experiments = load_sweep("digits")
    >>> found = look(study_of(experiments, name), Path("nowhere"))
    >>> [len(pack) for pack in packs(found)]
    [10, 64, 6, 10]
    """
    found = list(found)
    begun = {each.cell.run_id: store.pack_of(each.directory) for each in found}
    pack_of = {member: pack for pack in begun.values() for member in pack}
    groups: dict[Hashable, list[Cell]] = {}
    for each in found:
        run_id = each.cell.run_id
        if pack := begun[run_id] or (not _has_begun(each) and pack_of.get(run_id)):
            key: Hashable = pack
        else:
            key = (not _has_begun(each) and _program(each.cell.experiment)) or run_id
        groups.setdefault(key, []).append(each.cell)
    return [
        group[start : start + LARGEST]
        for group in groups.values()
        for start in range(0, len(group), LARGEST)
    ]


def _has_begun(found: Found) -> bool:
    """Returns whether there is something that a run would go on from."""
    return (found.directory / store.CHECKPOINTS).is_dir()


def _program(experiment: Experiment) -> str:
    """Returns a text that runs of one pack share, "" for a run that trains alone."""
    optimizer = experiment.optimizer
    noisy = isinstance(optimizer, WAGE) or (
        isinstance(optimizer, Adam | AdamW) and optimizer.moments is not None
    )
    if (
        noisy
        or experiment.devices > 1
        or experiment.execution != Emulated()
        or isinstance(experiment.model, _ALONE)
        or imports.targets(experiment)
    ):
        return ""
    tree = experiment.model_dump(mode="json", exclude={"name", "tags", "seed"})
    if isinstance(optimizer.learning_rate, ConstantRate):
        del tree["optimizer"]["learning_rate"]["peak"]
    if shape := _shape(experiment, experiment.schedule):
        tree["schedule"] = shape
    return identity.canonical(tree)


def _shape(experiment: Experiment, schedule: Schedule) -> str:
    """Returns what schedules share that differ in numbers alone, "" for others."""
    if isinstance(schedule, Forked):
        own = _shape(experiment, schedule.schedule)
        return own and f"{own}, forked at {schedule.step}"
    if not isinstance(schedule, _TABULATED):
        return ""
    starts = expected.pieces(schedule, experiment.steps, expected.decay(experiment))
    entry = type(starts[0]).__name__ if starts else "SharedPrecision"
    return f"tabulated {entry}"
