"""How long the command takes to answer, beside an interpreter that does nothing.

Processor time, which a busy machine does not change: start-up runs on one thread.
"""

import resource
import statistics
import subprocess
import sys

SHOW = "from adaprec_jax.cli import main; main()"


def seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_show_answers_in_under_a_second(benchmark):
    pairs = [(seconds("pass"), seconds(SHOW, "show", "digits-cpt")) for _ in range(7)]
    bare, show = (statistics.median(column) for column in zip(*pairs, strict=True))
    benchmark.extra_info["show, seconds"] = show
    benchmark.extra_info["show over python -c pass"] = show / bare
    benchmark.pedantic(seconds, (SHOW, "show", "digits-cpt"), rounds=1)
    assert show < 1.0
