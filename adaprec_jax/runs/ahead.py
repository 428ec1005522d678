"""The train step of an experiment, compiled for a device that need not be there."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from adaprec_jax import stats, targets
from adaprec_jax.contractions.kernels import Kernel
from adaprec_jax.native import Choice, choose, foresee, kernels_of, learns
from adaprec_jax.native.ahead import Ahead, Missing, compile_for, devices
from adaprec_jax.native.hlo import Product
from adaprec_jax.runs.build import as_input_error, first_state, make_program
from adaprec_jax.runs.build_task import blank_data, make_task
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.run import on_mesh
from adaprec_jax.targets import Target
from adaprec_jax.tasks.task import Task
from adaprec_jax.train import Program, TrainState, everywhere, make_train_step, record
from adaprec_jax.train.step import TrainStep

_PRODUCTS = ("forward", "dgrad", "wgrad")


class Line(NamedTuple):
    """One product of one contraction.

    Attributes:
        contraction: Its name.
        product: "forward", "dgrad" or "wgrad".
        chosen: The operand dtypes that it was compiled with.
        reason: Why it is emulated; "" where it is not.
        found: The kernels or HLO operations that it became, with their operand dtypes;
            none where XLA left it out.
    """

    contraction: str
    product: str
    chosen: Kernel
    reason: str
    found: tuple[str, ...]


class Report(NamedTuple):
    """What a train step became.

    Attributes:
        lines: Three for each contraction.
        other: Multiplications that belong to no contraction of the plan.
        ahead: Memory, casts and transposes that are left.
        executables: How many the whole schedule needs; None if it learns.
    """

    lines: tuple[Line, ...]
    other: tuple[Product, ...]
    ahead: Ahead
    executables: int | None


class Planned(NamedTuple):
    """What the products of a train step are to become on a target.

    Attributes:
        program: Of the experiment.
        task: The same.
        choices: Operand dtypes by contraction, and why a product is emulated.
        executables: How many the whole schedule needs; None if it learns.
    """

    program: Program
    task: Task
    choices: dict[str, Choice]
    executables: int | None


def ahead(
    experiment: Experiment, target: str, plan_at: int = 0, topology: str = ""
) -> Report:
    """Returns what the train step becomes on a target; nothing is trained.

    Args:
        experiment: Any; how it is executed is not asked, but on how many devices.
        target: Name of a target.
        plan_at: Compiled for the plan of this step.
        topology: How the chips of a TPU slice lie, where it is not the smallest.

    Raises:
        InputError: The target's compiler is missing, it has not as many devices, the
            step is not in the run, or the schedule learns, so that only the first plan
            is known.
    """
    program, task, choices, executables = planned(experiment, target, plan_at)
    device = targets.get(target)
    options = program.options._replace(kernels=kernels_of(choices))
    step = make_train_step(program._replace(options=options))
    init = functools.partial(first_state, experiment, task, program)
    state = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    rows = jax.ShapeDtypeStruct((experiment.batch_size,), jnp.int32)
    batch = jax.eval_shape(task.data.gather, task.data.arrays, rows)
    compiled = _compiled(experiment, device, topology, step, (state, batch))
    lines = tuple(
        Line(name, product, choice.kernels[k], choice.reasons[k],
             _found(compiled, name, product))
        for name, choice in choices.items()
        for k, product in enumerate(_PRODUCTS)
    )  # fmt: skip
    other = tuple(
        found
        for found in compiled.found.products
        if not any(found.is_of(line.contraction, line.product) for line in lines)
    )
    return Report(lines, other, compiled, executables)


def planned(experiment: Experiment, target: str, plan_at: int = 0) -> Planned:
    """Returns what each product is to become on a target; nothing is compiled for it.

    Args:
        experiment: Any; how it is executed is not asked.
        target: Name of a target.
        plan_at: For the plan of this step.

    Raises:
        InputError: The step is not in the run, or the schedule learns, so that only
            the first plan is known.
    """
    if not 0 <= plan_at < experiment.steps:
        raise InputError(
            f"--plan-at must lie in 0 to {experiment.steps - 1}, got {plan_at}."
        )
    device = targets.get(target)
    with as_input_error():
        task = make_task(experiment, blank_data(experiment.task))
        program = make_program(experiment, task)
        nothing = stats.empty(program.table, program.watch)
        schedule_state = program.schedule.init(program.table)
    executables = None
    if learns(program.schedule, nothing, schedule_state):
        if plan_at:
            raise InputError(
                f"schedule: {experiment.schedule.kind} learns from the run, so only "
                f"the plan of step 0 is known before it, got --plan-at {plan_at}."
            )
    else:
        _, kinds = foresee(
            program, device, steps=experiment.steps,
            dispatch=experiment.steps_per_dispatch,
        )  # fmt: skip
        executables = len(kinds)
    choices = choose(program, _plan_at(program, plan_at), device)
    return Planned(program, task, choices, executables)


def _compiled(
    experiment: Experiment,
    target: Target,
    topology: str,
    step: TrainStep,
    args: tuple[TrainState, PyTree],
) -> Ahead:
    """Returns the step for as many devices as the experiment has.

    Raises:
        InputError: They cannot be described, or cannot share the model.
    """
    state, batch = args
    shardings = {}
    try:
        with as_input_error():
            there = devices(target, experiment.devices, topology)
            if experiment.devices > 1:
                mesh, where = on_mesh(experiment, state, there)
                spread = NamedSharding(mesh, PartitionSpec("data"))
                shardings = {
                    "in_shardings": (where, jax.tree.map(lambda _: spread, batch)),
                    "out_shardings": (where, everywhere(mesh)),
                }
            return compile_for(target, step, *args, **shardings)
    except Missing as error:
        raise InputError(str(error)) from error


def _found(compiled: Ahead, name: str, product: str) -> tuple[str, ...]:
    return tuple(
        f"{found.kernel} {' x '.join(found.dtypes)}"
        for found in compiled.found.products
        if found.is_of(name, product)
    )


def _plan_at(program: Program, step: int) -> record.PackedPlan:
    """Returns the plan of a step in rows, of a schedule that has learnt nothing."""
    nothing = stats.empty(program.table, program.watch)
    update = program.schedule.update

    def decide(state: PyTree) -> record.PackedPlan:
        before = jax.lax.fori_loop(
            0, step, lambda k, state: update(k, nothing, state)[1], state
        )
        plan, _ = update(jnp.int32(step), nothing, before)
        return record.pack_plan(plan, program.table)

    return jax.jit(decide)(program.schedule.init(program.table))
