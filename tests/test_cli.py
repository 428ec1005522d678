import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from adaprec_jax import formats
from adaprec_jax.cli import main
from adaprec_jax.runs import environment, identity, overrides, store
from adaprec_jax.runs.config import CPT
from adaprec_jax.runs.load import load
from adaprec_jax.runs.store import Outcome

TINY = load("digits-cpt")
DONE = Outcome("done", 600, {"test/accuracy": 0.96875})


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


@pytest.fixture
def trained(monkeypatch):
    """Puts functions that only note their arguments in the place of training."""
    calls: list[tuple[object, ...]] = []
    outcome = [DONE]

    def run(experiment, *, out):
        calls.append((experiment, out))
        directory = store.locate(out, experiment)
        with store.session(directory, experiment, environment.code(), "made up"):
            store.finish(directory, outcome[0])
        return outcome[0]

    def resume(directory, sinks):
        calls.append((directory,))
        return outcome[0]

    fakes = {"run": {"run": run, "resume": resume}}
    fakes["demo"] = {"demo": lambda **options: calls.append((options,))}
    for name, functions in fakes.items():
        module = types.ModuleType(f"adaprec_jax.runs.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(calls=calls, outcome=outcome)


def test_show_prints_each_value_and_where_it_came_from(adaprec):
    code, out, err = adaprec("show", "digits-cpt", "--set", "seed=3")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert rows["seed"] == ["3", "command", "line"]
    assert rows["schedule.kind"] == ["cpt", "file"]
    assert rows["optimizer.b1"] == ["0.9", "default"]
    seeded = overrides.apply(TINY, ["seed=3"])
    assert rows["run"] == ["id", identity.run_id(seeded)]


def test_show_as_json_holds_a_config_that_can_be_run(adaprec, tmp_path):
    _, out, _ = adaprec("show", "digits_cpt", "--seed", "3", "--json")
    shown = json.loads(out)
    assert shown["sources"]["seed"] == "command line"
    (tmp_path / "again.json").write_text(json.dumps(shown["config"]))
    _, out, _ = adaprec("show", "again.json", "--json")
    assert json.loads(out)["run_id"] == shown["run_id"]
    assert set(json.loads(out)["sources"].values()) == {"file"}


def test_a_note_stands_below_what_is_shown_and_before_a_run(adaprec, trained):
    short = ["digits-cpt", "--set", 'schedule={"kind":"deficit","length":0}']
    note = "schedule.length is 0: there is no deficit."
    code, out, err = adaprec("show", *short)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"note: {note}"
    _, out, _ = adaprec("show", *short, "--json")
    assert json.loads(out)["notes"] == [note]
    code, out, err = adaprec("run", *short, "--json")
    assert (code, err) == (0, f"note: {note}\n")
    assert json.loads(out)["state"] == "done"


def test_formats_lists_every_format_with_range_and_spacing(adaprec):
    code, out, _ = adaprec("formats")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert code == 0
    assert set(rows) == set(formats.names())
    assert rows["float8_e5m2"] == [
        "8", "±57344", "2^-14", "2^-16", "2^-2", "infinity",
    ]  # fmt: skip
    assert rows["uint4"] == ["4", "0", "to", "15", "1", "1", "1", "saturates"]
    listed = json.loads(adaprec("formats", "--json")[1])
    assert [row["name"] for row in listed] == list(formats.names())


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (
            ["show", "digits-cpx"],
            ["Unknown config 'digits-cpx'; did you mean 'digits-"],
        ),
        (
            ["show", "missing.py"],
            ["Cannot read missing.py: No such file or directory."],
        ),
        (
            ["run", "digits-cpt", "--set", "steps=0", "--set", "lr=1"],
            ["Unknown setting 'lr'; known are name, tags"],
        ),
        (
            ["run", "digits-cpt", "--set", "steps=0", "--set", "batch_size=0"],
            ["steps should be at least 1", "batch_size should be at least 1"],
        ),
        (
            ["run", "digits-cpt", "--seed", "1", "--set", "seed=2"],
            ["seed is set twice"],
        ),
        (["run", "digits-cpt", "--seed", "-1"], ["seed should be at least 0"]),
        (["run", "digits-cpt", "--out", "/dev/null/x"], ["Cannot write /dev/null/x: "]),
        (["demo", "--out", "/dev/null/x"], ["Cannot write /dev/null/x: "]),
        (["resume", "digits"], ["'digits' means no runs in runs; there are none."]),
    ],
)
def test_bad_input_is_one_sentence_per_fault_and_code_2(adaprec, arguments, faults):
    code, out, err = adaprec(*arguments)
    assert (code, out) == (2, "")
    for line, fault in zip(err.splitlines(), faults, strict=True):
        assert line.startswith(f"adaprec: {fault}")


