"""`adaprec plot`: what is drawn of configs and of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adaprec_jax.cli import main
from adaprec_jax.report.figure import Course, figure
from adaprec_jax.runs import kinds, overrides, store
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.expected import mean_cost
from adaprec_jax.runs.foreseen import foreseen
from adaprec_jax.runs.load import load
from adaprec_jax.runs.recorded import recorded
from adaprec_jax.runs.run import run
from adaprec_jax.runs.store import Outcome
from adaprec_jax.train.record import OPERANDS

# Of the published code, 3 to 8 bits, ten steps a cycle, two cycles.
GOLDEN = {
    "CR": [3, 3, 3, 4, 5, 6, 6, 7, 8, 8] * 2,
    "CT": [8, 8, 8, 7, 6, 6, 5, 4, 3, 3, 3, 3, 3, 4, 5, 6, 6, 7, 8, 8],
    "RTH": [8, 5, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 5],
}
OWN = '''
import jax.numpy as jnp
from adaprec_jax import schedules
from adaprec_jax.plan import fill, integers


def tidal(low: int):
    """Open loop, with a state: the bits rise by one at every call."""
    def init(table):
        return schedules.Scope(table), jnp.int32(low)

    def update(step, stats, state):
        scope, bits = state
        entry = integers(bits, 8)
        plan = {c.name: fill(c, entry) for c in scope.table.contractions}
        return plan, (scope, jnp.minimum(bits + 1, 8))

    return schedules.Schedule(init, update)


def by_weights(low: int):
    """Closed loop: the state, and so the plan, is made of the weights."""
    opened = tidal(low)

    def observe(step, weights, state):
        del weights
        return state[0], jnp.maximum(state[1] - 1, 2)

    return opened._replace(observe=observe)


def by_loss(low: int):
    """Closed loop, though it does not say so: the loss needs no `reads`."""
    def init(table):
        return schedules.Scope(table)

    def update(step, stats, scope):
        entry = integers(jnp.where(stats.loss < 1, low, 8), 8)
        return {c.name: fill(c, entry) for c in scope.table.contractions}, scope

    return schedules.Schedule(init, update)
'''


def configured(*settings: str, name: str = "digits-int8") -> Experiment:
    single = ["steps_per_dispatch=1", "evaluate_every=1"]  # any number of steps will do
    return overrides.apply(load(name), [*single, *settings])


def scheduled(kind: str, **settings: object) -> str:
    return "schedule=" + json.dumps({"kind": kind, **settings})


def written_out(course: Course) -> np.ndarray:
    """The bits of each step, layer and operand."""
    return np.repeat(course.bits, np.diff([*course.starts, course.steps]), axis=0)


@pytest.fixture
def adaprec(capsys, monkeypatch, tmp_path):
    """Runs the command in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


# What a controller decided: from a step on, the bits of two layers.
DECIDED = {1: (8, 8), 6: (7, 7), 11: (7, 6), 41: (8, 6)}


@pytest.fixture
def ran(tmp_path) -> SimpleNamespace:
    """The directory of a run of a controller, as a run writes it."""
    out = tmp_path / "out"
    experiment = configured("steps=60", name="digits-two-threshold")
    directory = store.locate(out, experiment)
    rows = []
    for step in range(1, 61):
        row: dict[str, float] = {"step": step}
        if step % 10 == 0:
            row |= {"loss": 1 / step, "learning_rate": 1e-3 / step}
        if step in DECIDED:
            row["cost"] = sum(DECIDED[step]) / 100
            for layer, bits in zip(("Dense_0", "a/b@1,2"), DECIDED[step], strict=True):
                for operand in OPERANDS:
                    gradient = operand.endswith("gradient")
                    row[f"bits/{layer}/{operand}"] = 8.0 if gradient else float(bits)
        rows.append(row)
    with store.session(directory, experiment, {}, "made up"):
        lines = [json.dumps(row) for row in rows if len(row) > 1]
        (directory / store.METRICS).write_text("\n".join([*lines, ""]))
        store.finish(directory, Outcome("done", 60, {}))
    return SimpleNamespace(out=out, directory=directory)


@pytest.mark.parametrize("shape", GOLDEN)
def test_the_bits_of_a_config_are_those_of_its_schedule(shape):
    cyclic = scheduled("cyclic", shape=shape, cycles=2)
    course = foreseen(configured("steps=20", cyclic))
    bits = written_out(course)
    assert course.layers == ("Dense_0", "Dense_1")
    for layer in (0, 1):
        for operand, name in enumerate(course.operands):
            expected = [8] * 20 if name.endswith("gradient") else GOLDEN[shape]
            np.testing.assert_array_equal(bits[:, layer, operand], expected)
    forward = np.array(GOLDEN[shape])
    costs = np.repeat(course.cost, np.diff([*course.starts, 20]))
    np.testing.assert_allclose(costs, (forward**2 + 16 * forward) / 3072, rtol=1e-6)


