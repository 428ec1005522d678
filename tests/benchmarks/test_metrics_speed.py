"""What writing the metrics adds to a short step."""

import statistics
import time

import numpy as np

from adaprec_jax.runs import metrics

STEP_SECONDS, SCALARS = 5e-3, 200


def test_200_scalars_cost_at_most_2_percent_of_a_step_of_5_ms(benchmark, tmp_path):
    values = np.random.default_rng(0).normal(size=(SCALARS, 1)).astype(np.float32)
    columns = {f"Dense_{i}/weight/rms": row for i, row in enumerate(values.tolist())}
    with metrics.start(tmp_path / "metrics.jsonl", 0) as file:

        def seconds(step: int) -> float:
            start = time.process_time()
            metrics.append(file, [step], columns)
            return time.process_time() - start

        share = statistics.median(map(seconds, range(1, 1001))) / STEP_SECONDS
        benchmark.extra_info["share of a step"] = share
        benchmark.pedantic(metrics.append, (file, [1001], columns), rounds=1)
    assert share < 0.02
