"""Forks: branches of a checkpoint, what they cost, and the value of a bit."""

import hashlib
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from adaprec_jax import formats, plan as plans
from adaprec_jax.cli import main
from adaprec_jax.precision import separate
from adaprec_jax.report.figure import save as write
from adaprec_jax.report.worth_figure import Cell, worth_figure
from adaprec_jax.runs import branching, metrics, store
from adaprec_jax.runs.build import build
from adaprec_jax.runs.config import Change, Forked
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply
from adaprec_jax.runs.run import resume, run
from adaprec_jax.runs.run_pack import run_pack
from adaprec_jax.schedules import changed, constant
from adaprec_jax.stats import empty
from adaprec_jax.studies import forking
from adaprec_jax.studies.columns import column
from adaprec_jax.studies.packs import packs
from adaprec_jax.studies.results import gathered
from adaprec_jax.studies.states import look
from adaprec_jax.studies.study import save
from adaprec_jax.studies.worth import worth
from adaprec_jax.testing import table
from adaprec_jax.train.checkpoint import restore
from tests import made_up_study

SHORT = ["steps=12", "steps_per_dispatch=4", "evaluate_every=12", "checkpoint_every=4",
         "keep_checkpoints=9", "model.hidden=[8]", "batch_size=16"]  # fmt: skip
AT = 8


def digests(directory):
    return {
        path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def last_state(directory):
    built = build(store.experiment_of(directory))
    found = restore(directory / store.CHECKPOINTS, built.init(built.key))
    assert found is not None
    return found.step, jax.tree.map(np.asarray, found.state._replace(key=()))


def assert_same(a, b):
    for name in ("params", "opt_state", "recipe_states", "measured", "plan"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))


