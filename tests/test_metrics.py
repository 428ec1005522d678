import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from adaprec_jax.runs import metrics
from adaprec_jax.runs.errors import InputError

# Floats of every kind: subnormal, largest, irrational, whole, both zeros.
VALUES = np.float32([1e-45, 3.4028235e38, 1 / 3, 16777217.0, 0.0, -0.0]).tolist()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, completed, steps, **columns):
    with metrics.start(path, completed) as file:
        metrics.append(file, steps, columns)


def test_values_come_back_as_the_same_float32(path):
    write(path, 0, range(1, 7), loss=VALUES)
    found = np.float32(list(metrics.read(path)["loss"].values()))
    assert found.tobytes() == np.float32(VALUES).tobytes()


def test_nan_and_infinities_survive_beside_exact_numbers(path):
    words = [float("nan"), float("inf"), float("-inf")]
    write(path, 0, [1, 2, 3], loss=words, third=[1 / 3] * 3)
    found = metrics.read(path)
    assert str(found["loss"]) == "{1: nan, 2: inf, 3: -inf}"
    assert np.float32(found["third"][1]) == np.float32(1 / 3)


def test_a_name_may_hold_any_character(path):
    name = 'a"b%s%d\\é/…->…'
    write(path, 0, [1, 2], **{name: [1.0, float("nan")]})
    assert metrics.read(path)[name][1] == 1.0


def test_lines_are_json_objects_with_the_step_first_and_floats_alone(path):
    write(path, 0, [1, 2], skipped=[3, 4])
    write(path, 2, [2], **{"eval/loss": [0.5]})
    lines = path.read_text().splitlines()
    assert lines == [
        '{"step":1,"skipped":3.00000000e+00}',
        '{"step":2,"skipped":4.00000000e+00}',
        '{"step":2,"eval/loss":5.00000000e-01}',
    ]
    assert json.loads(lines[0]) == {"step": 1, "skipped": 3.0}


def test_going_on_from_a_step_drops_what_was_written_after_it(path):
    write(path, 0, range(1, 9), loss=[1.0] * 8)
    write(path, 4, range(5, 7), loss=[2.0] * 2)
    assert metrics.read(path)["loss"] == {
        1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 2.0, 6: 2.0,
    }  # fmt: skip
    with metrics.start(path, 0):
        assert metrics.read(path) == {}


@pytest.mark.parametrize("torn", ['{"step":3,"lo', '{"ste', '{"step":3', "\0\0\0"])
def test_a_torn_last_line_is_ignored_and_then_removed(path, torn):
    write(path, 0, [1, 2], loss=[1.0, 2.0])
    with path.open("a") as file:
        file.write(torn)
    assert metrics.read(path)["loss"] == {1: 1.0, 2: 2.0}
    write(path, 2, [3], loss=[3.0])
    assert metrics.read(path)["loss"] == {1: 1.0, 2: 2.0, 3: 3.0}


@pytest.mark.parametrize(
    "damaged", ['{"stop":2,"loss":1.0}', "{", "[1]", '{"step":2,"loss":"x"}', "\0", ""]
)
def test_a_damaged_line_is_refused_by_its_number_and_nothing_is_lost(path, damaged):
    write(path, 0, [1], loss=[1.0])
    with path.open("a") as file:
        file.write(damaged + "\n")
    with metrics.start(path.with_name("other"), 0) as file:
        metrics.append(file, [3], {"loss": [3.0]})
    whole = path.read_bytes() + path.with_name("other").read_bytes()
    path.write_bytes(whole)
    for use in (lambda: metrics.read(path), lambda: metrics.start(path, 3)):
        with pytest.raises(InputError, match="is damaged at line 2"):
            use()
    assert path.read_bytes() == whole


def test_lines_that_are_missing_before_a_checkpoint_are_told(path):
    with pytest.raises(InputError, match="ends at step 0, but the checkpoint is of 4"):
        metrics.start(path, 4)
    write(path, 0, [2, 4], loss=[1.0, 2.0])
    with metrics.start(path, 5, every=2):
        assert metrics.read(path)["loss"] == {2: 1.0, 4: 2.0}
    with pytest.raises(InputError, match="lines are missing; nothing was changed"):
        metrics.start(path, 6, every=2)
    assert metrics.read(path)["loss"] == {2: 1.0, 4: 2.0}


def test_two_values_of_one_name_at_one_step_are_refused(path):
    write(path, 0, [1, 1], loss=[1.0, 2.0])
    with pytest.raises(ValueError, match="two values of loss at step 1"):
        metrics.read(path)


def test_columns_of_different_lengths_are_refused(path):
    with pytest.raises(ValueError, match="argument"):
        write(path, 0, [1, 2], loss=[1.0])


WRITER = """
import pathlib, sys
from adaprec_jax.runs import metrics
with metrics.start(pathlib.Path(sys.argv[1]), 0) as file:
    for step in range(1, 10**9):
        metrics.append(file, [step], {f"name {i}": [step + i / 8] for i in range(200)})
        if step == 20:
            print("going", flush=True)
"""


def test_what_was_appended_survives_a_kill(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    found = metrics.read(path)
    assert len(found) == 200
    assert len(found["name 3"]) >= 20
    for i in (0, 199):
        steps, values = zip(*found[f"name {i}"].items(), strict=True)
        assert list(steps) == list(range(1, len(steps) + 1))
        assert list(values) == [step + i / 8 for step in steps]


FULL = """
import pathlib, resource, sys
from adaprec_jax.runs import metrics
path = pathlib.Path(sys.argv[1])
with metrics.start(path, 0) as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    for step in range(1, 10):
        metrics.append(file, [step], {"loss": [1.0]})
"""


def test_a_file_that_cannot_grow_keeps_its_whole_lines(path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"{InputError.__module__}.InputError: Cannot write {path}: File too large. "
        "What is there already is kept."
    )
    assert metrics.read(path)["loss"] == {1: 1.0, 2: 1.0, 3: 1.0}
    write(path, 3, [4], loss=[1.0])
    assert len(metrics.read(path)["loss"]) == 4
