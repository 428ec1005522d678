"""Many plans from one checkpoint: which branches a fork has, and what they cost.

A fork is an ordinary study. Its arms are the plans: other formats in some layers, for
some steps after the checkpoint, and `as it was`, which changes nothing. Its runs are
branches of one run, or of several that differ in their seeds, so that what a plan
changes can be told from what seeds do.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from adaprec_jax import formats
from adaprec_jax.report.summary import filled
from adaprec_jax.runs import format_names, identity, metrics, store
from adaprec_jax.runs.config import Change, Experiment, Forked
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies import local, worker
from adaprec_jax.studies.packs import packs
from adaprec_jax.studies.states import look
from adaprec_jax.studies.study import Cell, Study, study_of

AS_IT_WAS = "as it was"
_LONGEST = 64  # characters of a name
_NEAREST = 3  # steps that an error names


class Parent(NamedTuple):
    """A run that is forked.

    Attributes:
        directory: Of the run.
        experiment: All its settings.
        run_id: Its id.
    """

    directory: Path
    experiment: Experiment
    run_id: str


class Ground(NamedTuple):
    """What the plans of a fork are laid out on: the layers of a run and its steps.

    Attributes:
        rows: The layers, as `adaprec_jax.train.record.rows` names them.
        masks: Which of them a pattern means.
        roles: What each operand of each layer is: "activation", "weight" or "gradient".
        shares: Of each layer in the multiplications of a step.
        macs: Multiply-accumulates of the forward products of a step.
        numbers: Which of the plans was in force at each step.
        plans: The names of formats, by plan, layer and operand.
        is_over: Whether all steps of the run are recorded; of others the last plan is
            taken to have stayed.
    """

    rows: tuple[str, ...]
    masks: Mapping[str, Bool[np.ndarray, " rows"]]
    roles: tuple[tuple[str, ...], ...]
    shares: Float[np.ndarray, " rows"]
    macs: int
    numbers: Int[np.ndarray, " steps"]
    plans: Sequence[list[list[str]]]
    is_over: bool


class Fork(NamedTuple):
    """A fork.

    Attributes:
        study: Its branches; the arm `as it was` comes first.
        step: Of the checkpoint.
        same: Plans that are left out, because the runs had those formats.
        gbitops: By arm, the 10^9 bit operations that a branch has left.
    """

    study: Study
    step: int
    same: tuple[str, ...]
    gbitops: Mapping[str, float]


def parents_of(directories: Sequence[Path], step: int) -> list[Parent]:
    """Returns the runs that are forked; imports no JAX.

    Raises:
        InputError: One has no checkpoint of the step, they differ in more than their
            seeds, or a run is not what it was when it began.
    """
    found = []
    for directory in directories:
        experiment = store.experiment_of(directory)
        _check_step(directory, experiment, step)
        found.append(Parent(directory, experiment, store.id_of(directory)))
    cells = study_of([each.experiment for each in found], "parents").cells
    arms = dict.fromkeys(cell.arm for cell in cells)
    if len(arms) > 1:
        raise InputError(
            "Runs that are forked together must differ in their seeds alone, got "
            f"{' and '.join(arms)}."
        )
    return found


def phases_of(text: str, step: int, steps: int) -> list[tuple[int, int]]:
    """Returns the first and the last step but one of each phase.

    Args:
        text: How many equal parts of what is left, or parts of the whole run as
            `0.5:0.75,0.75:1`.
        step: Of the checkpoint.
        steps: Of the run.

    Raises:
        InputError: It is neither, or a part holds no step after the checkpoint.

    >>> phases_of("2", 400, 1000)
    [(400, 700), (700, 1000)]
    >>> phases_of("0.5:0.75,0.75:1", 400, 1000)
    [(500, 750), (750, 1000)]
    """
    if text.isdecimal() and 0 < int(text) <= steps - step:
        ends = np.linspace(step, steps, int(text) + 1).round().astype(int).tolist()
        return [*pairwise(ends)]
    found = []
    for part in text.split(","):
        try:
            low, high = (round(float(end) * steps) for end in part.split(":"))
        except (ValueError, OverflowError):
            raise InputError(
                f"--phases takes a number of at most {steps - step} parts, or parts of "
                f"the run as 0.5:0.75,0.75:1, got {text!r}."
            ) from None
        if not step <= low < high <= steps:
            raise InputError(
                f"--phases: {part} is steps {low} to {high}, which must rise and lie "
                f"within {step}, the checkpoint, to {steps}, the end."
            )
        found.append((low, high))
    return found


def changes_of(
    layers: Sequence[str],
    names: Sequence[str],
    roles: Sequence[str],
    phases: Sequence[tuple[int, int]],
) -> list[Change]:
    """Returns every combination of formats, layers and phases.

    Args:
        layers: Patterns of layers.
        names: Of formats.
        roles: Of the tensors that have them.
        phases: First step of each, and first step after it.
    """
    return [
        Change(layers=pattern, start=start, end=end, **dict.fromkeys(roles, name))
        for name in names
        for pattern in layers
        for start, end in phases
    ]


def ground(parent: Parent, patterns: Sequence[str]) -> Ground:
    """Returns what the plans of a fork are laid out on; imports JAX, needs no data.

    Args:
        parent: The run.
        patterns: Of layers; `each` is every layer by itself.

    Raises:
        InputError: A pattern matches nothing, or the run recorded no formats.
    """
    from adaprec_jax.contractions.table import forward_macs, macs_shares
    from adaprec_jax.plan import match
    from adaprec_jax.runs import plan_log
    from adaprec_jax.runs.build import as_input_error, make_table
    from adaprec_jax.runs.build_task import blank_data, make_task
    from adaprec_jax.train import record

    experiment = parent.experiment
    with as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
        table = make_table(experiment, task)
        rows, shares = record.rows(table), macs_shares(table)
        macs = forward_macs(table) * experiment.micro_batches
        masks = {}
        for pattern in patterns:
            for own in rows if pattern == "each" else [pattern]:
                here = match(own, table)
                parts = [
                    np.broadcast_to(here.get(c.name, False), c.axes).ravel()
                    for c in table.contractions
                ]
                masks[own] = np.concatenate(parts)
    roles = {c.name: c.roles for c in table.contractions}
    slots = []
    for row in rows:
        left, right = roles[row.partition("@")[0]]
        slots.append((left, right, "gradient", right, "gradient", left))
    columns = metrics.read(parent.directory / store.METRICS)
    known = plan_log.read(parent.directory / plan_log.FILE)
    if plan_log.COLUMN not in columns or not known:
        raise InputError(f"{parent.directory} does not hold the formats of its steps.")
    ended = store.outcome(parent.directory)
    numbers = filled(columns[plan_log.COLUMN], experiment.steps).astype(int)
    is_over = ended is not None and ended.step == experiment.steps
    return Ground(rows, masks, tuple(slots), shares, macs, numbers, known, is_over)


def fork(
    parents: Sequence[Parent],
    step: int,
    changes: Sequence[Change],
    grounds: Sequence[Ground],
    name: str,
) -> Fork:
    """Returns the study of all branches of some runs, and what each has left to do.

    Args:
        parents: What `parents_of` returned.
        step: Of the checkpoint.
        changes: The plans.
        grounds: That of each parent.
        name: Of the study.

    Raises:
        InputError: No plan changes anything, or the name cannot name a file.
    """
    plans: dict[str, Change | None] = {AS_IT_WAS: None}
    same = []
    for change in changes:
        if all(_has_already(each, change) for each in grounds):
            same.append(called(change))
        else:
            plans[called(change)] = change
    if len(plans) == 1:
        raise InputError(
            f"No plan changes anything: the runs had {', '.join(same)} themselves."
        )
    cells = [
        _branch(arm, parent, step, change)
        for arm, change in plans.items()
        for parent in parents
    ]
    gbitops = {
        arm: float(np.mean([_gbitops(each, step, change) for each in grounds]))
        for arm, change in plans.items()
    }
    study_of([cell.experiment for cell in cells], name)  # Checks name and runs.
    return Fork(Study(name, tuple(cells)), step, tuple(same), gbitops)


def begin(found: Fork, parents: Sequence[Parent], out: Path, *, packed: bool) -> None:
    """Writes the directories of the branches that have none, at the checkpoint.

    Args:
        found: The fork.
        parents: Its runs, which are only read.
        out: The folder of runs.
        packed: Whether branches that can train together will.

    Raises:
        InputError: A checkpoint is damaged, or a directory cannot be written.
    """
    new = [each for each in look(found.study, out) if each.state == "new"]
    groups = packs(new) if packed else []
    members = {
        cell.run_id: [other.run_id for other in group]
        for group in groups
        if len(group) > 1
        for cell in group
    }
    for parent in parents:
        mine = [
            each.cell.experiment
            for each in new
            if _parent_of(each.cell.experiment) == parent.run_id
        ]
        if mine:
            line = worker.order_branches(out, parent.directory, mine, members)
            local.obey(line)


def called(change: Change | None) -> str:
    """Returns what a plan is called.

    >>> called(Change(layers="first", start=5, end=9, activation="int4", weight="int4"))
    'int4 in first, steps 5 to 9'
    """
    if change is None:
        return AS_IT_WAS
    return f"{named(change)} in {change.layers}, steps {change.start} to {change.end}"


def named(change: Change) -> str:
    """Returns the formats of a plan: one name if activations and weights have it.

    >>> named(Change(layers="first", start=5, end=9, weight="int4"))
    'weight int4'
    """
    own = _formats_of(change)
    if [*own] == ["activation", "weight"] and len({*own.values()}) == 1:
        return own["weight"]
    return ", ".join(f"{role} {name}" for role, name in own.items())


def _formats_of(change: Change) -> dict[str, str]:
    """Returns the format of each role that has another one."""
    roles = {"activation", "weight", "gradient"}
    return change.model_dump(include=roles, exclude_none=True)


def _check_step(directory: Path, experiment: Experiment, step: int) -> None:
    if not 0 < step < experiment.steps:
        raise InputError(
            f"--at must lie above 0 and below the {experiment.steps} steps of "
            f"{directory}, got {step}."
        )
    known = [at for at in store.checkpoints_of(directory) if at < experiment.steps]
    if step in known:
        return
    near = sorted(sorted(known, key=lambda at: abs(at - step))[:_NEAREST])
    there = f"the nearest are of {', '.join(map(str, near))}" if near else "it has none"
    raise InputError(
        f"{directory} has no checkpoint of step {step}; {there} "
        f"(every {experiment.checkpoint_every} steps, of which the last "
        f"{experiment.keep_checkpoints} stay: checkpoint_every, keep_checkpoints)."
    )


def _branch(arm: str, parent: Parent, step: int, change: Change | None) -> Cell:
    experiment = parent.experiment
    end = f"-fork{step}"
    made = experiment.model_copy(
        update={
            "name": experiment.name[: _LONGEST - len(end)] + end,
            "tags": (*experiment.tags, f"fork:{parent.run_id}:{step}"),
            "sinks": (),
            "schedule": Forked(
                parent=parent.run_id,
                step=step,
                schedule=experiment.schedule,
                change=change,
            ),
        }
    )
    return Cell(arm, made.seed, made, identity.run_id(made))


def _parent_of(branch: Experiment) -> str:
    schedule = branch.schedule
    return schedule.parent if isinstance(schedule, Forked) else ""


def _has_already(ground: Ground, change: Change) -> bool:
    """Returns whether a run had the formats of a plan where the plan has them."""
    if not ground.is_over:
        return False
    own = {
        role: formats.describe(format_names.parse(name))
        for role, name in _formats_of(change).items()
    }
    return all(
        ground.plans[number][row][k] == own[role]
        for number in np.unique(ground.numbers[change.start : change.end])
        for row in np.flatnonzero(ground.masks[change.layers])
        for k, role in enumerate(ground.roles[row])
        if role in own
    )


def _gbitops(ground: Ground, step: int, change: Change | None) -> float:
    """Returns the 10^9 bit operations from the checkpoint to the end."""
    plans = [_widths(plan) for plan in ground.plans]
    cost = np.array([_bit_operations(ground, each) for each in plans])
    total = cost[ground.numbers]
    if change is not None:
        others = [_changed(ground, each, change) for each in plans]
        other = np.array([_bit_operations(ground, each) for each in others])
        here = slice(change.start, change.end)
        total[here] = other[ground.numbers[here]]
    return float(total[step:].sum()) / 1e9


def _bit_operations(ground: Ground, widths: Int[np.ndarray, "rows operands"]) -> float:
    """Returns the bit operations of a step."""
    products = (widths[:, ::2] * widths[:, 1::2]).sum(axis=1)
    return float(np.dot(ground.shares, products)) * ground.macs


def _widths(plan: list[list[str]]) -> Int[np.ndarray, "rows operands"]:
    return np.array([[_bits(name) for name in row] for row in plan])


def _changed(
    ground: Ground, widths: Int[np.ndarray, "rows operands"], change: Change
) -> Int[np.ndarray, "rows operands"]:
    """Returns the widths with those of a plan."""
    found, own = widths.copy(), _formats_of(change)
    for row in np.flatnonzero(ground.masks[change.layers]):
        for k, role in enumerate(ground.roles[row]):
            if role in own:
                found[row, k] = _bits(own[role])
    return found


def _bits(name: str) -> int:
    return int(formats.bits(format_names.parse(name)))
