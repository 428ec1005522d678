"""A published study on disk: which files it holds, and whether they are sound.

    study.json             what `adaprec_jax.studies.study` writes
    runs/NAME-ID/          config, environment, metrics and status of each run
    report/                tables and figures, if there were any
    code/                  source of somebody's own pieces, as text that nobody runs
    environment.json requirements.lock CITATION.cff CHECKLIST.md
    ro-crate-metadata.json
    SHA256SUMS             of every other file, as `sha256sum -c` reads it

A bundle is a stranger's. Nothing in it is run; every path stays inside its folder; what
is not listed, too large, a link, or not as its digest says, is refused before it is
read.
"""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from adaprec_jax.runs.errors import InputError

SUMS, STUDY, RUNS, CODE = "SHA256SUMS", "study.json", "runs", "code"
ENVIRONMENT, LOCK, CITATION = "environment.json", "requirements.lock", "CITATION.cff"
CHECKLIST, CRATE, REPORT = "CHECKLIST.md", "ro-crate-metadata.json", "report"
LARGEST_FILE, LARGEST_BUNDLE = 2**28, 2**33  # bytes
_BLOCK = 2**20


def digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def sums(folder: Path) -> str:
    """Returns a line with digest and path for each file, in the order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(
        f"{digest(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
        if path != folder / SUMS
    )


def check(folder: Path) -> None:
    """Refuses a bundle that is not what its list says.

    Args:
        folder: The bundle.

    Raises:
        InputError: With the first fault: no list, a path that leaves the folder, a
            link, a file that is missing, not listed, too large or changed.
    """
    listed = _listed(folder)
    there = _there(folder)
    total = 0
    for name, size in there.items():
        total += size
        if size > LARGEST_FILE or total > LARGEST_BUNDLE:
            raise InputError(
                f"{folder}: {plain(name)} is too large, or with those before it; "
                f"allowed are {LARGEST_FILE:,} bytes for a file and "
                f"{LARGEST_BUNDLE:,} in all."
            )
        if name not in listed and name != SUMS:
            raise InputError(f"{folder}: {plain(name)} is not listed in {SUMS}.")
    for name, wanted in listed.items():
        if name not in there:
            raise InputError(f"{folder}: {plain(name)} is missing.")
        if digest(folder / name) != wanted:
            raise InputError(
                f"{folder}: {plain(name)} is not the file that was published; its "
                "digest differs."
            )


def plain(text: str) -> str:
    r"""Returns a text without what a terminal would obey.

    >>> print(plain("a\x1b[2J"))
    a\x1b[2J
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _listed(folder: Path) -> dict[str, str]:
    """Returns the digests by path."""
    path = folder / SUMS
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} is a link or too large.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder} is no bundle: cannot read {SUMS}: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not match or not _is_inside(match[2]):
            raise InputError(
                f"{path}, line {number}: a line is a digest, two blanks and a path "
                f"inside the bundle, got {line!r:.120}."
            )
        if match[2] in listed:
            raise InputError(
                f"{path}, line {number}: {plain(match[2])} is there twice."
            )
        listed[match[2]] = match[1]
    return listed


def _is_inside(name: str) -> bool:
    """Returns whether a path stays in its folder on any system."""
    parts = PurePosixPath(name).parts
    return (
        name.isprintable()
        and "\\" not in name
        and ":" not in name
        and "/".join(parts) == name
        and ".." not in parts
        and not name.startswith("/")
    )


def _there(folder: Path) -> dict[str, int]:
    """Returns the size of each file by its path; nothing is followed."""
    found: dict[str, int] = {}
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                    raise InputError(
                        f"{folder}: {plain(name)} is neither a file nor a folder."
                    )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    found[name] = entry.stat(follow_symlinks=False).st_size
    return found
