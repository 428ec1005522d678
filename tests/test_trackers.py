"""Trackers: each row once, whatever was killed, and nothing in them stops a run.

A small module stands in for W&B; the tests of the real packages need the extras
`mlflow`, `tensorboard` and `wandb`.
"""

import glob
import importlib
import math
import signal
import struct
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from adaprec_jax.cli import main
from adaprec_jax.runs import environment, identity, metrics, sinks, store
from adaprec_jax.runs.config import ImportedSink
from adaprec_jax.runs.load import load
from adaprec_jax.runs.sinks import with_sinks
from adaprec_jax.runs.trackers import mlflow, option, tensorboard, tracker, wandb
from adaprec_jax.runs.trackers.tracker import Tracker, in_background

RUN = load("digits-cpt")


def values(step: int) -> dict[str, float]:
    bad = {3: math.nan, 4: math.inf}.get(step, 0.1)
    return {"loss": 2.0 / step, "gradient_norm": bad}


@pytest.fixture
def begun(tmp_path):
    """A run that was begun, by its directory."""
    directory = tmp_path / "runs" / f"digits-cpt-{identity.run_id(RUN)}"
    with store.session(directory, RUN, environment.code(), "made up"):
        pass
    return directory


def session(directory: Path, make, start: int, end: int) -> None:
    """Does what a session of the run does, from one step to another."""
    with metrics.start(directory / store.METRICS, start) as file:
        sink = make(directory, start)
        for step in range(start + 1, end + 1):
            row = values(step)
            metrics.append(file, [step], {n: [v] for n, v in row.items()})
            sink.write(step, row)
            if step % 10 == 0:
                row = {"validation/now/accuracy": step / 100}
                metrics.append(file, [step], {n: [v] for n, v in row.items()})
                sink.write(step, row)
        sink.close()


def stored(directory: Path) -> dict[str, dict[int, float]]:
    return metrics.read(directory / store.METRICS)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tensorbored", "There is no sink 'tensorbored'; did you mean 'tensorboard'?"),
        ("wandb:", "--sink wandb: names no folder"),
        ("mlflow", "pip install 'adaprec-jax[mlflow]'"),
        ("tensorboard", "pip install 'adaprec-jax[tensorboard]'"),
        ("wandb", "pip install 'adaprec-jax[wandb]'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "resume"])
def test_a_wrong_sink_is_one_sentence(capsys, monkeypatch, begun, verb, asked, said):
    for module in ("mlflow", "tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    what = "digits-cpt" if verb == "run" else str(begun)
    arguments = [verb, what, "--sink", asked, "--out", str(begun.parent)]
    monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert (ended.value.code, len(err.splitlines())) == (2, 1)
    assert said in err


def test_a_sink_is_added_once_and_no_part_of_the_id(monkeypatch):
    monkeypatch.setattr(option, "_is_installed", lambda module: True)
    some = option.chosen(["mlflow:http://localhost:5000", "tensorboard"])
    assert some[0].arguments == {"folder": "http://localhost:5000"}
    shown = with_sinks(with_sinks(RUN, some), some)
    assert shown.sinks == some
    assert identity.run_id(shown) == identity.run_id(RUN)


def lazy(directory: Path, start: int, how: str) -> sinks.Sink:
    """A sink whose tracker goes wrong in some way, after two rows at the latest."""

    def broken(rows):
        if how == "exits":
            sys.exit("no key")
        if how == "hangs":
            threading.Event().wait()
        raise ConnectionError("the server is gone")

    def opened() -> Tracker:
        if how == "never":
            raise ConnectionError("there is no server")
        if how == "at the end":
            return Tracker(lambda rows: None, lambda: broken(()))
        return Tracker(broken, lambda: None)

    return in_background(opened, [])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("never", "there is no server"),
        ("breaks", "the server is gone"),
        ("exits", "no key"),
        ("hangs", "for 0.3 seconds"),
        ("at the end", "the server is gone"),
    ],
)
def test_a_tracker_that_fails_is_told_of_once_and_left_out(
    begun, monkeypatch, how, said
):
    monkeypatch.setattr(tracker, "PATIENCE", 0.3)
    monkeypatch.setattr(tracker, "_WAITING", 5)
    target = f"{__name__}:lazy"
    monkeypatch.setattr(sinks.imports, "_source", lambda target: Path(__file__))
    monkeypatch.setattr(sinks.imports, "_factory", lambda target: lazy)
    own = ImportedSink(target=target, arguments={"how": how})
    told: list[str] = []
    with sinks.opened(with_sinks(RUN, [own]), begun, 0, told.append) as write:
        for step in range(1, 40):
            write([step], {"loss": [1.0]})
    assert len(told) == 1
    assert "sinks.0 is left out from here on" in told[0]
    assert said in told[0] or (how == "hangs" and "within 0.3 seconds" in told[0])


class Wandb(types.ModuleType):
    """W&B, as far as it is used; a row below `step` is dropped, as W&B does."""

    def __init__(self, *, known: bool):
        super().__init__("wandb")
        self.known, self.made, self.rows = known, [], []

    def login(self, *, prompt, verify):
        assert (prompt, verify) == (False, False)
        return self.known

    def Settings(self, **settings):
        return settings

    def init(self, **asked):
        self.made.append(asked)
        ended = lambda exit_code: self.made.append({"exit_code": exit_code})
        step = 1 + max((step for step, _ in self.rows), default=-1)
        return types.SimpleNamespace(
            step=step,
            log=lambda values, step: self.rows.append((step, values)),
            finish=ended,
        )