def test_a_run_longer_than_a_block_of_steps_is_seen_to_its_end():
    late = scheduled("piecewise", boundaries=[999, 1000, 2300], precisions=[
        {"kind": "shared", "weight": f"int{bits}"} for bits in (3, 4, 5, 6)
    ])  # fmt: skip
    course = foreseen(configured("steps=2400", late))
    assert course.starts.tolist() == [0, 999, 1000, 2300]
    weights = course.bits[:, 0, course.operands.index("forward.weight")]
    assert weights.tolist() == [3, 4, 5, 6]


def test_one_step_is_a_run():
    course = foreseen(configured("steps=1", scheduled("float32")))
    assert course.starts.tolist() == [0]
    assert (course.bits == 32).all()
    assert course.cost.tolist() == [1.0]
    assert course.rates.tolist() == [2e-3]


def test_the_learning_rate_is_that_of_each_step():
    rate = '{"kind": "warmup_cosine", "peak": 0.004, "final": 0.0, "warmup_steps": 10}'
    course = foreseen(configured("steps=30", f"optimizer.learning_rate={rate}"))
    steps = np.arange(30)
    decay = 0.002 * (1 + np.cos(np.pi * (steps - 10) / 20))
    expected = np.where(steps < 10, 0.0004 * steps, decay)
    np.testing.assert_array_equal(course.rate_steps, steps)
    np.testing.assert_allclose(course.rates, expected, atol=1e-9)


@pytest.mark.parametrize("kind", [k.kind for k in kinds.kinds() if k.loop == "open"])
def test_a_kind_that_calls_itself_open_reads_nothing(kind):
    for schedule in kinds.examples(kind)[:2]:
        experiment = configured("steps=600").model_copy(update={"schedule": schedule})
        course = foreseen(experiment)
        known = mean_cost(experiment)
        if kind == "by_bottleneck":  # it asks for the shapes of the layers
            assert known is None
            assert course.starts.tolist() == [0]
            continue
        steps = np.diff([*course.starts, course.steps])
        assert np.average(course.cost, weights=steps) == pytest.approx(known, rel=1e-5)


def test_a_kind_that_reads_statistics_is_found_out(monkeypatch):
    monkeypatch.setattr(kinds, "check_open", lambda experiment: None)
    with pytest.raises(InputError, match="decides by what is measured in training"):
        foreseen(load("digits-two-threshold"))


def test_schedules_by_layer_are_seen_by_layer():
    rules = [{"pattern": "last", "schedule": {"kind": "float32"}}]
    mixed = scheduled("per_layer", rules=rules, default={"kind": "cpt", "cycles": 2})
    course = foreseen(configured("steps=20", mixed))
    forward = written_out(course)[:, :, 0]
    np.testing.assert_array_equal(forward[:, 0], GOLDEN["CR"])
    np.testing.assert_array_equal(forward[:, 1], [32] * 20)


def test_a_schedule_of_ones_own_is_drawn_if_it_reads_nothing(tmp_path, monkeypatch):
    (tmp_path / "somebodys_tides.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"arguments": {"low": 5}, "kind": "import"}
    for name in ("tidal", "by_loss", "by_weights"):
        target = json.dumps({**own, "target": f"somebodys_tides:{name}"})
        experiment = configured("steps=6", f"schedule={target}")
        if name == "tidal":
            bits = written_out(foreseen(experiment))[:, 0, 0]
            assert bits.tolist() == [5, 6, 7, 8, 8, 8]
        else:
            with pytest.raises(InputError, match="run it first"):
                foreseen(experiment)


def test_the_decisions_of_a_run_are_those_that_it_stored(ran):
    course = recorded(ran.directory)
    steps = np.arange(1, 61)
    starts = np.array([*DECIDED])
    expected = np.array([*DECIDED.values()])[
        np.searchsorted(starts, steps, "right") - 1
    ]
    assert course.layers == ("Dense_0", "a/b@1,2")
    assert course.steps == 60
    bits = written_out(course)
    for k, operand in enumerate(course.operands):
        gradient = operand.endswith("gradient")
        np.testing.assert_array_equal(bits[..., k], 8 if gradient else expected)
    costs = np.repeat(course.cost, np.diff([*course.starts, 60]))
    np.testing.assert_allclose(costs, expected.sum(1) / 100)
    # The rate of the tenth step is drawn where that step begins.
    assert course.rate_steps.tolist() == [9, 19, 29, 39, 49, 59]
    np.testing.assert_allclose(course.rates, 1e-3 / (course.rate_steps + 1))


def test_the_heat_map_of_a_run_holds_what_it_stored(ran):
    *panels, _ = figure([recorded(ran.directory)]).axes
    [mesh] = [m for axes in panels for m in axes.collections]
    np.testing.assert_array_equal(mesh.get_array(), np.array([*DECIDED.values()]).T)
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges, [0, 5, 10, 40, 60])


