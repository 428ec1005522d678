"""Digits MLP: float32, narrower formats, and schedules between them.

adaprec run digits-float32, or another arm:

    arm             test accuracy, %   minus float32   bit operations
    float32               96.4 ± 0.9                           1.0000
    bf16                  96.5 ± 1.0       0.1 ± 0.2           0.2500
    int8                  96.4 ± 0.7       0.0 ± 0.3           0.0625
    int5                  96.3 ± 0.6      -0.2 ± 0.6           0.0342
    int3                  92.3 ± 2.3      -4.1 ± 2.7           0.0186
    cpt                   96.9 ± 1.0       0.4 ± 0.2           0.0394
    cpt-sbm               96.6 ± 1.1       0.2 ± 0.4           0.0394
    two-threshold         96.5 ± 1.2       0.1 ± 0.5           0.0422

Means of seeds 0 to 4 with 95 % t-intervals, the difference paired by seed. int5 and
int3 are bits of activations and weights; their gradients have 8. cpt goes from 3 to 8
bits and back, in cpt-sbm with the quantiser of the CPT code; two-threshold has 3 to 8
bits per layer, as underflow asks for.

Beside them are the ten schedules of arXiv:2403.02243, from 3 to 8 bits in 6 cycles:
cyclic-cr, which is cpt, cyclic-ct, cyclic-lr, cyclic-lt, cyclic-er, cyclic-eth,
cyclic-etv, cyclic-rr, cyclic-rth, cyclic-rtv, and three of a few pieces:
late-switch has int4 for 82 % of the run, then bfloat16,
warmup has bfloat16 for 10 %, then int4,
step-list has 3, 4, 6 and 8 bits forward with 6, 6, 8 and 8 backward.

The others learn from the run: mor, snip, ampa, sqrt3, adapt-kummer, ldp and
adaptive-loss-scale by what rounding does to tensors or weights; pfq goes to more bits
each time that the loss levels off, muppet from 8 bits towards float32 as the diversity
of gradients falls; qem gives each tensor 8, 16 or 24 bits, as rounding shifts its mean
magnitude; apt has 3 to 8 bits for each layer's weights, by their gradient in steps of
the grid; accordion has 8 bits where the norm of a layer's gradients changes, else 4;
maturity has 8 until a layer's relative updates settle, then 4, and maturity-reverse 4
and then 8. `python -m experiments.schedules` sets all of them beside static formats of
equal cost; `docs/results.md` has its table.

`adaprec sweep digits` trains float32, static bits, cpt and two-threshold, each with ten
seeds.
"""

from adaprec_jax.runs.config import (
    AMPA,
    APT,
    CPT,
    LDP,
    MLP,
    PFQ,
    QEM,
    Accordion,
    Adam,
    AdaptiveLossScale,
    AdaptKummer,
    Constant,
    ConstantRate,
    CurrentScaling,
    Cyclic,
    Digits,
    Experiment,
    Float32,
    LateSwitch,
    Maturity,
    MoR,
    MuPPET,
    Piecewise,
    SBMScaling,
    Scaling,
    SharedFormats,
    Snip,
    Sqrt3,
    TwoThreshold,
    Warmup,
)
from adaprec_jax.studies.sweep import chain, seeds, zip_

BFLOAT16 = SharedFormats(activation="bfloat16", weight="bfloat16", gradient="bfloat16")
INT4 = SharedFormats(activation="int4", weight="int4", gradient="int8")
SHAPES = ("CR", "CT", "LR", "LT", "ER", "ETH", "ETV", "RR", "RTH", "RTV")
STAGES = ((3, 6), (4, 6), (6, 8), (8, 8))

