"""A schedule and a recipe of somebody's own package, named in a config."""

import subprocess
import sys
from pathlib import Path

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import identity, metrics, overrides, run as running, store
from adaprec_jax.runs.build import build
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.new import new_schedule

EXAMPLE = (
    Path(__file__).parents[1] / "experiments" / "examples" / "custom_schedule.py"
).read_text()
OTHERS = """
import jax.numpy as jnp
from adaprec_jax import quantize, scaling

def percentile(percent: float) -> scaling.Recipe:
    def round_tensor(x, fmt, state, *, axes, key, axis_names=()):
        top = jnp.percentile(jnp.abs(x), percent, axes, keepdims=True)
        scale = jnp.where(fmt.scaled, jnp.maximum(top, 2.0**-100) / fmt.max_value, 1.0)
        return quantize(x / scale, fmt), scale
    return scaling.current()._replace(round=round_tensor)

def forgetful():
    def update(step, stats, state):
        return {}, state
    return ap.schedules.Schedule(lambda table: (), update)

def unsound():
    def update(step, stats, table):
        entry = ap.plan.integers(4, 8)
        wide = entry.weight._replace(max_value=jnp.float32(jnp.nan))
        plan = {c.name: entry._replace(weight=wide) for c in table.table.contractions}
        return plan, table
    return ap.schedules.Schedule(ap.schedules.Scope, update)

def nothing():
    return 3
"""
SETTINGS = [
    "task.kind=teacher", "task.size=64", "model.hidden=[4]", "batch_size=8", "steps=8",
    "steps_per_dispatch=4", "evaluate_every=8", "checkpoint_every=4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path, not imported yet."""
    folder = tmp_path / "package"
    folder.mkdir()
    path = folder / "own_pieces.py"
    path.write_text(EXAMPLE + OTHERS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_pieces", raising=False)
    return path


def experiment(factory: str, arguments: str = "{}", *more: str):
    schedule = f'{{"kind":"import","target":"own_pieces:{factory}"'
    schedule += f',"arguments":{arguments},"every":2,"reads":["rms"]}}'
    settings = [*SETTINGS, f"schedule={schedule}", *more]
    return overrides.apply(load("digits-cpt"), settings)


def test_a_run_uses_them_and_is_repeated_to_the_bit(tmp_path: Path):
    recipe = (
        '{"kind":"import","target":"own_pieces:percentile","arguments":{"percent":99}}'
    )
    own = experiment(
        "by_gradient_norm", '{"low":4,"high":7}', f"scaling.weight={recipe}"
    )
    outcomes = [running.run(own, out=tmp_path / each) for each in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].state == "done"
    columns = metrics.read(store.locate(tmp_path / "a", own) / store.METRICS)
    assert set(columns["bits/Dense_0/forward.weight"].values()) <= {4.0, 7.0}


def test_the_source_is_a_part_of_the_runs_id(package: Path):
    own = experiment("by_gradient_norm", '{"low":4,"high":7}')
    before = identity.run_id(own)
    assert identity.run_id(own) == before
    package.write_text(package.read_text().replace("0.9", "0.8"))
    assert identity.run_id(own) != before


@pytest.mark.parametrize(
    ("factory", "arguments", "fault"),
    [
        ("by_gradient_norm", "{}", "low: Missing required argument"),
        ("by_gradient_norm", '{"low":"x","high":8}', "should be a valid integer"),
        ("nothing", "{}", "own_pieces:nothing must return a Schedule, got int."),
        ("forgetful", "{}", "The plan has no entry for the contractions"),
        ("unsound", "{}", "must be finite"),
        ("missing", "{}", "no 'missing' there"),
    ],
)
def test_a_wrong_piece_is_one_sentence_before_training(factory, arguments, fault):
    with pytest.raises(InputError) as error:
        build(experiment(factory, arguments))
    assert any(fault in sentence for sentence in error.value.args)


def test_a_target_that_is_none_is_refused_by_the_config():
    with pytest.raises(InputError, match=r"schedule\.target should match pattern"):
        overrides.apply(
            load("digits-cpt"), ['schedule={"kind":"import","target":"../evil"}']
        )


def test_a_new_schedule_runs_and_passes_its_test(tmp_path: Path, capsys):
    call = ["adaprec", "new", "schedule", "halves", "--folder", str(tmp_path / "own")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", call)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    schedule, test = (tmp_path / "own" / f"{each}halves.py" for each in ("", "test_"))
    assert len(schedule.read_text().splitlines()) <= 24
    assert f"pytest {test}" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path / "own",
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("name", ["../evil", "two words", "Upper", "3d", ""])
def test_a_name_that_is_no_identifier_is_refused(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="Python identifier in lower case"):
        new_schedule(name, tmp_path)


def test_what_is_there_is_never_overwritten(tmp_path: Path):
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(InputError, match="exist already; nothing was written"):
        new_schedule("mine", tmp_path)
    assert [path.name for path in tmp_path.glob("*mine.py")] == ["test_mine.py"]