def test_wandb_online_goes_on_after_what_it_has(begun, monkeypatch):
    fake = Wandb(known=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    session(begun, wandb.sink, 0, 25)
    session(begun, wandb.sink, 20, 40)  # killed, and taken up at a checkpoint
    ids = [made["id"] for made in fake.made if "id" in made]
    assert ids == [identity.run_id(RUN)] * 2
    assert {made["resume"] for made in fake.made if "id" in made} == {"allow"}
    steps = [step for step, row in fake.rows if "loss" in row]
    assert steps == [*range(1, 41)]
    assert [s for s, row in fake.rows if "loss" not in row] == [10, 20, 30, 40]
    assert fake.made[-1] == {"exit_code": 1}  # 40 of 600 steps


def test_wandb_without_a_key_records_offline_and_anew(begun, monkeypatch):
    fake = Wandb(known=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    mine = begun / "wandb" / f"offline-run-2026-{identity.run_id(RUN)}"
    other = begun / "wandb" / "offline-run-2026-abcabcabcabc"
    mine.mkdir(parents=True)
    other.mkdir()
    session(begun, wandb.sink, 0, 5)
    fake.rows.clear()  # what was recorded is deleted, and recorded again
    session(begun, wandb.sink, 5, 7)
    assert [step for step, _ in fake.rows] == [*range(1, 8)]
    assert (mine.exists(), other.exists()) == (False, True)
    assert {made["mode"] for made in fake.made if "id" in made} == {"offline"}


# The real packages ----------------------------------------------------------------


def from_tensorboard(directory: Path) -> list[tuple[str, int, float]]:
    """Reads records of length, checksum, event, checksum, without TensorBoard."""
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    (path,) = glob.glob(f"{directory}/tensorboard/events.out.tfevents.*")
    data, found = Path(path).read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = events.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found += [
            (value.tag, event.step, value.simple_value)
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
    return found


def from_wandb(directory: Path) -> list[tuple[str, int, float]]:
    """Reads the recording that `wandb sync` would send, once it is written to the end.

    A process of W&B's own writes it, and is not waited for by `finish`.
    """
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):
        found, ended = wandb_rows(path.read_bytes())
        if ended:
            return found
        time.sleep(0.2)
    raise AssertionError("The recording does not end.")


def wandb_rows(data: bytes) -> tuple[list[tuple[str, int, float]], bool]:
    """Seven bytes, then blocks of 32 KiB with parts of records."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    at, found, whole, ended = 7, [], b"", False
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # neither whole nor the last part
            continue
        record, whole = records.Record.FromString(whole), b""
        ended = ended or record.WhichOneof("record_type") == "exit"
        row = {
            "/".join(item.nested_key) or item.key: item.value_json
            for item in record.history.item
        }
        step = int(row.pop("_step", "0"))
        found += [
            (name, step, float(text.strip('"')))
            for name, text in row.items()
            if not name.startswith("_")
        ]
    return found, ended


def from_mlflow(directory: Path) -> list[tuple[str, int, float]]:
    package = importlib.import_module("mlflow")
    client = package.MlflowClient(f"sqlite:///{directory.parent.absolute()}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'adaprec'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags[mlflow.TAG] == identity.run_id(RUN)
    assert run.data.params["schedule.min_bits"] == "3"
    assert run.info.status == "KILLED"  # 60 of 600 steps
    return [
        (name, each.step, each.value)
        for name in run.data.metrics
        for each in client.get_metric_history(run.info.run_id, name)
    ]


REAL = {
    "tensorboard": (tensorboard, from_tensorboard),
    "wandb": (wandb, from_wandb),
    "mlflow": (mlflow, from_mlflow),
}


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("name", REAL)
def test_each_row_is_there_once_after_a_kill(begun, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killed = (
        "import os, signal, sys, time, pathlib\n"
        "from tests import test_trackers as t\n"
        "sink = t.REAL[sys.argv[1]][0].sink\n"
        "def slow(directory, start):\n"
        "    made = sink(directory, start)\n"
        "    def write(step, values):\n"
        "        made.write(step, values)\n"
        "        if step == 25: time.sleep(3)\n"
        "        if step == 30: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made._replace(write=write)\n"
        "t.session(pathlib.Path(sys.argv[2]), slow, 0, 60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", killed, name, str(begun)], check=False,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    module, read = REAL[name]
    session(begun, module.sink, 20, 60)
    found = read(begun)
    once = {(metric, step) for metric, step, _ in found}
    assert len(once) == len(found)
    there = {
        (m, s): v for m, column in stored(begun).items() for s, v in column.items()
    }
    assert once == there.keys()
    for metric, step, value in found:
        expected = there[metric, step]
        if name == "mlflow" and math.isinf(expected):
            assert value > 1e308  # MLflow keeps infinity as the largest float64
        else:
            assert value == pytest.approx(expected, rel=1e-6, nan_ok=True)
