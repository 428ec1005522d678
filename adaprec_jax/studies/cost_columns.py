"""What each run cost up to a target, through a lens, and the carbon of it."""

import math
from collections.abc import Sequence

from adaprec_jax.cost.carbon import Grid, operational
from adaprec_jax.cost.devices import Device
from adaprec_jax.cost.lenses import look
from adaprec_jax.cost.quantity import Quantity
from adaprec_jax.inference import Interval
from adaprec_jax.runs import store
from adaprec_jax.runs.costing import recorded_cost
from adaprec_jax.runs.counted import counted
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import Column
from adaprec_jax.studies.compare import Comparison
from adaprec_jax.studies.results import Arm


def cost_until(
    arms: Sequence[Arm], steps: Column, lens: str, device: Device | None = None
) -> Column:
    """Returns what each run cost up to the step at which it reached a target.

    The formats are those that it recorded. The step of an arm is traced once.

    Args:
        arms: Of a study.
        steps: The steps to the target, as `columns.until` returns them; NaN, and NaN
            here, of a run that did not reach it.
        lens: One of `adaprec_jax.cost.lenses.LENSES`.
        device: Needed by some of them.

    Returns:
        A column whose name says the unit, the lens and the kind of the numbers.

    Raises:
        InputError: A run has not recorded its formats, or the lens has no number for
            them, which is not known rather than 0.
    """
    values: dict[str, dict[int, float]] = {}
    said = f"cost by {lens}"
    for arm in arms:
        values[arm.name] = dict.fromkeys(arm.runs, float("nan"))
        work = None
        for seed, run in arm.runs.items():
            reached = steps.values[arm.name][seed]
            if math.isnan(reached):
                continue
            if work is None:  # the same for all seeds
                work = counted(store.experiment_of(run.directory))
            done = recorded_cost(run.directory, int(reached), work).done
            found = look(lens, done, device)
            if found is None:
                raise InputError(
                    f"The lens {lens} has no number for the formats of {arm.name}; "
                    "compare by another --lens."
                )
            said = f"{found.unit} by {lens} ({found.kind})"
            values[arm.name][seed] = found.value
    of_what = steps.name.removeprefix("steps ")
    return Column(f"{said} {of_what}", False, None, values)


def with_carbon(
    found: Comparison, energy: Column, pue: float, grid: Grid
) -> Comparison:
    """Returns a comparison with a column of carbon beside one of energy.

    Carbon is the energy times a constant. So it has the same p-values, and is no
    further comparison for which others would have to be adjusted.

    Args:
        found: The comparison by energy, among others.
        energy: Its column in J, as `cost_until` returns it.
        pue: Of the data centre.
        grid: Whose electricity it is.
    """
    joule = Quantity(1.0, "J", 1.0, 1.0, "modelled", "the unit")
    grams = operational(joule, pue, grid)
    factor = 0.0 if grams is None else grams.value
    name = f"gCO2e ({grid.name} {grid.year}, PUE {pue:g}) from {energy.name}"
    column = energy._replace(
        name=name,
        values={
            arm: {seed: factor * value for seed, value in mine.items()}
            for arm, mine in energy.values.items()
        },
    )
    summaries = tuple(
        each._replace(column=name, mean=Interval(*(factor * x for x in each.mean)))
        for each in found.summaries
        if each.column == energy.name
    )
    verdicts = tuple(
        each._replace(
            column=name,
            visible=None if each.visible is None else factor * each.visible,
            difference=each.difference._replace(
                estimate=factor * each.difference.estimate,
                low=factor * each.difference.low,
                high=factor * each.difference.high,
                error=None
                if each.difference.error is None
                else factor * each.difference.error,
            ),
        )
        for each in found.verdicts
        if each.column == energy.name
    )
    return found._replace(
        columns=(*found.columns, column),
        summaries=(*found.summaries, *summaries),
        verdicts=(*found.verdicts, *verdicts),
    )
