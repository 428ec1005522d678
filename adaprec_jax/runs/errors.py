"""The error that the command prints and answers with exit code 2."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """Something that was given cannot be used; `args` holds one sentence per fault."""

    def __str__(self) -> str:
        """Returns one line per fault."""
        return "\n".join(map(str, self.args))


def suggest(word: str, known: Iterable[str], *, name_all: bool = False) -> str:
    """Returns the end of a sentence that says which word may have been meant.

    Args:
        word: What was given.
        known: All words that mean something.
        name_all: Whether to name all of them beside a near one.

    >>> suggest("stepz", ["seed", "steps"])
    "did you mean 'steps'?"
    >>> suggest("lr", ["seed", "steps"])
    'known are seed, steps.'
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    names = ", ".join(known)
    if not close:
        return f"known are {names}."
    meant = f"did you mean {close[0]!r}?"
    return f"{meant} Known are {names}." if name_all else meant


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Says in one sentence which file could not be written, and why.

    Raises:
        InputError: The block raised an `OSError`: no permission, no space, and so on.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}. What is there already is kept."
        ) from error
