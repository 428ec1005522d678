"""A process that trains one run, or several as a pack: `python -m ...studies.worker`.

It reads one line of JSON, the folder and the configs, from its standard input, and
stops with a checkpoint when that is closed: so no worker outlives the process that
began it, however that ended. Everything that comes of it is in the run directories.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.leaving import leave
from adaprec_jax.runs.validation import validate

USAGE, FAILED, STOPPED = 2, 3, 130
_EXIT_CODES = {"done": 0, "diverged": 0, "failed": FAILED, "interrupted": STOPPED}


def order(out: Path, experiments: Sequence[Experiment]) -> str:
    """Returns the line that tells a worker what to train."""
    configs = [each.model_dump(mode="json") for each in experiments]
    return json.dumps({"out": str(out), "configs": configs}) + "\n"


def order_branches(
    out: Path,
    parent: Path,
    branches: Sequence[Experiment],
    packs: Mapping[str, Sequence[str]],
) -> str:
    """Returns the line that tells a worker which branches of a run to begin.

    Args:
        out: The folder of runs.
        parent: Directory of the run.
        branches: As `adaprec_jax.runs.branching.begin` takes them.
        packs: As there.
    """
    configs = [each.model_dump(mode="json") for each in branches]
    asked = {"out": str(out), "configs": configs, "parent": str(parent)}
    return json.dumps(asked | {"packs": dict(packs)}) + "\n"


def work(line: str) -> int:
    """Trains what a line says, or begins branches of a run.

    Args:
        line: What `order` or `order_branches` returned.

    Returns:
        0 if the runs are over, 3 if one failed, 130 if one was interrupted.

    Raises:
        InputError: A run cannot begin, or go on.
    """
    asked: dict[str, Any] = json.loads(line)
    out, experiments = Path(asked["out"]), [validate(each) for each in asked["configs"]]
    if "parent" in asked:
        from adaprec_jax.runs.branching import begin

        begin(Path(asked["parent"]), experiments, asked["packs"], out)
        return 0
    if len(experiments) == 1:
        from adaprec_jax.runs.run import run

        outcomes = [run(experiments[0], out=out)]
    else:
        from adaprec_jax.runs.run_pack import run_pack

        outcomes = run_pack(experiments, out=out)
    return max(_EXIT_CODES[outcome.state] for outcome in outcomes)


def attempt(line: str) -> tuple[int, str]:
    """Trains what a line says, for an engine that calls functions on other machines.

    Args:
        line: What `order` returned.

    Returns:
        The exit code of a worker, and why it could not begin or go on.
    """
    try:
        return work(line), ""
    except InputError as error:
        return USAGE, str(error.args[-1])


def main() -> None:
    """Does one order; the exit code says how the runs ended."""
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    sys.path.append(str(Path.cwd()))  # For import targets; last, to shadow nothing.
    line = sys.stdin.readline()
    threading.Thread(target=_stop_when_left, daemon=True).start()
    try:
        sys.exit(work(line))
    except InputError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.args))
        sys.exit(USAGE)


def _stop_when_left() -> None:
    """Asks this process to stop once nobody holds the other end of its input."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
