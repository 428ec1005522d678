"""Whole experiments from Python: `experiment`, `run`, `load`, the table of metrics."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaprec_jax import Run, experiment, load, run
from adaprec_jax.runs import identity, metrics, run as running, store
from adaprec_jax.runs.config import CPT, Experiment
from adaprec_jax.runs.errors import InputError

TINY = {
    "task.kind": "teacher", "task.size": 64, "model.hidden": [4], "batch_size": 8,
    "schedule": CPT(cycles=2), "steps": np.int64(40), "steps_per_dispatch": 4,
    "evaluate_every": 20, "checkpoint_every": 8, "log_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def ended(folder: Path) -> Run:
    """A run that was trained once for all tests, which only read it."""
    return run(experiment("digits-cpt", TINY), out=folder)


def begun(folder: Path, lines: str) -> Path:
    """Returns the directory of a run that was killed after these lines."""
    own = experiment("digits-cpt", TINY | {"seed": 7})
    directory = folder / f"digits-cpt-{identity.run_id(own)}"
    directory.mkdir()
    (directory / store.CONFIG).write_text(json.dumps(own.model_dump(mode="json")))
    record = {"run_id": identity.run_id(own), "data": "", "sessions": []}
    (directory / store.ENVIRONMENT).write_text(json.dumps(record))
    (directory / store.METRICS).write_text(lines)
    return directory


def test_settings_are_python_values_objects_of_the_config_or_arrays_numbers():
    own = experiment("digits-cpt", TINY)
    assert isinstance(own, Experiment)
    assert own.schedule == CPT(cycles=2)
    assert (own.steps, own.model.hidden, own.task.kind) == (40, (4,), "teacher")
    assert experiment("digits-cpt") == experiment("digits-cpt", {})


def test_the_command_gives_the_same_run_for_the_same_settings():
    from adaprec_jax.runs import overrides
    from adaprec_jax.runs.load import load as load_config

    typed = overrides.apply(load_config("digits-cpt"), ["steps=40", "seed=3"])
    made = experiment("digits-cpt", {"steps": 40, "seed": 3})
    assert identity.run_id(made) == identity.run_id(typed)


@pytest.mark.parametrize(
    ("config", "settings", "fault"),
    [
        ("digits-ctp", {}, "Unknown config 'digits-ctp'; did you mean"),
        ("digits-cpt", {"stepz": 3}, "Unknown setting 'stepz'; did you mean 'steps'"),
        ("digits-cpt", {"steps": "many"}, "steps"),
        ("digits-cpt", {"schedule.min_bits": [3]}, "min_bits"),
    ],
)
def test_what_does_not_fit_is_a_sentence(config, settings, fault):
    with pytest.raises(InputError, match=fault):
        experiment(config, settings)


def test_a_run_has_its_directory_id_state_and_results(ended: Run, folder: Path):
    assert ended.directory.parent == folder
    assert ended.directory.name == f"digits-cpt-{ended.id}"
    assert (ended.state, ended.step, ended.message) == ("done", 40, "")
    assert ended.experiment == experiment("digits-cpt", TINY)
    status = json.loads((ended.directory / store.STATUS).read_text())
    assert ended.results == status["results"]


def test_a_run_that_is_over_is_returned_and_not_trained_again(
    ended: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running, "run", lambda *_, **__: pytest.fail("it trains"))
    again = run(experiment("digits-cpt", TINY), out=folder)
    assert repr(again) == repr(ended)
    assert again.results == ended.results


def test_what_changed_since_a_run_is_a_warning(ended: Run, folder: Path):
    path = ended.directory / store.ENVIRONMENT
    written = path.read_text()
    record = json.loads(written)
    record["sessions"][-1]["jax"] = "0.0.1"
    path.write_text(json.dumps(record))
    try:
        with pytest.warns(UserWarning, match=r"jax was 0\.0\.1, is "):
            run(experiment("digits-cpt", TINY), out=folder)
    finally:
        path.write_text(written)


def test_a_run_is_found_by_path_id_and_name(ended: Run, folder: Path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    found = (
        load(ended.directory),
        load(str(ended.directory)),
        load(ended.id, out=folder),
        load(ended.directory.name, out=folder.name),
    )
    assert {each.id for each in found} == {ended.id}
    with pytest.raises(InputError, match="'nothing' means no runs in"):
        load("nothing", out=folder)
    with pytest.raises(InputError, match="means no runs"):
        load(folder / "digits-cpt-000000000000")


def test_the_table_holds_what_the_file_says_each_step_once(ended: Run):
    columns = metrics.read(ended.directory / store.METRICS)
    table = ended.metrics
    assert [*table] == ["step", *columns]
    steps = sorted({step for column in columns.values() for step in column})
    assert table["step"].tolist() == steps
    for name, column in columns.items():
        assert table[name].shape == (len(steps),)
        at, values = table.points(name)
        known = dict(zip(at.tolist(), values.tolist(), strict=True))
        assert column.items() <= known.items(), name
        if name.partition("/")[0] not in ("bits", "cost", "plan"):
            assert known == column, name


def test_bits_and_costs_hold_until_they_change(ended: Run):
    table = ended.metrics
    bits = table["bits/Dense_0/forward.weight"]
    written = metrics.read(ended.directory / store.METRICS)[
        "bits/Dense_0/forward.weight"
    ]
    expected, now = [], None
    for step in table["step"].tolist():
        now = written.get(step, now)
        expected.append(now)
    assert bits.tolist() == expected
    assert not np.isnan(table["cost"]).any()
    assert np.isnan(table["validation/now/loss"]).sum() == len(table["step"]) - 2


def test_an_unknown_column_names_the_one_that_was_meant(ended: Run):
    with pytest.raises(KeyError, match="There is no column 'los'; did you mean 'loss'"):
        ended.metrics["los"]
    assert "los" not in ended.metrics


def test_the_displays_say_how_it_ended_and_what_was_measured(ended: Run):
    shown, text = ended._repr_html_(), repr(ended)
    for each in (shown, text):
        assert "digits-cpt, done after 40 steps" in each
        assert str(ended.directory) in each
        assert "test/highest/loss" in each
    table = ended.metrics._repr_html_()
    assert all(name in table for name in ended.metrics if name != "step")
    assert len(repr(ended.metrics).splitlines()) == len(ended.metrics)
    evil = ended._replace(state="failed", message="<script>")
    assert "<script>" not in evil._repr_html_()
    assert "failed after 40 steps: <script>" in repr(evil)


def test_a_run_that_was_killed_is_read_as_far_as_it_got(tmp_path: Path):
    directory = begun(tmp_path, '{"step":1,"loss":2.5}\n{"step":2,"loss":1.5}\n{"st')
    found = load(directory)
    assert (found.state, found.step, found.results) == ("interrupted", 2, {})
    assert found.metrics["loss"].tolist() == [2.5, 1.5]
    assert "interrupted after 2 steps" in repr(found)


def test_a_run_without_a_row_has_an_empty_table(tmp_path: Path):
    directory = begun(tmp_path, "")
    for _ in range(2):
        found = load(directory)
        assert [*found.metrics] == ["step"]
        assert (found.step, len(found.metrics["step"])) == (0, 0)
        assert found.metrics._repr_html_()
        (directory / store.METRICS).unlink(missing_ok=True)


def test_damaged_metrics_are_refused_with_the_line(tmp_path: Path):
    directory = begun(tmp_path, '{"step":1,"loss":2.5}\n{"step":\n')
    with pytest.raises(InputError, match="is damaged at line 2"):
        load(directory)
    (directory / store.ENVIRONMENT).write_text("{")
    (directory / store.METRICS).write_text("")
    with pytest.raises(InputError, match=r"environment\.json is damaged"):
        load(directory)


def test_reading_a_run_imports_no_jax(ended: Run):
    program = (
        "import sys; from adaprec_jax import experiment, load, run;"
        f"print(load({str(ended.directory)!r}).state, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("done False\n", "")
