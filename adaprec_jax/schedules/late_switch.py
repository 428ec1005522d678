"""Low precision for most of a run, high precision for the rest of it."""

from adaprec_jax import precision
from adaprec_jax.precision import Entry
from adaprec_jax.schedules.piecewise import piecewise
from adaprec_jax.schedules.schedule import Schedule


def late_switch(
    low: Entry,
    high: Entry,
    *,
    steps: int,
    fraction: float = 0.82,
    products: str = "all",
    at: int | None = None,
) -> Schedule:
    """Uses `low` for a fraction of the run, then `high`, in all products or forward.

    A learning rate that is constant and then decays gives the switch its place: `at` is
    the step at which it begins to fall.

    Decides:
        One entry for all contractions, changed once, in all three products or in the
        forward product alone.

    Signal:
        The step alone.

    Costs:
        A table of one integer per step up to the switch; no statistics. The end of the
        run costs what the high precision does.

    Source:
        NVIDIA 2025, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149:
        to bfloat16 shortly before the learning rate decays, at 0.82 of the run.

    Against:
        The gain hangs on the decay of the learning rate. In the paper a switch in the
        last percent of the run recovers a part only, one of the forward product leaves
        a third of the gap in loss, and one of the backward products alone does not
        help. The evidence is one model of 12 billion parameters.

    Args:
        low: Entry before the switch.
        high: Entry after it, of the same type where all products switch.
        steps: Length of the run.
        fraction: Of the run, in low precision; the switch comes at the nearest step.
        products: Which products switch, "all" or "forward". With "forward" the plan has
            six formats per contraction (`Precision`), before the switch too.
        at: The step of the switch, in the place of `fraction`.

    Raises:
        ValueError: The switch would come before step 1 or after the run, `products` is
            neither, or all products switch and the entries are of both types.

    >>> from adaprec_jax.contractions import Table
    >>> from adaprec_jax.plan import integers
    >>> schedule = late_switch(integers(4, 8), integers(8, 8), steps=5, fraction=0.82)
    >>> schedule.init(Table((), ())).lookup.tolist()
    [0, 0, 0, 0, 1]
    """
    switch, before, after = precision.late_switch(
        low, high, steps=steps, fraction=fraction, products=products, at=at
    )
    if not 0 < switch < steps:
        raise ValueError(
            "Expected a switch within the run, at a step above 0 and below steps, got "
            f"step {switch} of {steps=}, {fraction=}, {at=}."
        )
    return piecewise([switch], [before, after])
