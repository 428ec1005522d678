"""Checkpoints come back to the bit or are refused, and survive what may happen."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax.train.checkpoint import restore, saving
from adaprec_jax.train.guard import CheckpointError
from tests.small_run import assert_equal, first_state

TREE = {
    "float32": jnp.array([1.5, -0.0, jnp.nan, jnp.inf], jnp.float32),
    "int32": jnp.int32(16777217),
    "flag": jnp.bool_(True),
    "key": jax.random.key(7),
    "keys": jax.random.split(jax.random.key(7), 3),
    "none": jnp.zeros((3, 0), jnp.float32),
    "nested/name": {"a->b": (jnp.zeros(2), jnp.arange(3, dtype=jnp.uint8))},
    **{
        name: jnp.asarray(np.arange(5).astype(getattr(ml_dtypes, name)))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
    },
}
SMALL = {"w": jnp.arange(4096, dtype=jnp.float32), "b": jnp.zeros(3)}


def saved(folder: Path, *steps: int, tree=SMALL) -> Path:
    with saving(folder, 0) as save:
        for step in steps:
            save(step, jax.tree.map(lambda leaf: leaf, tree))
    return folder


def test_every_dtype_comes_back_to_the_bit(tmp_path):
    restored = restore(saved(tmp_path, 3, tree=TREE), jax.tree.map(jnp.copy, TREE))
    assert (restored.step, restored.refused) == (3, ())
    assert_equal(restored.state, TREE)


def test_the_state_is_copied_before_it_is_donated_again(tmp_path):
    state = {"w": jnp.zeros(1 << 20)}
    advance = jax.jit(lambda state: {"w": state["w"] + 1}, donate_argnums=0)
    with saving(tmp_path, 0) as save:
        for step in (1, 2, 3):
            state = advance(state)
            save(step, state)
    assert restore(tmp_path, state).state["w"].mean() == 3


def test_where_nothing_was_saved_there_is_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "not there", SMALL) is None
    assert restore(saved(tmp_path), SMALL) is None


@pytest.mark.parametrize(
    ("template", "difference"),
    [
        (SMALL | {"w": SMALL["w"].astype(jnp.bfloat16)},
         r"\['w'\] is float32\[4096\] there and bfloat16\[4096\] here"),
        (SMALL | {"b": jnp.zeros(4)}, r"'b'\] is float32\[3\] there and float32\[4\]"),
        (SMALL | {"c": jnp.zeros(4)}, r"'c'\] is missing there and float32\[4\] here"),
        ({"w": SMALL["w"]}, r"\['b'\] is float32\[3\] there and missing here"),
        (SMALL | {"b": jax.random.key(0)}, r"'b'\] is float32\[3\] there and key\[2\]"),
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_model_is_refused(tmp_path, template, difference):
    with pytest.raises(CheckpointError, match=difference) as caught:
        restore(saved(tmp_path, 1), template)
    assert len(str(caught.value).splitlines()) == 1


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Orbax leaves reads of other files behind when one fails; they find its loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damage_to_any_file_is_noticed_or_harmless(tmp_path, damage):
    """Never is another state returned, and never another error raised."""
    whole = saved(tmp_path / "whole", 1, 2)
    noticed = 0
    for path in files(whole / "2"):
        broken = tmp_path / "broken"
        shutil.copytree(whole, broken)
        damage(broken / path.relative_to(whole))
        restored = restore(broken, SMALL)
        shutil.rmtree(broken)
        assert_equal(restored.state, SMALL)
        noticed += restored.step == 1
        assert (restored.step == 1) == bool(restored.refused)
        if restored.refused:
            assert restored.refused[0].startswith("the checkpoint of step 2 in ")
    assert noticed >= 4


def test_the_largest_file_holds_the_numbers_and_its_damage_is_named(tmp_path):
    flip(max(files(saved(tmp_path, 1, 2) / "2"), key=lambda path: path.stat().st_size))
    (refused,) = restore(tmp_path, SMALL).refused
    assert "damaged" in refused


def test_where_all_are_damaged_an_error_says_so(tmp_path):
    saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / step / "state")
    with pytest.raises(CheckpointError, match=r"No checkpoint can be used: .*2.*1"):
        restore(tmp_path, SMALL)


def test_checkpoints_of_steps_to_be_taken_again_are_removed(tmp_path):
    saved(tmp_path, 1, 2)
    with saving(tmp_path, 1) as save:
        save(2, {"w": SMALL["w"] + 1, "b": SMALL["b"]})
    restored = restore(tmp_path, SMALL)
    assert restored.step == 2
    assert restored.state["w"][0] == 1


# One write fails and orbax closes its event loop; tensorstore may end another after it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_without_space():
        with saving(tmp_path, 1) as save:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            save(2, SMALL)

    try:
        with pytest.raises(CheckpointError, match=r"step 2 .* is kept\.$") as caught:
            save_without_space()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(caught.value).splitlines()) == 1
    assert restore(tmp_path, SMALL).step == 1


def test_a_disk_that_is_nearly_full_is_not_written_to(tmp_path, monkeypatch, capfd):
    saved(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    def save_without_space():
        with saving(tmp_path, 1) as save:
            save(2, SMALL)

    with pytest.raises(CheckpointError, match=r"step 2 .*1,000 bytes are free"):
        save_without_space()
    assert capfd.readouterr().err == ""
    assert restore(tmp_path, SMALL).step == 1


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=r"Cannot write checkpoints to .*file"),
        saving(tmp_path / "file", 0),
    ):
        pass


def test_training_is_imported_without_orbax_flax_and_pydantic():
    names = "('orbax', 'flax', 'pydantic', 'tensorstore')"
    check = (
        "import sys, adaprec_jax.train, adaprec_jax.train.checkpoint;"
        f"sys.exit(', '.join(n for n in {names} if n in sys.modules) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


def start(folder: Path) -> subprocess.Popen:
    # Compiled programs are kept, so that a restart is soon at work.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killed_run", str(folder)],
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path) -> None:
    output, _ = start(folder).communicate()
    assert output.splitlines()[-1:] == ["done 200"], output


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(folder: Path, step: int, *, in_a_save: bool) -> None:
    """Starts the run and kills it after a step, or in the next save after it."""
    process = start(folder)
    while process.poll() is None and lines(folder) < step:
        time.sleep(0.002)
    while in_a_save and process.poll() is None:
        if list((folder / "checkpoints").glob("*tmp*")):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_anywhere_and_resumed_equals_an_undisturbed_one(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    finish(calm)
    rng = random.Random(0)
    for low, in_a_save in ((1, False), (50, True), (110, False)):
        kill_at(killed, low + rng.randrange(40), in_a_save=in_a_save)
    finish(killed)
    a, b = (restore(folder / "checkpoints", first_state()) for folder in (calm, killed))
    assert (a.step, b.step) == (200, 200)
    assert_equal(a.state, b.state)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (calm, killed)]
    assert metrics[0] == metrics[1]
    assert metrics[0].count(b"\n") == 200
