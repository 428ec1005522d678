"""Shakespeare transformer: float32, and formats of floating point.

adaprec run shakespeare-float32, or another arm:

    arm             test bits per byte   minus float32   bit operations
    float32                2.55 ± 0.01                           1.0000
    fp8                    2.59 ± 0.02     0.03 ± 0.01           0.0625
    late-switch            3.04 ± 0.08     0.48 ± 0.07           0.0664

Means of seeds 0 to 4 with 95 % t-intervals, the difference paired by seed. fp8 is E4M3,
with E5M2 for gradients; late-switch has FP4 for 82 % of the run, then bfloat16.

mxfp8, deepseek and nvfp4 have scales for blocks, as `scaling.mxfp8_recipes`,
`deepseek_recipes` and `nvfp4_recipes`, in every contraction; they are not measured yet.
"""

from adaprec_jax.runs.config import (
    AdamW,
    BlockScaling,
    Constant,
    CurrentScaling,
    Experiment,
    Float32,
    LateSwitch,
    MXScaling,
    NVFP4Scaling,
    Scaling,
    Shakespeare,
    SharedFormats,
    Transformer,
    WarmupCosine,
)

E4M3 = Constant(
    precision=SharedFormats(
        activation="float8_e4m3fn", weight="float8_e4m3fn", gradient="float8_e4m3fn"
    )
)
SCHEDULES = {
    "float32": Float32(),
    "fp8": Constant(
        precision=SharedFormats(
            activation="float8_e4m3fn", weight="float8_e4m3fn", gradient="float8_e5m2"
        )
    ),
    "late-switch": LateSwitch(
        low=SharedFormats(
            activation="float4_e2m1fn", weight="float4_e2m1fn", gradient="float8_e5m2"
        ),
        high=SharedFormats(
            activation="bfloat16", weight="bfloat16", gradient="bfloat16"
        ),
        fraction=0.82,
    ),
    "mxfp8": E4M3,
    "deepseek": E4M3,
    "nvfp4": Constant(
        precision=SharedFormats(
            activation="float4_e2m1fn", weight="float4_e2m1fn", gradient="float4_e2m1fn"
        )
    ),
}
ARMS = tuple(SCHEDULES)
MX = MXScaling(shared_exponent="up")
ROWS = BlockScaling(size=128, power_of_two=False)
SCALINGS = {
    "late-switch": Scaling(gradient=CurrentScaling(rounding="stochastic")),
    "mxfp8": Scaling(activation=MX, weight=MX, gradient=MX),
    "deepseek": Scaling(
        activation=ROWS,
        weight=BlockScaling(size=128, square=True, power_of_two=False),
        gradient=ROWS,
    ),
    "nvfp4": Scaling(
        activation=NVFP4Scaling(hadamard=True),
        weight=NVFP4Scaling(square=True),
        gradient=NVFP4Scaling(hadamard=True, rounding="stochastic"),
    ),
}


def config(arm: str) -> Experiment:
    """Returns the experiment of an arm."""
    return Experiment(
        name=f"shakespeare-{arm}",
        task=Shakespeare(context=128),
        model=Transformer(layers=2, width=128, heads=4),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-3, warmup_steps=100), clip_norm=1.0
        ),
        steps=600,
        batch_size=32,
        evaluate_every=200,
        schedule=SCHEDULES[arm],
        scaling=SCALINGS.get(arm, Scaling()),
    )
