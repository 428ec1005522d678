"""Shakespeare transformer in FP4, then in bfloat16.

adaprec run shakespeare-late-switch
"""

from adaprec_jax.runs.config import (
    AdamW,
    CurrentScaling,
    Experiment,
    LateSwitch,
    Scaling,
    Shakespeare,
    SharedFormats,
    Transformer,
    WarmupCosine,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="shakespeare-late-switch",
        task=Shakespeare(context=128),
        model=Transformer(layers=2, width=128, heads=4),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-3, warmup_steps=100), clip_norm=1.0
        ),
        steps=1000,
        batch_size=32,
        evaluate_every=250,
        schedule=LateSwitch(
            low=SharedFormats(
                activation="float4_e2m1fn",
                weight="float4_e2m1fn",
                gradient="float8_e5m2",
            ),
            high=SharedFormats(
                activation="bfloat16", weight="bfloat16", gradient="bfloat16"
            ),
            fraction=0.82,
        ),
        scaling=Scaling(gradient=CurrentScaling(rounding="stochastic")),
    )
