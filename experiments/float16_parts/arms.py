"""The arms of this question: float16 with and without masters and loss scaling."""

from adaprec_jax.runs.config import (
    MLP,
    SGD,
    Constant,
    ConstantRate,
    DynamicLossScaling,
    Experiment,
    Float32,
    InPlace,
    LossScaling,
    NoLossScaling,
    SharedFormats,
    StaticLossScaling,
    Teacher,
)

BASELINE, LOWEST = "teacher-float32", "teacher-tiny"
RATES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
SLOW = 1 / 256
TUNING, SEEDS = range(800, 808), 30
FLOAT16 = Constant(
    precision=SharedFormats(activation="float16", weight="float16", gradient="float16")
)
# Gradients as small as if so little of the loss came down to these layers.
TINY = StaticLossScaling(scale=2.0**-16)


def arms() -> list[Experiment]:
    """Returns one experiment for each arm, at a learning rate that is replaced."""
    dynamic, no = DynamicLossScaling(growth_interval=50), NoLossScaling()
    return [
        _arm("float32", masters=True, loss_scaling=no, narrow=False),
        _arm("both", masters=True, loss_scaling=dynamic),
        _arm("masters", masters=True, loss_scaling=no),
        _arm("scaling", masters=False, loss_scaling=dynamic),
        _arm("neither", masters=False, loss_scaling=no),
        _arm("tiny", masters=True, loss_scaling=TINY),
    ]


def _arm(
    name: str, *, masters: bool, loss_scaling: LossScaling, narrow: bool = True
) -> Experiment:
    return Experiment(
        name=f"teacher-{name}",
        task=Teacher(target="regression"),
        model=MLP(hidden=(64,)),
        optimizer=SGD(
            learning_rate=ConstantRate(peak=RATES[0]),
            in_place=None if masters else InPlace(format="float16"),
        ),
        steps=400,
        batch_size=64,
        steps_per_dispatch=50,
        evaluate_every=400,
        checkpoint_every=400,
        log_every=50,
        schedule=FLOAT16 if narrow else Float32(),
        compute_dtype="float16" if narrow else None,
        loss_scaling=loss_scaling,
    )