SCHEDULES = {
    "float32": Float32(),
    "bf16": Constant(precision=BFLOAT16),
    "int8": Constant(
        precision=SharedFormats(activation="int8", weight="int8", gradient="int8")
    ),
    "int5": Constant(
        precision=SharedFormats(activation="int5", weight="int5", gradient="int8")
    ),
    "int3": Constant(
        precision=SharedFormats(activation="int3", weight="int3", gradient="int8")
    ),
    "cpt": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=6),
    "cpt-sbm": CPT(min_bits=3, max_bits=8, gradient_bits=8, cycles=6),
    "two-threshold": TwoThreshold(
        min_bits=3,
        max_bits=8,
        start_bits=8,
        gradient_bits=8,
        low=0.05,
        high=0.12,
        every=20,
    ),
    **{
        f"cyclic-{shape.lower()}": Cyclic(
            shape=shape, min_bits=3, max_bits=8, gradient_bits=8, cycles=6
        )
        for shape in SHAPES
    },
    "late-switch": LateSwitch(low=INT4, high=BFLOAT16, fraction=0.82),
    "warmup": Warmup(warmup_steps=60, high=BFLOAT16, low=INT4),
    "step-list": Piecewise(
        boundaries=(150, 300, 450),
        precisions=tuple(
            SharedFormats(activation=f"int{f}", weight=f"int{f}", gradient=f"int{b}")
            for f, b in STAGES
        ),
    ),
    "mor": MoR(threshold=0.03, every=10),
    "snip": Snip(share=0.75, every=50),
    "ampa": AMPA(start_bits=5, mean_bits=5.0, every=50),
    "sqrt3": Sqrt3(
        low=SharedFormats(activation="int4", weight="int4", gradient="int2"),
        per="layer",
        every=10,
    ),
    "adapt-kummer": AdaptKummer(
        start_word=12,
        start_fraction=8,
        buffer_bits=4,
        min_lookback=10,
        max_lookback=40,
    ),
    "ldp": LDP(start_bits=8, target_bits=5.0, every=10),
    "adaptive-loss-scale": AdaptiveLossScale(every=10),
    "pfq": PFQ(forward_bits=(3, 4, 6, 8), gradient_bits=(6, 6, 8, 8), every=20),
    "muppet": MuPPET(bits=(8, 12, 14, 16), every=10, resolution=3, violations=2),
    "qem": QEM(epoch=100, every=10),
    "apt": APT(
        min_bits=3,
        max_bits=8,
        start_bits=6,
        activation_bits=8,
        gradient_bits=8,
        low=0.05,
        high=0.2,
        every=10,
    ),
    "accordion": Accordion(
        high=SharedFormats(activation="int8", weight="int8", gradient="int8"),
        low=SharedFormats(activation="int4", weight="int4", gradient="int8"),
        window=20,
        threshold=0.5,
    ),
    "maturity": Maturity(
        high=SharedFormats(activation="int8", weight="int8", gradient="int8"),
        low=SharedFormats(activation="int4", weight="int4", gradient="int8"),
        window=10,
        every=2,
    ),
    "maturity-reverse": Maturity(
        high=SharedFormats(activation="int8", weight="int8", gradient="int8"),
        low=SharedFormats(activation="int4", weight="int4", gradient="int8"),
        window=10,
        every=2,
        reverse=True,
    ),
}
ARMS = tuple(SCHEDULES)
STOCHASTIC = Scaling(gradient=CurrentScaling(rounding="stochastic"))
SBM = Scaling(
    activation=SBMScaling(),
    weight=SBMScaling(per="slice"),
    gradient=SBMScaling(rounding="stochastic"),
)
SCALING = {"float32": Scaling(), "bf16": Scaling(), "cpt-sbm": SBM}


def config(arm: str) -> Experiment:
    """Returns the experiment of an arm."""
    return Experiment(
        name=f"digits-{arm}",
        task=Digits(),
        model=MLP(hidden=(64,)),
        optimizer=Adam(learning_rate=ConstantRate(peak=2e-3)),
        steps=600,
        batch_size=64,
        steps_per_dispatch=20,
        evaluate_every=100,
        schedule=SCHEDULES[arm],
        scaling=SCALING.get(arm, STOCHASTIC),
    )


def sweep() -> list[Experiment]:
    """Returns float32, static bits, CPT and two thresholds, with ten seeds each."""
    bits = [f"int{n}" for n in range(3, 9)]
    operands = ("activation", "weight")
    paths = [f"schedule.precision.{operand}" for operand in operands]
    static = zip_(config("int8"), dict.fromkeys(paths, bits))
    return seeds(
        chain(config("float32"), static, config("cpt"), config("two-threshold")), 10
    )
