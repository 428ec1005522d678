"""Pieces of somebody's own, named in a config: what they do, and what is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import formats, scaling
from adaprec_jax.cli import main
from adaprec_jax.runs import (
    identity,
    imports,
    metrics,
    overrides,
    run as running,
    store,
)
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

def slip():
    def update(step, stats, state):
        return state.tables, state
    return ap.schedules.Schedule(ap.schedules.Scope, update)

def branches():
    def update(step, stats, scope):
        bits = 4 if step < 3 else 8
        entry = ap.plan.integers(bits, 8)
        return {c.name: ap.plan.fill(c, entry) for c in scope.table.contractions}, scope
    return ap.schedules.Schedule(ap.schedules.Scope, update)

def drifts():
    def update(step, stats, state):
        entry = ap.plan.integers(8, 8)
        plan = {c.name: ap.plan.fill(c, entry) for c in state[0].table.contractions}
        return plan, (state[0], state[1].astype(jnp.float32))
    init = lambda table: (ap.schedules.Scope(table), jnp.int32(3))
    return ap.schedules.Schedule(init, update)

def too_many(outputs):
    import flax.linen as nn
    return nn.Dense(outputs + 2)

def nothing():
    return 3

def silent():
    return lambda table, plan: None

def halved(outputs):
    import flax.linen as nn
    class Halved(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(outputs)(x.reshape(7, -1))
    return Halved()

def fickle(outputs):
    import flax.linen as nn
    calls = []
    class Fickle(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(x)
            a, b = (self.param(n, nn.initializers.ones, (16, outputs)) for n in "ab")
            return x @ (a if len(calls) % 2 else b)
    return Fickle()

def grown():
    return lambda x, fmt, key: jnp.concatenate([x, x])

def points(dtype="float32", value="0", classes=1, labels="int32"):
    import numpy as np
    from adaprec_jax.tasks.task import from_arrays
    targets = np.arange(64).astype(labels) % classes
    return from_arrays(np.full((64, 16), float(value), dtype), targets)

def rows():
    return lambda table, plan: jnp.zeros(3)

def deaf(fails: bool = False):
    from adaprec_jax.runs.sinks import Sink
    if fails:
        raise OSError("no server")
    def write(step, values):
        raise OSError("the line is dead")
    return Sink(write)
"""
WIDE = """
def wide(outputs):
    import flax.linen as nn
    return nn.Dense(outputs)
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
    schedule += f',"arguments":{arguments}}}'
    settings = [*SETTINGS, f"schedule={schedule}", *more]
    return overrides.apply(load("digits-cpt"), settings)


@pytest.mark.slow
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
        ("by_gradient_norm", '{"low":"x","high":8}', "low should be an integer"),
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


def line_of(text: str) -> int:
    lines = (EXAMPLE + OTHERS).splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def with_settings(*settings: str):
    return overrides.apply(overrides.apply(load("digits-cpt"), SETTINGS), settings)


def own(name: str, **arguments: object) -> str:
    target = f"own_pieces:{name}"
    return json.dumps({"kind": "import", "target": target, "arguments": arguments})


def supervised(**arguments: object) -> str:
    data = f'"data":{own("points", **arguments)},"outputs":4'
    return f'task={{"kind":"supervised",{data}}}'


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        (f"schedule={own('slip')}", f"slip, line {line_of('tables')}: AttributeErr"),
        (f"schedule={own('branches')}", f"branches, line {line_of('bits = 4 if')}: Tr"),
        (f"schedule={own('drifts')}", "has float32[] at '[1]' after a step, int32[]"),
        (f"model={own('too_many')}", "outputs (8, 6) must be logits, (8, 4)"),
        (f"model={own('nothing')}", "nothing must return a function, got int."),
        (f"model={own('halved', width=3)}", "halved takes no 'width'; known are"),
        (f"model={own('halved')}", f"halved, line {line_of('reshape(7')}: TypeError"),
        (f"model={own('fickle')}", "own_pieces:fickle multiplies something else each"),
        (f"task={own('nothing')}", "own_pieces:nothing must return a Task, got int."),
        (supervised(dtype="float64"), "is float64; allowed are uint8, int32 and"),
        (supervised(value="inf"), "the data must be finite"),
        (f'costs=[{own("rows")[:-1]},"name":"rows"}}]', "result is a number, got Sh"),
        (supervised(labels="float32"), "Classes are whole numbers, int32, got float32"),
        (supervised(classes=7), "outputs is 4, but the classes are 0 to 6."),
        (f'costs=[{own("silent")[:-1]},"name":"s"}}]', "result is a number, got None"),
        (f'costs=[{own("nothing")[:-1]},"name":"n"}}]', "must return a function, got"),
        (f"scaling.weight.quantizer={own('nothing')}", "must return a function, got"),
        (f"scaling.weight.quantizer={own('grown')}", "own_pieces:grown: ValueError"),
    ],
)  # fmt: skip
def test_a_wrong_piece_of_any_kind_is_one_sentence(setting: str, fault: str):
    with pytest.raises(InputError) as error:
        build(with_settings(setting))
    assert any(fault in sentence for sentence in error.value.args), error.value.args


def test_a_sink_that_fails_is_told_of_and_stops_nothing(tmp_path: Path, capsys):
    with_sink = with_settings(f"sinks=[{own('deaf')}]")
    outcome = running.run(with_sink, out=tmp_path)
    assert outcome.state == "done"
    said = capsys.readouterr().err
    assert said.count("sinks.0 is left out from here on: own_pieces:deaf, line") == 1
    assert "OSError: the line is dead" in said
    assert identity.run_id(with_sink) == identity.run_id(with_settings())


def test_a_sink_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    setting = f"sinks=[{own('deaf', fails=True)}]"
    with pytest.raises(InputError, match=r"own_pieces:deaf, line \d+: OSError: no s"):
        running.run(with_settings(setting), out=tmp_path)


def test_a_quantizer_rounds_all_but_float32():
    def zeros(x, fmt, key):
        return jnp.zeros_like(x)

    recipe = scaling.current(quantizer=zeros)
    x = jnp.array([1.5, -2.25])
    kept, _ = recipe.round(x, formats.get("float32"), (), axes=(0,), key=None)
    lost, _ = recipe.round(x, formats.get("int8"), (), axes=(0,), key=None)
    np.testing.assert_array_equal(kept, x)
    np.testing.assert_array_equal(lost, 0 * x)


def test_a_file_that_changed_after_its_import_is_refused(package: Path):
    own = experiment("by_gradient_norm", '{"low":4,"high":7}')
    importlib.import_module("own_pieces")
    build(own)
    package.write_text(package.read_text().replace("bits = 4 if", "bits = 5 if"))
    with pytest.raises(InputError, match="changed after it was imported; start Python"):
        build(own)


def test_arguments_are_checked_before_the_module_is_imported(package: Path):
    package.write_text("raise SystemExit(9)\n" + package.read_text())
    with pytest.raises(InputError, match="low: Missing required argument"):
        imports.check(experiment("by_gradient_norm", "{}"))
    with pytest.raises(InputError, match="takes no 'lo'; did you mean 'low'"):
        imports.check(experiment("by_gradient_norm", '{"lo":1,"low":1,"high":2}'))
    imports.check(experiment("by_gradient_norm", '{"low":4,"high":7}'))


def test_the_rule_of_somebodys_own_schedule_is_not_blamed_for_a_pattern():
    inner = own("by_gradient_norm", low=4, high=7)
    rules = f'[{{"pattern":"nope","schedule":{inner}}}]'
    default = '{"kind":"float32"}'
    layers = f'schedule={{"kind":"per_layer","rules":{rules},"default":{default}}}'
    with pytest.raises(InputError, match=r"^The rule 'nope' matches none"):
        build(with_settings(layers))


def test_other_data_than_the_run_began_with_is_refused(package: Path, tmp_path: Path):
    package.write_text(package.read_text() + WIDE)
    began = with_settings(supervised(), f"model={own('wide')}")
    directory = store.locate(tmp_path, began)
    with store.session(directory, began, {}, "abc"):
        pass
    with pytest.raises(InputError, match="began with other data"):
        running.run(began, out=tmp_path)


def test_a_target_that_is_none_is_refused_by_the_config():
    with pytest.raises(InputError, match=r"schedule\.target: it must be package"):
        overrides.apply(
            load("digits-cpt"), ['schedule={"kind":"import","target":"../evil"}']
        )


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["../evil", "two words", "Upper", "3d", "", "class"])
def test_a_name_that_is_no_identifier_is_refused(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="Python identifier in lower case"):
        new_schedule(name, tmp_path)


def test_what_is_there_is_never_overwritten(tmp_path: Path):
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(InputError, match="exist already; nothing was written"):
        new_schedule("mine", tmp_path)
    assert [path.name for path in tmp_path.glob("*mine.py")] == ["test_mine.py"]
