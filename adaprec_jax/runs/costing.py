"""What a run costs, from the work of its step and the formats of all its steps."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from adaprec_jax.cost.numbers import Number, number
from adaprec_jax.cost.tally import Tally, step_tally, summed
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.report.summary import filled
from adaprec_jax.runs import expected, format_names, kinds, metrics, plan_log, store
from adaprec_jax.runs.build import as_input_error, first_plan
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.counted import Counted, counted
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.open_loop import plans
from adaprec_jax.train import record


class Phase(NamedTuple):
    """Neighbouring steps in the same formats.

    Attributes:
        start: The first of them, counted from 0.
        steps: How many.
        plan: Which of the plans is in force.
    """

    start: int
    steps: int
    plan: int


class Spent(NamedTuple):
    """The cost of a run before a lens looks at it.

    Attributes:
        name: Of the run.
        basis: Where the formats come from: "recorded" in a run, "recorded so far" in
            one that has not ended, "foreseen" of all steps, or, where the schedule
            decides by what is measured, those of the "first step" as if it kept them.
        counted: The work and memory of a step.
        phases: In the order of the steps.
        plans: Tally of one step under each plan.
        done: All steps.
        float32: The same steps, all operands in float32.
        bfloat16: The same steps, all operands in bfloat16.
    """

    name: str
    basis: str
    counted: Counted
    phases: tuple[Phase, ...]
    plans: tuple[Tally, ...]
    done: Tally
    float32: Tally
    bfloat16: Tally


def foreseen_cost(experiment: Experiment) -> Spent:
    """Returns the cost of an experiment that is not run.

    Raises:
        InputError: Data or model do not fit the settings, or nothing is multiplied.

    >>> from adaprec_jax.cost.lenses import look
    >>> from adaprec_jax.runs.load import load
    >>> spent = foreseen_cost(load("digits-int8"))
    >>> look("bitops", spent.done).value / look("bitops", spent.float32).value
    0.0625
    """
    found = counted(experiment)
    program = found.program
    if not program.table.contractions:
        raise InputError(f"{experiment.name} multiplies nothing whose cost is counted.")
    basis = "foreseen"
    try:
        if kinds.is_closed(experiment.schedule):
            raise kinds.closed(experiment)
        with as_input_error():
            starts, packed, _ = plans(experiment, program)
    except InputError:  # It reads what is measured.
        basis = "first step"
        with as_input_error():
            first = jax.jit(lambda: record.pack_plan(first_plan(program), found.table))
        starts, packed = np.zeros(1, np.int64), np.asarray(first())[None]
    named = [plan_log.named(each) for each in packed]
    lengths = np.diff([*starts.tolist(), experiment.steps]).tolist()
    phases = zip(starts.tolist(), lengths, named, strict=True)
    return _spent(experiment, basis, found, list(phases))


def recorded_cost(
    directory: Path, until: int | None = None, work: Counted | None = None
) -> Spent:
    """Returns the cost of a run as far as it came.

    Args:
        directory: Of the run.
        until: The last step to count; None counts all.
        work: Of its step, where that was counted before; seeds have it in common.

    Raises:
        InputError: The run has recorded no formats, or its files are damaged.
    """
    path = directory / store.METRICS
    columns = metrics.read(path) if path.is_file() else {}
    known = plan_log.read(directory / plan_log.FILE)
    if 1 not in columns.get(plan_log.COLUMN, {}) or not known:
        raise InputError(f"{directory} does not hold the formats of all its steps.")
    ended = store.outcome(directory)
    last = max(step for column in columns.values() for step in column)
    steps = ended.step if ended else last
    steps = steps if until is None else min(steps, until)
    numbers = filled(columns[plan_log.COLUMN], steps).astype(int)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    lengths = np.diff([*starts.tolist(), steps]).tolist()
    if not 0 <= numbers.min() <= numbers.max() < len(known):
        raise InputError(f"{directory / plan_log.FILE} lacks plans.")
    named = [known[numbers[start]] for start in starts]
    experiment = store.experiment_of(directory)
    work = counted(experiment) if work is None else work
    layers = sum(math.prod(c.axes) for c in work.table.contractions)
    if {len(plan) for plan in named} != {layers}:
        raise InputError(
            f"{directory} recorded formats of another number of layers than the "
            f"{layers} that its config has here."
        )
    phases = zip(starts.tolist(), lengths, named, strict=True)
    basis = "recorded" if ended else "recorded so far"
    spent = _spent(experiment, basis, work, list(phases))
    return spent._replace(name=directory.name)


def steps_to(directory: Path, metric: str, target: float) -> int | None:
    """Returns after which step a validation metric first reached a target.

    None if it never did. A loss reaches it from above, another metric from below.

    Args:
        directory: Of the run.
        metric: As `accuracy`; `validation/accuracy` and `validation/highest/accuracy`
            say the same, `validation/now/accuracy` the precision of the step itself.
        target: The value.

    Raises:
        InputError: The run has no such metric.
    """
    path = directory / store.METRICS
    columns = metrics.read(path) if path.is_file() else {}
    metric = metric.removeprefix("validation/")
    precisions = ("",) if "/" in metric else ("highest/", "now/")
    found = next(
        (columns[name] for p in precisions
         if (name := f"validation/{p}{metric}") in columns), None,
    )  # fmt: skip
    if found is None:
        there = sorted({n.split("/")[2] for n in columns if n.startswith("validation")})
        raise InputError(
            f"{directory} has no validation metric {metric!r}; there are "
            f"{', '.join(there) or 'none'}."
        )
    down = falls(metric)
    reached = [s for s, v in found.items() if (v <= target if down else v >= target)]
    return min(reached, default=None)


def falls(metric: str) -> bool:
    """Returns whether a metric is better the lower it is.

    >>> falls("bits_per_byte"), falls("accuracy")
    (True, False)
    """
    return "loss" in metric or "bits_per" in metric


def part(done: Tally, contraction: str | None = None, product: str = "") -> Tally:
    """Returns what one contraction or one product did, of all that was done."""
    terms = tuple(
        term for term in done.terms
        if contraction in (None, term.contraction) and product in ("", term.product)
    )  # fmt: skip
    return Tally(terms, 0.0, 0.0, 0.0, 0.0, 0.0, done.steps)


def _spent(
    experiment: Experiment,
    basis: str,
    found: Counted,
    phases: Sequence[tuple[int, int, plan_log.Named]],
) -> Spent:
    names = [c.name for c in found.table.contractions for _ in range(math.prod(c.axes))]
    like = jax.eval_shape(lambda: first_plan(found.program))
    shared = [name for name, e in like.items() if isinstance(e, SharedPrecision)]
    moved = _update_bytes(experiment, found)

    def one(rows: Iterable[Sequence[Number]]) -> Tally:
        named = list(zip(names, rows, strict=True))
        return step_tally(
            found.work, named, shared, update_bytes=moved,
            result_bits=_result_bits(experiment),
        )  # fmt: skip

    distinct: dict[str, int] = {}
    tallies: list[Tally] = []
    listed: list[Phase] = []
    parsed: dict[str, Number] = {}
    for start, steps, plan in phases:
        key = repr(plan)
        if key not in distinct:
            distinct[key] = len(tallies)
            tallies.append(one([[_number(n, parsed) for n in row] for row in plan]))
        listed.append(Phase(start, steps, distinct[key]))
    steps_of = Counter[int]()
    for phase in listed:
        steps_of[phase.plan] += phase.steps
    steps = float(sum(steps_of.values()))
    return Spent(
        name=experiment.name,
        basis=basis,
        counted=found,
        phases=tuple(listed),
        plans=tuple(tallies),
        done=summed((tallies[plan], float(n)) for plan, n in steps_of.items()),
        float32=summed([(in_one_format(experiment, found, "float32"), steps)]),
        bfloat16=summed([(in_one_format(experiment, found, "bfloat16"), steps)]),
    )


def _result_bits(experiment: Experiment) -> float:
    """Returns the width of what lies between contractions."""
    return 16.0 if experiment.compute_dtype in ("bfloat16", "float16") else 32.0


def _number(name: str, parsed: dict[str, Number]) -> Number:
    if name not in parsed:
        parsed[name] = number(format_names.parse(name))
    return parsed[name]


def _update_bytes(experiment: Experiment, found: Counted) -> float:
    """Returns the bytes of an update: all that is kept is read and written.

    The gradient is only read. Formats of moments count as they would be stored.
    """
    gradient = 4 if experiment.parameter_dtype == "float32" else 2
    kept = expected.bytes_per_parameter(experiment) - gradient
    return float(found.parameters * (2 * kept + gradient))


def in_one_format(
    experiment: Experiment, found: Counted, name: str, result_bits: float | None = None
) -> Tally:
    """Returns the tally of one step with every operand in one format.

    Args:
        experiment: All settings.
        found: Its counted step.
        name: Of the format, as a config has it.
        result_bits: In which results are written; None: as the settings have it.

    Raises:
        ValueError: No format has that name.
    """
    kind = number(format_names.parse(name))
    rows = [(c.name, [kind] * 6) for c in found.table.contractions]
    moved = _update_bytes(experiment, found)
    if result_bits is None:
        result_bits = _result_bits(experiment)
    return step_tally(
        found.work, rows, [r[0] for r in rows], update_bytes=moved,
        result_bits=result_bits,
    )  # fmt: skip


def phase_counts(spent: Spent) -> Mapping[int, int]:
    """Returns the number of steps under each plan."""
    found = Counter[int]()
    for phase in spent.phases:
        found[phase.plan] += phase.steps
    return found