@pytest.mark.parametrize(
    "arguments",
    [["sow"], ["show"], ["show", "digits-cpt", "--seed", "x"], ["formats", "--jsn"]],
)
def test_wrong_usage_is_code_2(adaprec, arguments):
    code, out, err = adaprec(*arguments)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if "Error:" in line]) == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [("done", 0), ("diverged", 0), ("failed", 3), ("interrupted", 130)],
)
def test_run_trains_and_its_code_says_how_it_ended(adaprec, trained, state, code):
    trained.outcome[0] = Outcome(state, 7, {"test/accuracy": 0.5}, "because")
    found, out, err = adaprec("run", "digits-cpt", "--seed", "3", "--out", "here")
    [(experiment, folder)] = trained.calls
    assert experiment == overrides.apply(TINY, ["seed=3"])
    assert (found, err) == (code, "")
    assert "test/accuracy 0.5" in " ".join(out.split())
    assert f"{state} after 7 steps: because" in out
    assert str(store.locate(folder, experiment)) in out


def test_a_second_run_says_already_done_and_where(adaprec, trained, monkeypatch):
    adaprec("run", "digits-cpt")
    code, out, err = adaprec("run", "digits-cpt", "--set", "name=other")
    assert len(trained.calls) == 1
    assert (code, err) == (0, "")
    assert "already done after 600 steps" in out
    assert f"runs/digits-cpt-{identity.run_id(TINY)}" in out
    code_then = environment.code()
    monkeypatch.setattr(environment, "code", lambda: {**code_then, "jax": "2.0"})
    _, _, err = adaprec("run", "digits-cpt")
    assert err == f"adaprec: since that run, jax was {code_then['jax']}, is 2.0.\n"


def test_a_run_that_another_process_holds_is_refused_before_training(adaprec, trained):
    directory = store.locate(Path("runs"), TINY)
    with store.session(directory, TINY, {}, "made up"):
        for arguments in (["run", "digits-cpt"], ["resume", "digits"]):
            code, _, err = adaprec(*arguments)
            assert code == 2
            assert err == f"adaprec: {directory} is in use by another process.\n"
    assert trained.calls == []


def test_resume_needs_nothing_but_the_run(adaprec, trained):
    trained.outcome[0] = DONE._replace(state="interrupted")
    adaprec("run", "digits-cpt")
    trained.outcome[0] = DONE
    code, out, _ = adaprec("resume", identity.run_id(TINY)[:5], "--json")
    assert code == 0
    directory = f"runs/digits-cpt-{identity.run_id(TINY)}"
    assert [str(argument) for argument in trained.calls[1]] == [directory]
    assert json.loads(out) == {"directory": directory, **DONE._asdict()}


def test_demo_hands_its_options_on(adaprec, trained):
    arm = '{"kind":"cpt","min_bits":4}'
    assert adaprec("demo", "--seeds", "3", "--arm", f"x={arm}", "--json")[0] == 0
    [(options,)] = trained.calls
    assert options["seeds"] == 3
    assert options["as_json"] is True
    assert options["more"]["x"].schedule == CPT(min_bits=4)


@pytest.mark.parametrize(
    ("arms", "fault"),
    [
        (["x=4"], "schedule should be an object, got 4."),
        (["x"], "--arm takes NAME=SCHEDULE, got 'x'."),
        (['x={"kind":"cpt"}', 'x={"kind":"cpt"}'], "--arm x is given twice."),
        (['x={"kind":"import","target":"no_such:y"}'], "no source file of the module"),
    ],
)
def test_a_wrong_arm_of_the_demo_is_told_before_training(adaprec, trained, arms, fault):
    options = [part for arm in arms for part in ("--arm", arm)]
    code, _, err = adaprec("demo", *options)
    assert code == 2
    assert fault in err
    assert trained.calls == []


HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "scipy", "sklearn", "ml_dtypes")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "digits-two-threshold", "--json"], 0),
        (["configs"], 0),
        (["formats"], 0),
        (["schedules"], 0),
        (["schedules", "per_layer", "--json"], 0),
        (["schedules", "cptt"], 2),
        (["plot", "digits-two-threshold"], 2),
        (["plot", "digits-cpt", "--out", "x.gif"], 2),
        (["run", "shakespeare-fp8", "--set", "schedule.precision.weight=fp8"], 2),
        (["run", "digits-cpt", "--out", "/dev/null/x"], 2),
    ],
)
def test_answers_come_without_jax_and_without_a_traceback(tmp_path, arguments, code):
    for package in HEAVY:
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('was imported')")
    done = subprocess.run(
        [sys.executable, "-c", "from adaprec_jax.cli import main; main()", *arguments],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_no_heavy_package_is_imported_before_a_run():
    program = (
        "import sys; sys.argv = ['adaprec', 'show', 'digits-cpt', '--json'];"
        "from adaprec_jax.cli import main\n"
        "try: main()\n"
        f"finally: sys.stderr.write(str([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stderr == "[]"
