"""Shakespeare transformer in float32, the baseline.

adaprec run shakespeare-float32
"""

from adaprec_jax.runs.config import (
    AdamW,
    Experiment,
    Float32,
    Shakespeare,
    Transformer,
    WarmupCosine,
)


def config() -> Experiment:
    """Returns the experiment."""
    return Experiment(
        name="shakespeare-float32",
        task=Shakespeare(context=128),
        model=Transformer(layers=2, width=128, heads=4),
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=4e-3, warmup_steps=100), clip_norm=1.0
        ),
        steps=1000,
        batch_size=32,
        evaluate_every=250,
        schedule=Float32(),
    )