def decided(outcome):
    """The results, but for what the work of the schedule itself is a part of."""
    no = ("compilations", "arith7")
    return {n: v for n, v in outcome.results.items() if not n.startswith(no)}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A short run of a closed loop, whose decisions go on in a branch."""
    out = tmp_path_factory.mktemp("runs")
    base = apply(load("digits-two-threshold"), [*SHORT, "schedule.every=4"])
    run(base, out=out)
    return store.locate(out, base), out


@pytest.fixture(scope="module")
def forked(parent):
    """Its branches, trained alone, and its digests before."""
    directory, out = parent
    before = digests(directory)
    parents = forking.parents_of([directory], AT)
    changes = forking.changes_of(
        ["last"], ["int3", "int12"], ["activation", "weight"], [(8, 12)]
    )
    grounds = [forking.ground(parents[0], ["last"])]
    found = forking.fork(parents, AT, changes, grounds, "fork")
    save(found.study, out)
    branching.begin(directory, [c.experiment for c in found.study.cells], {}, out)
    runs = [store.locate(out, cell.experiment) for cell in found.study.cells]
    begun = [last_state(each)[0] for each in runs]
    return found, runs, [resume(each) for each in runs], begun, before


@pytest.mark.slow
def test_a_branch_as_it_was_is_its_run_to_the_bit(parent, forked):
    directory, _ = parent
    _, (branch, *_), (ended, *_), begun, before = forked
    assert begun == [AT, AT, AT]
    assert digests(directory) == before  # The run itself was only read.
    (step, own), (_, theirs) = last_state(branch), last_state(directory)
    assert (ended.state, step) == ("done", 12)
    assert_same(own, theirs)
    jax.tree.map(
        np.testing.assert_array_equal, own.schedule_state.inner, theirs.schedule_state
    )
    assert metrics.read(branch / store.METRICS) == metrics.read(
        directory / store.METRICS
    )
    assert decided(ended) == decided(store.outcome(directory))


@pytest.mark.slow
def test_a_branch_is_the_same_run_trained_from_its_first_step(forked, tmp_path):
    found, (_, branch, _), (_, ended, _), _, _ = forked
    whole = run(found.study.cells[1].experiment, out=tmp_path)
    assert decided(whole) == decided(ended)
    again = store.locate(tmp_path, found.study.cells[1].experiment)
    assert_same(last_state(branch)[1], last_state(again)[1])


@pytest.mark.slow
def test_a_plan_changes_what_it_says_and_costs_what_was_said(parent, forked):
    directory, _ = parent
    found, (_, branch, _), ended, _, _ = forked
    own, theirs = (metrics.read(d / store.METRICS) for d in (branch, directory))
    for name in (n for n in theirs if n.startswith("bits/")):
        from adaprec_jax.report.summary import filled

        bits = filled(own[name], 12), filled(theirs[name], 12)
        np.testing.assert_array_equal(bits[0][:AT], bits[1][:AT])
        if "Dense_1" in name and "gradient" not in name:
            assert (bits[0][AT:] == 3).all()
        elif "Dense_1" in name:
            np.testing.assert_array_equal(*bits)
    gaps = [each.results["gbitops"] - ended[0].results["gbitops"] for each in ended]
    assert gaps[1] < 0 < gaps[2]
    # The other layer may decide otherwise than it did; not so soon.
    costs = [*found.gbitops.values()]
    np.testing.assert_allclose(np.subtract(costs, costs[0]), gaps, rtol=1e-4)
    for each in own["loss"]:
        assert (own["loss"][each] == theirs["loss"][each]) == (each <= AT)


@pytest.mark.slow
def test_branches_train_together_and_come_to_what_they_do_alone(tmp_path):
    base = apply(load("digits-int8"), SHORT)
    run(base, out=tmp_path)
    directory = store.locate(tmp_path, base)
    parents = forking.parents_of([directory], AT)
    grounds = [forking.ground(parents[0], ["each"])]
    layers = [*grounds[0].masks]
    assert layers == ["Dense_0", "Dense_1"]
    changes = forking.changes_of(
        layers, ["int8", "int3"], ["weight"], forking.phases_of("2", AT, 12)
    )
    found = forking.fork(parents, AT, changes, grounds, "fork")
    assert len(found.same) == 4  # int8, which it had
    assert len(found.study.cells) == 5
    (pack,) = packs(look(found.study, tmp_path))
    experiments = [cell.experiment for cell in pack]
    ids = [cell.run_id for cell in pack]
    branching.begin(directory, experiments, dict.fromkeys(ids, ids), tmp_path)
    assert packs(look(found.study, tmp_path)) == [[*found.study.cells]]
    ended = run_pack(experiments, out=tmp_path)
    own = store.outcome(directory).results
    for name in ("test/float32/loss", "gbitops"):
        assert ended[0].results[name] == pytest.approx(own[name], rel=1e-5)
    assert len({each.results["test/float32/loss"] for each in ended}) == 5


def test_changed_formats_hold_for_their_layers_steps_and_roles_alone():
    contractions, low = table(), formats.integer(2)
    eight = separate(plans.integers(8, 8))
    schedule = changed(
        constant(eight), "Block/**@1", {"activation": low}, start=3, end=5
    )
    state = schedule.init(contractions)
    for step in range(7):
        plan, state = schedule.update(jnp.int32(step), empty(contractions), state)
        bits = plans.bits(plan)
        block = bits["Block/Dense_0"]
        here = [8, 2 if step in (3, 4) else 8, 8]
        assert block.forward.activation.tolist() == here
        assert block.wgrad.activation.tolist() == here
        rest = (block.forward.weight, block.dgrad.weight, block.wgrad.gradient)
        assert all(np.all(np.asarray(each) == 8) for each in rest)
        assert all(np.all(np.asarray(b) == 8) for b in jax.tree.leaves(bits["Dense_0"]))


@pytest.mark.parametrize("text", ["0", "99", "0.5", "a:b", "0.9:0.8", "0.1:1", "0.8:2"])
def test_phases_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--phases"):
        forking.phases_of(text, AT, 12)


@pytest.fixture
def two_arms(tmp_path):
    """Runs that were never trained, of which checkpoints are said to be there."""
    study = made_up_study.study(tmp_path, ["digits-int8", "digits-int3"], 2)
    paths = [
        made_up_study.end(study, tmp_path, cell.experiment.name, cell.seed, {})
        for cell in study.cells
    ]
    for each, step in itertools.product(paths, (100, 200, 400, 600)):
        (each / store.CHECKPOINTS / str(step)).mkdir(parents=True)
    return paths


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--at", "300", "--bits", "3"],
            "of step 300; the nearest are of 100, 200, 400",
        ),
        (["--at", "600", "--bits", "3"], "--at must lie above 0 and below the 600"),
        (
            ["--at", "200"],
            "fork needs formats to try: --bits 3,4,6,8 or --format NAME.",
        ),
        (["--at", "200", "--bits", "3,x"], "'intx'"),
        (["--at", "200", "--bits", "3", "--roles", "bias"], "--roles are some of"),
        (["--at", "200", "--bits", "3", "--figure", "a.txt"], "--figure must end in"),
        (
            ["--at", "200", "--bits", "3", "--phases", "0.1:0.5"],
            "60 to 300, which must",
        ),
        (["--at", "200", "--bits", "3", "--layers", "Dense_9"], "matches none"),
    ],
)
def test_what_cannot_be_forked_is_one_sentence(
    two_arms, arguments, said, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["adaprec", "fork", str(two_arms[0]), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_step_without_a_checkpoint_is_told_of_before_jax_is_imported(two_arms):
    code = (
        f"import sys\nfrom adaprec_jax.cli import main\n"
        f"sys.argv = ['adaprec', 'fork', {str(two_arms[0])!r}, '--at', '9', "
        "'--bits', '3']\ntry: main()\nfinally: print('jax' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "False\n")


def test_runs_that_differ_in_more_than_their_seeds_are_refused(two_arms):
    with pytest.raises(InputError, match="must differ in their seeds alone, got "):
        forking.parents_of([two_arms[0], two_arms[2]], 200)
    with pytest.raises(InputError, match="are the same"):
        forking.parents_of([two_arms[0], two_arms[0]], 200)
    assert len(forking.parents_of(two_arms[:2], 200)) == 2


def test_the_value_of_a_bit_is_the_paired_gain_by_what_it_cost(tmp_path):
    rng = np.random.default_rng(2)
    seeds, base = 4, load("digits-int8")
    losses = 0.3 + 0.1 * rng.normal(size=seeds)
    gain = {"int4": 0.02, "int12": -0.001}
    gbitops = {"": 10.0, "int4": 6.0, "int12": 12.0}
    cells = []
    values = {"": losses}
    parents = [
        forking.Parent(tmp_path, apply(base, [f"seed={s}"]), f"{s:012x}")
        for s in range(seeds)
    ]
    changes = [
        Change(layers="first", start=400, end=600, activation=name, weight=name)
        for name in gain
    ]
    for change in (None, *changes):
        for each in parents:
            schedule = Forked(
                parent=each.run_id,
                step=400,
                schedule=each.experiment.schedule,
                change=change,
            )
            made = each.experiment.model_copy(
                update={"schedule": schedule, "name": "f"}
            )
            run_id = made_up_study.store.identity.run_id(made)
            cells.append(forking.Cell(forking.called(change), made.seed, made, run_id))
    study = forking.Study("made-up", tuple(cells))
    save(study, tmp_path)
    for name, up in gain.items():
        values[name] = losses + up + 0.003 * rng.normal(size=seeds)
    for cell, path in zip(
        cells, made_up_study.directories(study, tmp_path), strict=True
    ):
        change = cell.experiment.schedule.change
        name = change.weight if change else ""
        results = {
            "test/float32/loss": float(values[name][cell.seed]),
            "gbitops": gbitops[name],
        }
        now = made_up_study.environment.code() | {"commit": "a" * 40}
        with store.session(path, cell.experiment, now, "made up"):
            store.finish(path, store.Outcome("done", 600, results))
    results = gathered(study, tmp_path)
    found = worth(results, column(results.arms, "test/float32/loss"))
    ps = []
    for each, name in zip(found, gain, strict=True):
        gap = values[name] - losses
        tested = stats.ttest_1samp(gap, 0)
        low, high = tested.confidence_interval()
        bits = gbitops[name] - gbitops[""]
        ps.append(tested.pvalue)
        assert (each.formats, each.runs, each.gbitops) == (name, seeds, bits)
        assert each.difference.estimate == pytest.approx(gap.mean())
        ends = sorted((low / bits, high / bits))
        assert each.per_gbitop == pytest.approx((gap.mean() / bits, *ends))
    smaller, larger = sorted(ps)
    adjusted = [2 * smaller, max(2 * smaller, larger)]
    assert sorted(each.p for each in found) == pytest.approx(adjusted)


def test_a_heat_map_is_drawn_the_same_twice(tmp_path):
    cells = [
        Cell(panel, layer, phase, value, sure=value > 0)
        for (panel, layer, phase), value in zip(
            itertools.product(("int3", "int4"), ("a", "b"), ("0 to 5", "5 to 9")),
            (0.1, -0.2, 0.0, np.nan, np.inf, 0.3, 0.1, 0.2),
            strict=True,
        )
    ]
    drawn = worth_figure(cells, "test/float32/loss")
    texts = [text.get_text() for ax in drawn.axes for text in ax.texts]
    assert texts == ["0.1", "-0.2", "0", "nan", "inf", "0.3", "0.1", "0.2"]
    for name in ("a.png", "b.png"):
        write(worth_figure(cells, "test/float32/loss"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
