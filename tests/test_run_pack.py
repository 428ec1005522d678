"""Packs that write run directories: equal to runs alone, and after any interruption."""

import json
import shutil

import jax
import numpy as np
import pytest

from adaprec_jax.runs import metrics, run_pack as packing, store
from adaprec_jax.runs.build import build
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.run import run
from adaprec_jax.runs.run_pack import run_pack
from adaprec_jax.train.checkpoint import restore
from tests.test_run import tiny

pytestmark = pytest.mark.slow

BITS = {"schedule.min_bits": "4"}
# Two schedules, three seeds and two learning rates.
CONSTANT = {
    "schedule": '{"kind":"constant","precision":{"kind":"shared","activation":"int4",'
    '"weight":"int4","gradient":"int8"}}',
    "schedule.kind": "constant",
}
ONES = [
    tiny(),
    tiny(BITS | {"seed": "3"}),
    tiny({"seed": "4", "optimizer.learning_rate.peak": "0.01"}),
    tiny(CONSTANT | {"seed": "3"}),
]


def directories(out, experiments=ONES):
    return [store.locate(out, each) for each in experiments]


def last_state(directory, experiment):
    built = build(experiment)
    found = restore(directory / store.CHECKPOINTS, built.init(built.key))
    assert found is not None
    return found.step, found.state


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of a pack that nobody disturbed."""
    out = tmp_path_factory.mktemp("together")
    return out, run_pack(ONES, out=out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same runs, each alone."""
    out = tmp_path_factory.mktemp("alone")
    return out, [run(each, out=out) for each in ONES]


def test_each_run_of_a_pack_is_what_it_is_alone(together, alone):
    for one, other in zip(together[1], alone[1], strict=True):
        assert (one.state, one.step) == (other.state, other.step) == ("done", 40)
        assert [*one.results] == [*other.results]
        for name, value in other.results.items():
            assert one.results[name] == pytest.approx(value, rel=1e-5), name
    for one, other in zip(directories(together[0]), directories(alone[0]), strict=True):
        a, b = (metrics.read(each / store.METRICS) for each in (one, other))
        assert [*a] == [*b]
        for name in b:
            assert [*a[name]] == [*b[name]]
            np.testing.assert_allclose(
                [*a[name].values()], [*b[name].values()], rtol=2e-4, atol=1e-6
            )
    losses = [
        metrics.read(each / store.METRICS)["loss"][39] for each in directories(alone[0])
    ]
    assert len(set(losses)) == len(ONES)


def test_a_run_of_a_pack_can_go_on_alone(together, tmp_path):
    for each, experiment in zip(directories(together[0]), ONES, strict=True):
        step, state = last_state(each, experiment)  # of the same shapes and dtypes
        assert (step, int(state.calls)) == (40, 40)
    copy = shutil.copytree(together[0], tmp_path / "runs")
    (directories(copy)[1] / store.STATUS).unlink()
    assert run(ONES[1], out=copy).results == pytest.approx(
        together[1][1].results | {"compilations": 0}
    )
    assert store.pack_of(directories(copy)[1]) == ()


def test_a_pack_says_with_whom_it_was_trained(together):
    first, *others = directories(together[0])
    assert store.pack_of(first) == tuple(map(store.id_of, directories(together[0])))
    session = json.loads((first / store.ENVIRONMENT).read_text())["sessions"][-1]
    assert session["pack"].startswith("4 runs, ")
    assert {store.pack_of(each) for each in others} == {store.pack_of(first)}


@pytest.mark.parametrize(
    ("at", "lost"), [(20, []), (24, [0]), (40, [1]), (40, [1, 2])]
)  # at a step, with the last checkpoint of some not written or their ends recorded
def test_a_pack_that_is_killed_comes_to_the_same_end(
    together, tmp_path, monkeypatch, at, lost
):
    class Killed(BaseException):
        """Nothing in its way may catch it."""

    def saves(directory, step, **options):
        original = packing_saving(directory, step, **options)
        with original as save:

            def until(now, state):
                if now > at:
                    raise Killed
                save(now, state)

            yield until

    import contextlib

    packing_saving = packing.saving
    if at < 40:
        with monkeypatch.context() as patched:
            patched.setattr(packing, "saving", contextlib.contextmanager(saves))
            with pytest.raises(Killed):
                run_pack(ONES, out=tmp_path)
        for k in lost:
            shutil.rmtree(directories(tmp_path)[k] / store.CHECKPOINTS / str(at))
        missing = ONES
    else:
        shutil.copytree(together[0], tmp_path, dirs_exist_ok=True)
        for k in lost:
            (directories(tmp_path)[k] / store.STATUS).unlink()
        missing = [ONES[k] for k in lost]
    outcomes = run_pack(missing, out=tmp_path)
    assert {each.message for each in outcomes} == {""}
    expected = [o for e, o in zip(ONES, together[1], strict=True) if e in missing]
    for one, other in zip(outcomes, expected, strict=True):
        ended = other.results | {"compilations": one.results["compilations"]}
        assert one.results == ended
    for one, other in zip(directories(tmp_path), directories(together[0]), strict=True):
        assert (one / store.METRICS).read_bytes() == (
            other / store.METRICS
        ).read_bytes()
    for one, other, experiment in zip(
        directories(tmp_path), directories(together[0]), ONES, strict=True
    ):
        (_, a), (_, b) = last_state(one, experiment), last_state(other, experiment)
        jax.tree.map(
            np.testing.assert_array_equal, a._replace(key=()), b._replace(key=())
        )


def test_a_run_that_diverges_does_not_touch_the_others(together, tmp_path):
    wild = tiny({"seed": "3", "optimizer.learning_rate.peak": "1e30"})
    first, last = run_pack([ONES[0], wild], out=tmp_path)
    alone = run(wild, out=tmp_path / "alone")
    assert (last.state, last.step, last.message) == (
        alone.state, alone.step, alone.message,
    )  # fmt: skip
    assert last.state == "diverged"
    a, b = (
        metrics.read(store.locate(each, wild) / store.METRICS)
        for each in (tmp_path, tmp_path / "alone")
    )
    assert {name: [*a[name]] for name in a} == {name: [*b[name]] for name in b}
    assert first.state == "done"
    assert first.results == pytest.approx(together[1][0].results, rel=1e-5)


def test_a_pack_whose_member_is_gone_is_refused(together, tmp_path):
    copy = shutil.copytree(together[0], tmp_path / "runs")
    first, second, *_ = directories(copy)
    (first / store.STATUS).unlink()
    shutil.rmtree(second)
    with pytest.raises(InputError, match=r"was trained together with .*is not in"):
        run_pack(ONES[:1], out=copy)
