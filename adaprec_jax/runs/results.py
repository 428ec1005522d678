"""The final numbers of a run by name: its results."""

from pathlib import Path
from typing import Any, TypeAlias

from adaprec_jax import cost
from adaprec_jax.contractions.table import forward_macs, macs_shares
from adaprec_jax.cost.lenses import look
from adaprec_jax.report import summary
from adaprec_jax.runs import cost_report, expected
from adaprec_jax.runs.build import Built
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.costing import recorded_cost
from adaprec_jax.runs.errors import InputError
from adaprec_jax.train import record

# Means of the scores by precision ("now", "highest", "float32") and name.
Means: TypeAlias = dict[str, dict[str, Any]]


def named(split: str, means: Means) -> dict[str, float]:
    """Returns means by the names that metrics and results have.

    >>> named("test", {"now": {"accuracy": 0.5}})
    {'test/now/accuracy': 0.5}
    """
    return {
        f"{split}/{precision}/{name}": float(mean)
        for precision, scores in means.items()
        for name, mean in scores.items()
    }


def of_test(split: str, means: Means) -> dict[str, float]:
    """Returns the results on a test set: not at the last step's own precision.

    >>> of_test("test", {"now": {"accuracy": 0.5}, "float32": {"accuracy": 0.75}})
    {'test/float32/accuracy': 0.75}
    """
    return named(split, {name: m for name, m in means.items() if name != "now"})


def from_metrics(
    experiment: Experiment, built: Built, columns: summary.Columns, step: int
) -> dict[str, float]:
    """Returns the results that the metrics hold: validation, costs and counts.

    Args:
        experiment: All settings.
        built: What `build` made of them.
        columns: The metrics, as `adaprec_jax.runs.metrics.read` returns them.
        step: Steps completed.
    """
    results = _last_validation(columns, built.task.metric.name)
    results |= summary.totals(columns, step)
    results["bytes_per_parameter"] = expected.bytes_per_parameter(experiment)
    if "cost" in results:
        results |= _work(experiment, built, columns, results["cost"], step)
    return results


def energies(directory: Path) -> dict[str, float]:
    """Returns the modelled energy of a run with its band, where it is known.

    What `adaprec cost` says of the run is written beside it. A run that an earlier
    version began did not record the formats of all its steps, and gets neither.
    """
    try:
        # Its outcome is written after this.
        spent = recorded_cost(directory)._replace(basis="recorded")
    except InputError:
        return {}
    cost_report.keep(directory, cost_report.report(spent, cost_report.Asked()))
    found: dict[str, float] = {}
    for lens in ("arith7", "arith7_mem"):
        if (energy := look(lens, spent.done)) is not None:
            ends = {"": energy.value, "_low": energy.low, "_high": energy.high}
            found |= {f"{lens}_J{end}": value for end, value in ends.items()}
    return found


def _work(
    experiment: Experiment,
    built: Built,
    columns: summary.Columns,
    ratio: float,
    steps: int,
) -> dict[str, float]:
    """Returns what the run multiplied, counted from the formats that were in force."""
    table = built.program.table
    work = dict(zip(record.rows(table), macs_shares(table).tolist(), strict=True))
    macs = forward_macs(table) * experiment.micro_batches * steps
    return {
        "gbitops": cost.gbitops(ratio, macs),
        "share_4_bits": summary.narrow_share(columns, steps, work, 4),
        "share_8_bits": summary.narrow_share(columns, steps, work, 8),
    }


def _last_validation(columns: summary.Columns, metric: str) -> dict[str, float]:
    return {
        name: values[max(values)]
        for name, values in columns.items()
        if name.startswith("validation/") and name.endswith(f"/{metric}")
    }
