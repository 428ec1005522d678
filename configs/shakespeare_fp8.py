"""Shakespeare transformer in FP8: E4M3, E5M2 for gradients.

adaprec run shakespeare-fp8
"""

from adaprec_jax.runs.config import (
    AdamW,
    Constant,
    Experiment,
    Shakespeare,
    SharedFormats,
    Transformer,
    WarmupCosine,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="shakespeare-fp8",
        task=Shakespeare(context=128),
        model=Transformer(layers=2, width=128, heads=4),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-3, warmup_steps=100), clip_norm=1.0
        ),
        steps=1000,
        batch_size=32,
        evaluate_every=250,
        schedule=Constant(
            precision=SharedFormats(
                activation="float8_e4m3fn",
                weight="float8_e4m3fn",
                gradient="float8_e5m2",
            )
        ),
    )
