"""Import targets: what they make, where they come from, what is said of wrong ones."""

import hashlib
import importlib.metadata
from pathlib import Path

import pytest

from adaprec_jax.runs import imports
from adaprec_jax.runs.config import Imported
from adaprec_jax.runs.errors import InputError

PIECES = '''
"""Pieces."""
from collections.abc import Sequence
def make(low: int, high: int = 8, *, steps: int, shares: Sequence[float] = ()):
    return low, high, steps, tuple(shares)
def fails():
    raise RuntimeError("no luck\\nat all")
number = 3
'''


@pytest.fixture(autouse=True)
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of somebody's own on the path."""
    path = tmp_path / "somebodys_pieces.py"
    path.write_text(PIECES)
    (tmp_path / "broken_pieces.py").write_text("raise OSError('no disk')")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_factory_gets_its_arguments_and_what_it_asks_for():
    arguments = {"low": 3, "shares": [0.5]}
    piece = Imported(target="somebodys_pieces:make", arguments=arguments)
    made = imports.make(tuple, piece, steps=10, outputs=4)
    assert made == (3, 8, 10, (0.5,))


def test_the_origin_is_the_file_and_the_distribution(pieces: Path):
    digest = hashlib.sha256(pieces.read_bytes()).hexdigest()
    assert imports.origin("somebodys_pieces:make") == {
        "distribution": None, "version": None, "sha256": digest,
    }  # fmt: skip
    there = imports.origin("optax.losses:squared_error")
    assert there["distribution"] == "optax"
    assert there["version"] == importlib.metadata.version("optax")


@pytest.mark.parametrize(
    ("target", "arguments", "fault"),
    [
        ("somebodys_pieces", {}, "An import target is package.module:factory"),
        (":make", {}, "An import target is package.module:factory"),
        ("nobodys.pieces:make", {}, "failed: ModuleNotFoundError: No module named"),
        ("broken_pieces:make", {}, "Importing broken_pieces:make failed: OSError: no"),
        ("somebodys_pieces:mke", {}, "no 'mke' there; did you mean 'make'?"),
        ("somebodys_pieces:make", {"lo": 3}, "takes no 'lo'; did you mean 'low'?"),
        ("somebodys_pieces:make", {}, "low: Missing required"),
        ("somebodys_pieces:make", {"low": "x"}, "low should be an integer"),
        (
            "somebodys_pieces:fails",
            {},
            "somebodys_pieces:fails, line 7: RuntimeError: no luck",
        ),
        ("somebodys_pieces:number", {}, "cannot be called: 3 is not a callable"),
    ],
)
def test_a_wrong_target_is_one_sentence(target: str, arguments: dict, fault: str):
    piece = Imported.model_construct(target=target, arguments=arguments)
    with pytest.raises(InputError) as error:
        imports.make(tuple, piece, steps=10)
    [sentence] = error.value.args
    assert fault in sentence
    assert "\n" not in sentence


def test_a_module_that_is_not_there_has_no_origin():
    with pytest.raises(InputError, match="no source file of the module 'nobodys'"):
        imports.origin("nobodys:make")
