"""Decisions of a closed loop, trained once more as a schedule of the step alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adaprec_jax.report.summary import filled
from adaprec_jax.runs import identity, kinds, metrics, store
from adaprec_jax.runs.config import (
    Experiment,
    Float32,
    Formats,
    PerLayer,
    Rule,
    Schedule,
    SeparateFormats,
    SharedFormats,
)
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.controls import Control, as_control
from adaprec_jax.studies.pieces import Piece, names_of, piecewise
from adaprec_jax.studies.study import Cell, Study, directories

_OPERANDS = {
    "forward": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("gradient", "activation"),
}


def with_replays(study: Study, out: Path) -> Study:
    """Returns a study with the decisions of its closed loops as arms of their own.

    - replayed: each run's own decisions, as a schedule that depends on the step alone.
      It must come to the same result; where it does not, the loop does something
      beside deciding.
    - exchanged: the decisions that the loop took with another seed. What is lost by
      the exchange is what the loop gains by looking at its own run.

    Runs of `adapt_kummer` and `adaptive_loss_scale` cannot be replayed: they decide
    more than the bit widths that a run records.

    Args:
        study: Whose runs of closed loops are over.
        out: The folder of runs.

    Raises:
        InputError: There is no closed loop, one of its runs is not over, an arm has a
            single seed, or what was decided cannot be written as formats.
    """
    closed: dict[str, list[tuple[Cell, Path]]] = {}
    for cell, path in zip(study.cells, directories(study, out), strict=True):
        if kinds.is_closed(cell.experiment.schedule):
            closed.setdefault(cell.arm, []).append((cell, path))
    if not closed:
        raise InputError(f"The study {study.name} has no closed loop to replay.")
    cells = [*study.cells]
    for arm, runs in closed.items():
        if len(runs) < 2:
            raise InputError(f"{arm} has a single run, so that none can be exchanged.")
        decided = [decisions(cell.experiment, path) for cell, path in runs]
        moves: tuple[tuple[Control, int], ...] = (("replayed", 0), ("exchanged", 1))
        for control, moved in moves:
            for k, (cell, _) in enumerate(runs):
                schedule = decided[(k + moved) % len(runs)]
                made = as_control(cell.experiment, control, schedule)
                run_id = identity.run_id(made)
                cells.append(Cell(f"{arm} {control}", cell.seed, made, run_id))
    return Study(study.name, tuple(cells))


def decisions(experiment: Experiment, directory: Path) -> PerLayer:
    """Returns what a run decided, as a schedule that depends on the step alone.

    Only bit widths are recorded. They stand for the formats that the settings name, or
    for integers where they name none, and 32 bits for float32.

    Args:
        experiment: Of the run.
        directory: Of the run.

    Raises:
        InputError: The run has no decisions, is not over, or widths do not tell its
            formats.
    """
    ended = store.outcome(directory)
    if ended is None or not store.is_over(ended.state):
        raise InputError(f"{directory} is not over, so that it cannot be replayed.")
    if experiment.schedule.kind in ("adapt_kummer", "adaptive_loss_scale"):
        raise InputError(
            f"{experiment.schedule.kind} decides more than bit widths, which is all "
            "that a run records; it cannot be replayed."
        )
    columns = metrics.read(directory / store.METRICS)
    bits = {
        name.removeprefix("bits/"): column
        for name, column in columns.items()
        if name.startswith("bits/")
    }
    if not bits:
        raise InputError(f"{directory} holds no bits of any step.")
    names = names_of(experiment.schedule)
    rows = dict.fromkeys(name.rpartition("/")[0] for name in bits)
    rules = tuple(
        Rule(pattern=row, schedule=_replay(row, bits, names, ended.step))
        for row in rows
    )
    return PerLayer(rules=rules, default=Float32())


def _replay(
    row: str,
    bits: Mapping[str, Mapping[int, float]],
    names: Mapping[int, str],
    last: int,
) -> Schedule:
    """Returns the formats of one layer over the steps."""
    own = {
        (product, role): filled(bits[f"{row}/{product}.{role}"], last).astype(int)
        for product, roles in _OPERANDS.items()
        for role in roles
    }
    widths = np.stack([*own.values()], axis=1)
    changed = np.flatnonzero((np.diff(widths, axis=0) != 0).any(axis=1)) + 1
    lengths = np.diff([0, *changed.tolist(), last])
    pieces = []
    for start, length in zip([0, *changed.tolist()], lengths.tolist(), strict=True):
        each = dict(zip(own, widths[start].tolist(), strict=True))
        parts = {
            product: {
                role: names.get(each[product, role], f"int{each[product, role]}")
                for role in roles
            }
            for product, roles in _OPERANDS.items()
        }
        pieces.append(Piece(SeparateFormats.model_validate(parts), length))
    # Where products share a rounded copy, they do so again: equal to the bit.
    shared = [_shared(piece.formats) for piece in pieces]
    if all(shared):
        pieces = [
            Piece(each or piece.formats, piece.steps)
            for each, piece in zip(shared, pieces, strict=True)
        ]
    return piecewise(pieces)


def _shared(settings: Formats) -> SharedFormats | None:
    """Returns formats as shared ones, None if the products differ."""
    if isinstance(settings, SharedFormats):
        return settings
    forward, dgrad, wgrad = settings.forward, settings.dgrad, settings.wgrad
    found = SharedFormats(
        activation=forward.activation, weight=forward.weight, gradient=dgrad.gradient
    )
    again = (wgrad.activation, dgrad.weight, wgrad.gradient)
    same = again == (found.activation, found.weight, found.gradient)
    return found if same else None
