"""Whole runs, of a task and a network so small that compiling is most of the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from adaprec_jax import formats, plan
from adaprec_jax.bit_counts import cyclic_bits
from adaprec_jax.cli import main
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.report import summary
from adaprec_jax.runs import (
    build_task,
    metrics,
    overrides,
    rows,
    run as running,
    store,
)
from adaprec_jax.runs.build import build
from adaprec_jax.runs.build_task import load_data
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import costs, mean_cost
from adaprec_jax.runs.load import bundled, load
from adaprec_jax.tasks.task import Data, Split
from adaprec_jax.train import Metrics, make_train_step, record
from adaprec_jax.train.checkpoint import restore

TINY = {
    "task.kind": "teacher", "task.size": "64", "model.hidden": "[4]", "batch_size": "8",
    "schedule.cycles": "2", "steps": "40", "steps_per_dispatch": "4",
    "evaluate_every": "20", "checkpoint_every": "8", "log_every": "3",
    "statistics": '["underflow_fraction"]',
}  # fmt: skip
LONG = {"steps": "1600", "checkpoint_every": "40"}

F32 = '{"kind": "float32"}'
NO = f'[{{"pattern": "Conv_*", "schedule": {F32}}}]'


def assignments(settings: dict[str, str]) -> list[str]:
    chosen = TINY | settings
    if "schedule.kind" in settings:
        del chosen["schedule.cycles"]
    return [f"{path}={value}" for path, value in chosen.items()]


def tiny(settings: dict[str, str] | None = None) -> Experiment:
    return overrides.apply(load("digits-cpt"), assignments(settings or {}))


def command(*arguments: str) -> list[str]:
    program = "from adaprec_jax.cli import main; main()"
    return [sys.executable, "-c", program, *arguments, "--out", "runs"]


def run_long() -> list[str]:
    settings = [part for each in assignments(LONG) for part in ("--set", each)]
    return command("run", "digits-cpt", *settings)


def only_run(folder: Path) -> Path:
    [path] = (folder / "runs").iterdir()
    return path


def final_state(directory: Path):
    experiment = store.experiment_of(directory)
    built = build(experiment)
    restored = restore(directory / store.CHECKPOINTS, built.init(built.key))
    assert restored is not None
    assert restored.step == experiment.steps
    return jax.tree.map(np.asarray, restored.state._replace(key=()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The directory of a long tiny run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(run_long(), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return only_run(folder)


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / store.METRICS).read_bytes() == (other / store.METRICS).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))
    assert store.outcome(one) == store.outcome(other)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[store.Outcome, Path]:
    """A tiny run: its outcome and its directory."""
    folder = tmp_path_factory.mktemp("done")
    outcome = running.run(tiny(), out=folder)
    return outcome, store.locate(folder, tiny())


def test_a_run_ends_with_results_and_rows_of_its_steps(done):
    outcome, directory = done
    assert (outcome.state, outcome.step) == ("done", 40)
    assert store.outcome(directory) == outcome
    columns = metrics.read(directory / store.METRICS)
    assert sorted(columns["loss"]) == list(range(3, 41, 3))
    assert sorted(columns["validation/now/accuracy"]) == [20, 40]
    results = outcome.results
    assert results["validation/now/accuracy"] == columns["validation/now/accuracy"][40]
    assert {"test/highest/accuracy", "test/float32/accuracy"} <= set(results)
    assert "test/now/accuracy" not in results
    assert (results["compilations"], results["skipped_steps"]) == (1, 0)
    underflow = columns["underflow_fraction/Dense_1/activation"]
    assert set(underflow) == set(columns["loss"])
    log = (directory / store.LOG).read_text()
    assert "step 20, validation accuracy" in log
    assert "done after 40 steps" in log


def test_a_run_has_the_precision_and_the_cost_that_its_config_promises(done):
    outcome, directory = done
    columns = metrics.read(directory / store.METRICS)
    bits = summary.filled(columns["bits/Dense_0/forward.weight"], 40)
    expected = cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=2, steps=40)
    assert bits.tolist() == expected.tolist()
    assert outcome.results["precision_changes"] == np.count_nonzero(np.diff(expected))
    assert outcome.results["cost"] == pytest.approx(mean_cost(tiny()), rel=1e-6)


def test_a_run_says_what_it_multiplied(done):
    results = done[0].results
    bits = cyclic_bits("CPT", min_bits=3, max_bits=8, cycles=2, steps=40).astype(int)
    # Batches of 8 through 16 x 4 and 4 x 4, forward, dgrad and wgrad.
    operations = 8 * (16 * 4 + 4 * 4) * (bits**2 + 2 * 8 * bits).sum()
    assert results["gbitops"] == pytest.approx(operations / 1e9, rel=1e-6)
    # With gradients of 8 bits the forward product alone is ever one of 4 bits.
    assert results["share_4_bits"] == pytest.approx(np.mean(bits <= 4) / 3)
    assert results["share_8_bits"] == pytest.approx(1)
    known = costs(tiny())
    assert known["share_4_bits"] == pytest.approx(results["share_4_bits"])
    assert known["bytes_per_parameter"] == results["bytes_per_parameter"]


@pytest.mark.slow
def test_devices_that_share_a_batch_come_to_the_same_end(tmp_path):
    # In float32: rounding would take a sum in another order to another neighbour.
    settings = {"schedule.kind": "float32", "statistics": "[]"}
    alone, shared = tiny(settings), tiny(settings | {"devices": "4"})
    outcomes = [running.run(each, out=tmp_path) for each in (alone, shared)]
    one, four = (
        metrics.read(store.locate(tmp_path, each) / store.METRICS)["loss"]
        for each in (alone, shared)
    )
    np.testing.assert_allclose(list(four.values()), list(one.values()), atol=1e-5)
    assert [outcome.results["compilations"] for outcome in outcomes] == [1, 1]


def test_a_model_larger_than_the_memory_is_one_sentence(tmp_path):
    huge = tiny({"model.hidden": "[2000000000]"})
    with pytest.raises(InputError, match="GiB, more than the"):
        running.run(huge, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_change_between_formats_of_one_width_is_written():
    program = build(tiny()).program
    names = ("float8_e4m3fn", "float8_e5m2", "float8_e5m2")
    plans = [
        record.pack_plan(
            plan.uniform(program.table, SharedPrecision(*[formats.get(name)] * 3)),
            program.table,
        )
        for name in names
    ]
    seen = Metrics({}, np.stack(plans), {}, {}, np.zeros(3, bool))
    layout = rows.layout(program, (), log_every=100)
    written = dict(rows.rows(layout, np.arange(5, 8), seen, plans[0]))
    assert [*written] == [6]
    assert set(written[6].values()) == {8.0}


def test_the_numbers_of_a_schedule_are_written_where_it_has_some():
    program = build(tiny()).program
    first, *_ = record.rows(program.table)
    layers = len(record.rows(program.table))
    sums = np.full((2, layers), np.nan, np.float32)
    sums[:, 0] = 3, 4
    plan = np.zeros((2, layers, 6, 7), np.float32)
    seen = Metrics({}, plan, {}, {"sum": sums}, np.zeros(2, bool))
    layout = rows.layout(program, (), log_every=2)
    (row,) = rows.rows(layout, np.arange(5, 7), seen, plan[0])
    assert row == (6, {f"signal/sum/{first}": 4.0})


def test_a_diverged_run_says_in_which_step_and_layer_it_began(tmp_path):
    experiment = tiny({"optimizer.kind": "sgd", "optimizer.learning_rate.peak": "1e30"})
    outcome = running.run(experiment, out=tmp_path)
    assert (outcome.state, outcome.step) == ("diverged", 2)
    assert "from step 2 on" in outcome.message
    assert "Dense_" in outcome.message
    assert "test/highest/accuracy" not in outcome.results
    columns = metrics.read(store.locate(tmp_path, experiment) / store.METRICS)
    assert list(columns["loss"]) == [2]


@pytest.mark.slow
def test_a_failed_run_keeps_its_traceback_and_can_go_on(done, tmp_path, monkeypatch):
    directory = store.locate(tmp_path, tiny())

    def broken(*_: object) -> None:
        raise RuntimeError("a bug\nof two lines")

    with monkeypatch.context() as patched:
        patched.setattr(summary, "totals", broken)
        outcome = running.run(tiny(), out=tmp_path)
    assert (outcome.state, outcome.step) == ("failed", 40)
    assert outcome.message == "RuntimeError: a bug (see log.txt)"
    assert "Traceback (most recent call last)" in (directory / store.LOG).read_text()
    again = running.resume(directory)
    assert again.results | {"compilations": 1} == done[0].results


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(done, tmp_path, monkeypatch):
    directory = store.locate(tmp_path, tiny())
    append = metrics.append

    def full(file, steps, columns):
        if steps[0] > 20:
            raise InputError("Cannot write metrics: No space left on device.")
        append(file, steps, columns)

    with monkeypatch.context() as patched:
        patched.setattr(running.metrics, "append", full)
        with pytest.raises(InputError, match="No space left on device"):
            running.run(tiny(), out=tmp_path)
    assert store.state(directory) == "interrupted"
    running.run(tiny(), out=tmp_path)
    assert_same_run(done[1], directory)


def test_data_that_is_missing_leaves_no_run_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "fashion-mnist-cpt", "--set", "task.folder=nowhere"]
    monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("adaprec: nowhere/train-images-idx3-ubyte.gz is missing; ")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": "40"}, "A batch must hold 1 to 32 examples"),
        ({"batch_size": "16", "devices": "16"}, "16 are asked for, 8 is all"),
        (
            {
                "schedule.kind": "per_layer",
                "schedule.default": F32,
                "schedule.rules": NO,
            },
            r"The rule 'Conv_\*' matches none of the contractions",
        ),
    ],
)
def test_what_does_not_fit_the_data_or_the_model_is_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        build(tiny(settings))


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (np.float32, np.nan, r"is nan at index \(3, 2\); the data must be finite"),
        (np.float64, 0.5, "is float64; allowed are uint8, int32 and float32"),
    ],
)
def test_data_that_would_poison_a_run_is_one_sentence(dtype, value, message):
    data = load_data(tiny().task)
    inputs = np.array(data.arrays.inputs, dtype)
    inputs[3, 2] = value
    with pytest.raises(InputError, match=message):
        build(tiny(), data._replace(arrays=data.arrays._replace(inputs=inputs)))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(undisturbed, tmp_path):
    killed = 0
    for delay in (0.0, 0.3):
        process = subprocess.Popen(run_long(), cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_for_a_checkpoint(tmp_path, process, after=killed)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = newest_checkpoint(only_run(tmp_path))
        assert store.state(only_run(tmp_path)) == "interrupted"
    done = subprocess.run(
        command("resume", "digits"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stderr
    assert_same_run(undisturbed, only_run(tmp_path))


def test_ctrl_c_before_the_first_step_leaves_with_one_line(tmp_path):
    config = tmp_path / "slow.py"
    config.write_text("import time; print('began', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        command("run", str(config)), cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "adaprec: stopped; what is on disk is kept.\n"


@pytest.mark.slow
def test_scores_are_compiled_once(tmp_path, caplog):
    with jax.log_compiles():
        running.run(tiny({"steps": "8", "evaluate_every": "8"}), out=tmp_path)
    names = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert sum("jit(score)" in name for name in names) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on(undisturbed, tmp_path):
    process = subprocess.Popen(
        run_long(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_checkpoint(tmp_path, process)
    in_use = subprocess.run(run_long(), cwd=tmp_path, capture_output=True, text=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Ctrl-C again stops at once" in err
    assert "Traceback" not in err
    directory = only_run(tmp_path)
    assert f"adaprec resume runs/{directory.name}" in out
    outcome = store.outcome(directory)
    assert outcome is not None
    assert outcome.state == "interrupted"
    assert outcome.step == newest_checkpoint(directory) < 1600
    # Meanwhile nobody else could work on it.
    assert in_use.returncode == 2
    assert in_use.stderr.endswith("is in use by another process.\n")
    again = subprocess.run(
        command("resume", directory.name), cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert_same_run(undisturbed, directory)


@pytest.mark.slow
def test_a_second_run_says_already_done(undisturbed):
    done = subprocess.run(
        run_long(),
        cwd=undisturbed.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "already done after 1600 steps" in done.stdout
    assert "3-8 bits" in done.stdout  # the chart


def newest_checkpoint(directory: Path) -> int:
    names = (directory / store.CHECKPOINTS).glob("*")
    return max((int(path.name) for path in names if path.name.isdigit()), default=0)


def wait_for_a_checkpoint(
    folder: Path, process: subprocess.Popen, after: int = 0
) -> None:
    """Returns when the process has written a checkpoint of a step above `after`."""
    while process.poll() is None:
        runs = list((folder / "runs").glob("*"))
        if runs and newest_checkpoint(runs[0]) > after:
            return
        time.sleep(0.01)
    pytest.fail(f"The run ended too soon, with {process.returncode}.")


SHRUNK = {
    "denoiser": ["model.width=8"],
    "digits": ["model.hidden=[4]"],
    "experts": ["model.width=4", "model.hidden_width=4"],
    "fashion-mnist": ["model.channels=[2]"],
    "function": ["model.hidden=[4]"],
    "graph": ["model.width=4"],
    "gru": ["model.width=4"],
    "lstm": ["model.width=4"],
    "resnet": ["model.channels=[2, 4]"],
    "shakespeare": [
        "model.width=8", "model.heads=2", "task.context=8",
        "optimizer.learning_rate.warmup_steps=1",
    ],
    "vit": [
        "model.layers=1", "model.width=8", "optimizer.learning_rate.warmup_steps=1",
    ],
}  # fmt: skip


def shrunk(name: str) -> Experiment:
    """Returns a bundled experiment, of two steps and with a tiny model."""
    given = load(name)
    settings = [
        "steps=2", "steps_per_dispatch=1", "evaluate_every=2", "checkpoint_every=2",
        "batch_size=4", *next(v for k, v in SHRUNK.items() if name.startswith(k)),
    ]  # fmt: skip
    if given.schedule.kind == "cpt":
        settings.append("schedule.cycles=1")
    if given.schedule.kind == "late_switch":
        settings.append("schedule.fraction=0.5")
    return overrides.apply(given, settings)


def made_up(task) -> Data:
    """Returns 24 made-up examples in the shape of the task's."""
    blank = build_task.blank_data(task)
    random = np.random.default_rng(0)

    def many(leaf: np.ndarray) -> np.ndarray:
        numbers = random.integers(0, 10, (24, *leaf.shape[1:]))
        return numbers.astype(leaf.dtype)

    rows = np.arange(24, dtype=np.int32)
    split = Split(*np.split(rows, [8, 16]))
    return blank._replace(
        arrays=jax.tree.map(many, blank.arrays), split=lambda seed: split
    )


def programs() -> list[str]:
    """Returns the bundled arms without those that differ in numbers alone."""
    kinds = {
        (path, load(name).schedule.kind.replace("float32", "constant")): name
        for name, (path, _) in bundled().items()
    }
    # The others are a table in the state, too, as `cpt` is.
    other_tables = ("cyclic", "piecewise", "warmup")
    return [name for (_, kind), name in kinds.items() if kind not in other_tables]


@pytest.mark.slow
@pytest.mark.parametrize("name", programs())
def test_every_bundled_program_builds_and_traces(name):
    experiment = shrunk(name)
    built = build(experiment, made_up(experiment.task))
    state = jax.eval_shape(built.init, built.key)
    batch = jax.tree.map(
        lambda leaf: leaf[0], running.fetch(experiment, built, np.arange(1))
    )
    after, _ = jax.eval_shape(make_train_step(built.program), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", programs())
def test_every_bundled_program_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(build_task, "load_data", made_up)
    outcome = running.run(shrunk(name), out=tmp_path)
    assert (outcome.state, outcome.step) == ("done", 2)
    assert np.isfinite(outcome.results["test/highest/loss"])
