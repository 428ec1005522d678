"""Trains a study on a Ray cluster of two nodes and kills one of them.

A program of its own: what Ray leaves running writes to the output of the process that
began it, and the capture of a test is closed by then.
"""

import json
import sys
from pathlib import Path

from adaprec_jax.studies import ray_engine
from adaprec_jax.studies.local import Hooks
from adaprec_jax.studies.study import load_study


def train(study: Path, out: Path) -> tuple[dict[str, str], int]:
    """Returns the faults and how many nodes were killed at a run's first checkpoint."""
    import ray  # Here, for those who collect tests without it.
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_one(cells):
        if len(nodes) == 2 and [*out.glob("*/checkpoints/[0-9]*")]:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    hooks = Hooks(lambda cells: None, kill_one, lambda text: None)
    cells = load_study(study.name, study.parent).cells
    try:
        faults = ray_engine.train(
            [[cell] for cell in cells], out, cluster.address, hooks
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    return faults, 2 - len(nodes)


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), Path(sys.argv[2]))))