def test_a_run_that_was_killed_is_drawn_as_far_as_it_came(ran):
    (ran.directory / store.STATUS).unlink()
    path = ran.directory / store.METRICS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    course = recorded(ran.directory)  # that is up to step 20
    assert course.steps == 20
    assert course.starts.tolist() == [0, 5, 10]


@pytest.mark.slow
def test_a_config_and_its_run_are_the_same_picture(tmp_path):
    experiment = configured("steps=20", scheduled("cpt", cycles=2, min_bits=3))
    run(experiment, out=tmp_path)
    stored, seen = recorded(store.locate(tmp_path, experiment)), foreseen(experiment)
    np.testing.assert_array_equal(written_out(stored), written_out(seen))
    np.testing.assert_array_equal(stored.starts, seen.starts)
    np.testing.assert_allclose(stored.cost, seen.cost, rtol=1e-6)
    np.testing.assert_allclose(stored.rates, seen.rates[stored.rate_steps], rtol=1e-6)
    assert stored.layers == seen.layers
    assert stored.operands == seen.operands


def test_a_run_without_a_step_is_one_sentence(tmp_path):
    experiment = configured()
    directory = store.locate(tmp_path, experiment)
    with (
        store.session(directory, experiment, {}, "made up"),
        pytest.raises(InputError, match="holds no bits of any step"),
    ):
        recorded(directory)


def test_plot_writes_one_picture_of_configs_and_runs(adaprec, ran, tmp_path):
    run_id = store.id_of(ran.directory)
    arguments = [
        "plot",
        "digits-cpt",
        run_id,
        str(ran.directory),
        "--runs",
        str(ran.out),
    ]
    code, out, err = adaprec(*arguments, "--out", "new/picture.svg")
    assert (code, out, err) == (0, "new/picture.svg\n", "")
    picture = (tmp_path / "new/picture.svg").read_bytes()
    assert b"<svg" in picture
    adaprec(*arguments, "--out", "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == picture


def test_plot_takes_settings_of_configs(adaprec, tmp_path):
    adaprec("plot", "digits-cpt", "--out", "a.svg")
    adaprec("plot", "digits-cpt", "--set", "schedule.cycles=3", "--out", "b.svg")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (
            ["digits-two-threshold"],
            ["The schedule of digits-two-threshold decides by what is measured in "
             "training: run it first (`adaprec run`), and plot its run."],
        ),
        (
            ["digit-cpt"],
            ["Unknown config 'digit-cpt'; did you mean 'digits-cpt'? `adaprec configs` "
             "lists all.",
             "'digit-cpt' means no runs in runs; there are none."],
        ),
        (["no.py"], ["Cannot read no.py: No such file or directory."]),
        (
            ["digits-cpt", "--out", "x.gif"],
            ["--out must end in one of .png, .svg, .pdf, got 'x.gif'."],
        ),
        (
            ["digits-cpt", "--set", "schedule.cyclez=3"],
            ["Unknown setting 'schedule.cyclez'; did you mean 'schedule.cycles'?"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_plotted_is_told(adaprec, arguments, faults):
    code, out, err = adaprec("plot", *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"adaprec: {fault}" for fault in faults]


def call(arguments: list[str], cwd: Path, **files: str) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own, in which `files` hide packages."""
    for package, source in files.items():
        (cwd / f"{package}.py").write_text(source)
    program = (
        "import sys\nfrom adaprec_jax.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('jax', 'matplotlib.pyplot') if m in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(
            [str(cwd), *filter(None, [os.environ.get("PYTHONPATH")])]
        )},
        capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip


def test_without_matplotlib_the_extra_is_named(tmp_path):
    missing = "raise ModuleNotFoundError('gone', name='matplotlib')"
    done = call(["plot", "digits-cpt"], tmp_path, matplotlib=missing)
    assert done.returncode == 2
    assert done.stderr == (
        "adaprec: A plot needs matplotlib, which is not installed: "
        "pip install 'adaprec-jax[plot]'.\n"
    )
    assert done.stdout == "[]\n"


def test_a_run_is_drawn_without_jax_and_without_pyplot(ran, tmp_path):
    done = call(["plot", str(ran.directory)], tmp_path, jax="raise RuntimeError")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "precision.png\n[]\n"
    assert (tmp_path / "precision.png").read_bytes().startswith(b"\x89PNG")
