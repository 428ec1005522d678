"""Controls: what a cheaper constant explains of the gain of a schedule.

    def sweep() -> list[Experiment]:
        cpt = config("cpt")
        return seeds(chain(config("float32"), cpt, controls(cpt)), 10)

makes the arms, and `adaprec compare --controls` says what they show. A control says in
its tags which schedule it is for, and which question it answers.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from adaprec_jax.runs import identity, kinds
from adaprec_jax.runs.config import (
    CPT,
    Constant,
    Experiment,
    Float32,
    NoiseScaling,
    Scaling,
    Schedule,
    SharedFormats,
    ShuffledCPT,
)
from adaprec_jax.runs.errors import InputError, suggest
from adaprec_jax.studies.mixture import static_mixture
from adaprec_jax.studies.pieces import (
    Piece,
    bits_of,
    cost_of,
    integers,
    names_of,
    pieces_of,
    piecewise,
)

Control: TypeAlias = Literal[
    "static", "mixture", "permuted", "rising", "falling", "noise", "replayed",
    "exchanged",
]  # fmt: skip

_CONTROLS: tuple[Control, ...] = get_args(Control)
_TAG = "control"
_ROLES = ("activation", "weight", "gradient")
_BITS = range(2, 9)  # tried where a schedule does not say its own
_LONGEST = 64  # characters of a name


class Role(NamedTuple):
    """Which control an experiment is, and the name of the experiment it is for."""

    control: Control
    of: str


def controls(
    experiments: Experiment | Iterable[Experiment], *, cost: float | None = None
) -> list[Experiment]:
    """Returns the experiments that tell what a schedule's gain is due to.

    - static: each bit width between its fewest and its most, for activations and
      weights alike, and each other format that it uses; together they are the frontier
      at equal cost.
    - mixture: formats that differ by layer and operand but never change, at the
      schedule's own mean cost to 1 %.
    - permuted, rising, falling: the formats of its steps in one random order, by the
      experiment's seed, the cheapest first, the dearest first; of a schedule that
      depends on the step alone.

    - noise: the same formats at the same steps, but noise as large as their rounding
      error in the place of rounding (`adaprec_jax.scaling.noise`); of a schedule that
      depends on the step alone.

    A closed loop decides its formats while it trains, so that its controls in time need
    its run: see `studies.replay`. With noise it would decide otherwise; it has no such
    control.

    Args:
        experiments: One or several, with any seed; all else is kept, the steps and the
            learning rate included. A run that is a control of several is there once.
        cost: Mean over the steps, of a closed loop that was run before; without it a
            closed loop has no mixture.

    Raises:
        InputError: The schedule never changes, or is of somebody else's package.

    >>> from adaprec_jax.runs.load import load
    >>> [each.name for each in controls(load("digits-cpt"))][3:]
    ['digits-cpt-static6', 'digits-cpt-static7', 'digits-cpt-static8',
     'digits-cpt-mixture', 'digits-cpt-permuted', 'digits-cpt-rising',
     'digits-cpt-falling', 'digits-cpt-noise']
    """
    if isinstance(experiments, Experiment):
        return _controls(experiments, cost)
    found: dict[str, Experiment] = {}
    for each in experiments:
        for control in _controls(each, cost):
            run_id = identity.run_id(control)
            if run_id in found:
                tags = (*found[run_id].tags, *control.tags)
                control = found[run_id].model_copy(update={"tags": tags})
            found[run_id] = control
    return [*found.values()]


def _controls(experiment: Experiment, cost: float | None) -> list[Experiment]:
    """Returns the controls of one schedule."""
    schedule = experiment.schedule
    if isinstance(schedule, Float32 | Constant):
        raise InputError(f"{experiment.name} never changes its formats.")
    pieces = list(pieces_of(experiment))
    if not pieces and not kinds.is_closed(schedule):
        raise InputError(
            f"{experiment.name}: no controls are known for the schedule "
            f"{schedule.kind}."
        )
    gradient = _gradient(schedule, pieces)
    found = [
        as_control(
            experiment, "static", Constant(precision=integers(bits, gradient)), bits
        )
        for bits in _range(schedule)
    ]
    for each in _others(schedule):
        name = f"-{each.activation}"
        found.append(as_control(experiment, "static", Constant(precision=each), name))
    if pieces:
        steps = [piece.steps for piece in pieces]
        cost = float(
            np.average([cost_of(piece.formats) for piece in pieces], weights=steps)
        )
    if cost is not None:
        mixture = static_mixture(experiment, cost, gradient)
        found.append(as_control(experiment, "mixture", mixture))
    if pieces:
        found.append(as_control(experiment, "permuted", _permuted(experiment, pieces)))
        ordered = sorted(pieces, key=lambda piece: cost_of(piece.formats))
        found.append(as_control(experiment, "rising", piecewise(ordered)))
        found.append(as_control(experiment, "falling", piecewise(ordered[::-1])))
        found.append(with_noise(as_control(experiment, "noise", schedule)))
    return found


def with_noise(experiment: Experiment) -> Experiment:
    """Returns an experiment with noise in the place of rounding, of the same size."""
    own = {role: getattr(experiment.scaling, role) for role in _ROLES}
    noisy = {
        role: recipe
        if isinstance(recipe, NoiseScaling)
        else NoiseScaling(recipe=recipe)
        for role, recipe in own.items()
    }
    return experiment.model_copy(update={"scaling": Scaling(**noisy)})


def of_sweep(
    experiments: Sequence[Experiment], wanted: Sequence[str] = ("all",)
) -> list[Experiment]:
    """Returns a sweep with the controls of each schedule in it that changes formats.

    Each control has the seeds of its schedule. What is permuted has an order of its own
    for each seed where the settings of the schedule say one, as those of `cpt` do, else
    the same order for all.

    Args:
        experiments: What `sweep()` returned.
        wanted: Names of controls, or `all`.

    Raises:
        InputError: There is no such control, no schedule changes its formats, or one of
            them has no controls.
    """
    known = [each for each in _CONTROLS if each not in ("replayed", "exchanged")]
    if unknown := [each for each in wanted if each not in (*known, "all")]:
        raise InputError(
            f"Unknown control {unknown[0]!r}; {suggest(unknown[0], known)}"
        )
    groups: dict[str, list[Experiment]] = {}
    for each in experiments:
        if not isinstance(each.schedule, Float32 | Constant) and not roles(each.tags):
            alike = each.model_dump_json(exclude={"seed"})
            groups.setdefault(alike, []).append(each)
    if not groups:
        raise InputError("No schedule of the sweep changes its formats.")
    found = {identity.run_id(each): each for each in experiments}
    for group in groups.values():
        for control in _controls(group[0], None):
            (role,) = roles(control.tags)
            if "all" not in wanted and role.control not in wanted:
                continue
            for seed in (each.seed for each in group):
                own = _seeded(control, seed)
                run_id = identity.run_id(own)
                if there := found.get(run_id):
                    tag = f"{_TAG}:{role.control}:{role.of}"
                    own = there.model_copy(update={"tags": (*there.tags, tag)})
                found[run_id] = own
    return [*found.values()]


def _seeded(control: Experiment, seed: int) -> Experiment:
    """Returns a control with another seed, and the order of that seed."""
    schedule = control.schedule
    if isinstance(schedule, ShuffledCPT):
        schedule = schedule.model_copy(update={"shuffle_seed": seed})
    return control.model_copy(update={"seed": seed, "schedule": schedule})


def roles(tags: Sequence[str]) -> tuple[Role, ...]:
    """Returns which controls an experiment is; one may be of several schedules.

    >>> roles(("mine", "control:rising:digits-cpt"))
    (Role(control='rising', of='digits-cpt'),)
    """
    found = []
    for tag in tags:
        of = tag.rpartition(":")[2]
        found += [Role(each, of) for each in _CONTROLS if tag == f"{_TAG}:{each}:{of}"]
    return tuple(found)


def _permuted(experiment: Experiment, pieces: Sequence[Piece]) -> Schedule:
    """Returns the formats of all steps in a random order."""
    if isinstance(experiment.schedule, CPT):
        settings = experiment.schedule.model_dump(exclude={"kind"})
        return ShuffledCPT(**settings, shuffle_seed=experiment.seed)
    single = [Piece(p.formats, 1) for p in pieces for _ in range(p.steps)]
    order = np.random.default_rng(experiment.seed).permutation(len(single))
    return piecewise([single[k] for k in order.tolist()])


def as_control(
    experiment: Experiment, control: Control, schedule: Schedule, bits: int | str = ""
) -> Experiment:
    """Returns an experiment with another schedule, and says in name and tags why.

    Args:
        experiment: Of the schedule that it is a control for.
        control: Which control it is.
        schedule: Of the control.
        bits: End of the name.
    """
    end = f"-{control}{bits}"
    tags = (*experiment.tags, f"{_TAG}:{control}:{experiment.name}")
    return experiment.model_copy(
        update={
            "name": experiment.name[: _LONGEST - len(end)] + end,
            "tags": tags,
            "schedule": schedule,
        }
    )


def _range(schedule: Schedule) -> range:
    """Returns the widths of activations and weights that a schedule chooses from."""
    low, high = (getattr(schedule, f"{end}_bits", None) for end in ("min", "max"))
    if isinstance(low, int) and isinstance(high, int):
        return range(low, high + 1)
    for field in ("forward_bits", "bits"):
        if stages := getattr(schedule, field, None):
            return range(min(stages), max(stages) + 1)
    named = [
        bits_of(name) for name in names_of(schedule).values() if name.startswith("int")
    ]
    return range(min(named), max(named) + 1) if len(named) > 1 else _BITS


def _others(schedule: Schedule) -> list[SharedFormats]:
    """Returns the formats that a schedule names and that are no integers."""
    found: list[SharedFormats] = []
    for _, value in schedule:
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, SharedFormats) and each not in found:
                found.append(each)
    return [each for each in found if not each.activation.startswith("int")]


def _gradient(schedule: Schedule, pieces: Sequence[Piece]) -> str:
    """Returns the format of gradients, where a schedule has one throughout."""
    if isinstance(bits := getattr(schedule, "gradient_bits", None), int):
        return f"int{bits}"
    shared = [p.formats for p in pieces if isinstance(p.formats, SharedFormats)]
    named = {each.gradient for each in shared}
    return named.pop() if len(named) == 1 and len(shared) == len(pieces) else "int8"
