"""`adaprec doctor`: what is wrong with a run is found, and nothing is changed."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from adaprec_jax.cli import main
from adaprec_jax.runs import store
from adaprec_jax.runs.doctor import examine
from adaprec_jax.train.checkpoint import damages, saving
from tests import made_up_study


@pytest.fixture
def done(tmp_path):
    """A run that is done, by its directory."""
    study = made_up_study.study(tmp_path, ["digits-cpt"], 1)
    rows = {step: {"loss": 1.0} for step in (1, made_up_study.STEPS)}
    return made_up_study.end(study, tmp_path, "digits-cpt", 0, {}, rows=rows)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sound_run_is_told_to_be_so_without_jax(done):
    code = (
        "import sys; from adaprec_jax.cli import main\n"
        "try:\n    main()\nfinally:\n    print('jax' in sys.modules)"
    )
    before = listing(done)
    ended = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", "--out", str(done.parent)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    told, _, jax_is_there = ended.stdout.rpartition("}\n")
    assert jax_is_there == "False\n"
    tree = json.loads(told + "}")
    assert tree["here"]["numpy"] == np.__version__
    (run,) = tree["runs"]
    assert (run["directory"], run["state"], run["wrong"]) == (str(done), "done", [])
    assert listing(done) == before


def append(path: Path, text: bytes) -> None:
    path.write_bytes(path.read_bytes() + text)


def shorten(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (lambda run: (run / store.STATUS).unlink(), "nobody works on it"),
        (lambda run: (run / store.STATUS).write_text("{"), "status.json is damaged"),
        (lambda run: (run / store.CONFIG).unlink(), "has no config.json"),
        (lambda run: (run / store.CONFIG).write_text("{}"), "config.json"),
        (lambda run: (run / store.ENVIRONMENT).unlink(), "environment.json is missing"),
        (lambda run: append(run / store.METRICS, b"{}\n"), "is damaged at line 3"),
        (lambda run: (run / store.METRICS).unlink(), "metrics.jsonl is missing"),
        (lambda run: shorten(run / store.METRICS), "ends at step 1, but the"),
        (lambda run: (run / "plans.jsonl").write_bytes(b"[\n"), "plans.jsonl is damag"),
        (lambda run: (run / "status.json.tmp").touch(), "status.json.tmp is left from"),
    ],
)  # fmt: skip
def test_each_damage_is_found(done, capsys, monkeypatch, hurt, said):
    hurt(done)
    before = listing(done)
    wrong = examine(done).wrong
    assert any(said in sentence for sentence in wrong), wrong
    monkeypatch.setattr(sys, "argv", ["adaprec", "doctor", "--out", str(done.parent)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert said in capsys.readouterr().out
    assert listing(done) == before


def test_what_a_run_is_writing_is_not_called_damage(done):
    (done / store.STATUS).unlink()
    append(done / store.METRICS, b"{}\n")
    with FileLock(done / ".lock"):
        found = examine(done)
    assert (found.state, found.wrong) == ("running", ())


def test_a_flipped_byte_of_a_checkpoint_is_found(done):
    folder = done / store.CHECKPOINTS
    rng = np.random.default_rng(0)  # bytes that compression leaves in place
    state = {"w": jnp.asarray(rng.normal(size=4096), jnp.float32)}
    with saving(folder, 0) as save:
        save(1, state)
        save(2, state)
    assert damages(folder) == {1: "", 2: ""}
    assert examine(done, checkpoints=True).wrong == ()
    largest = max((folder / "2").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (sentence,) = examine(done, checkpoints=True).wrong
    assert sentence.startswith(f"The checkpoint of step 2 in {folder} is damaged (")
    assert damages(done / "nothing there") == {}
