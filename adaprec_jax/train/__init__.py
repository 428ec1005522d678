"""Training: the step, the loop, evaluation, packs, devices and checkpoints.

It takes functions and arrays, and knows no Flax, no config and no task.
"""

from adaprec_jax.train.diagnose import Instant, make_diagnose
from adaprec_jax.train.evaluate import Score, evaluate, make_score
from adaprec_jax.train.loop import (
    Cadence,
    Ending,
    Hooks,
    diverged,
    ill_parameter,
    train,
)
from adaprec_jax.train.mesh import (
    Split,
    data_mesh,
    everywhere,
    layout,
    put,
    replicate,
    shard,
)
from adaprec_jax.train.pack import init_pack, make_pack_dispatch, pack_score, run_of
from adaprec_jax.train.state import (
    Measured,
    Program,
    Stop,
    TrainState,
    init_state,
    plan_of,
    stream,
)
from adaprec_jax.train.step import Metrics, make_dispatch, make_train_step

__all__ = [
    "Cadence",
    "Ending",
    "Hooks",
    "Instant",
    "Measured",
    "Metrics",
    "Program",
    "Score",
    "Split",
    "Stop",
    "TrainState",
    "data_mesh",
    "diverged",
    "evaluate",
    "everywhere",
    "ill_parameter",
    "init_pack",
    "init_state",
    "layout",
    "make_diagnose",
    "make_dispatch",
    "make_pack_dispatch",
    "make_score",
    "make_train_step",
    "pack_score",
    "plan_of",
    "put",
    "replicate",
    "run_of",
    "shard",
    "stream",
    "train",
]
