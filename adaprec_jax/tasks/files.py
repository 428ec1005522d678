"""Where data files come from, and what is said when one is not right.

A file is looked for in the user's folder and nowhere else if one is given; otherwise
where a system package puts it, then in the cache, and is at last downloaded into the
cache. The cache is the argument, else the folder in the environment variable
`ADAPREC_DATA`, else the user's cache folder. Contents are checked wherever the file
lay, and a download before it enters the cache.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pooch
import requests

T = TypeVar("T")


class DataError(ValueError):
    """A data file is missing, unreadable, damaged or another one."""


class Source(NamedTuple):
    """Where a data set's files may lie.

    Attributes:
        base_url: What a file's name is added to for the download; ends in a slash.
        remedy: What the user can do, as the end of a sentence.
        folder: The user's own; nothing else is tried.
        installed: Where a system package puts the files.
        cache: Where downloads go; None for the default.
    """

    base_url: str
    remedy: str
    folder: str | Path | None = None
    installed: str | Path | None = None
    cache: str | Path | None = None


def read(name: str, source: Source, parse: Callable[[bytes], T]) -> T:
    """Returns the parsed contents of the file `name`.

    Args:
        name: The file's name in each of the places.
        source: The places.
        parse: Reads the contents; raises `DataError` with the rest of a sentence that
            begins with the file, such as "is truncated".

    Raises:
        DataError: The file is missing, cannot be read or downloaded, or its contents
            are refused; one sentence with what to do.
    """
    if source.folder is not None:
        return _parse_file(Path(source.folder) / name, source, parse)
    if source.installed is not None and (Path(source.installed) / name).exists():
        return _parse_file(Path(source.installed) / name, source, parse)
    return _parse_file(_cached(name, source, parse), source, parse)


def check_digest(contents: bytes, sha256: str) -> None:
    """Refuses contents with another sha256.

    >>> check_digest(b"abc", "0" * 64)
    Traceback (most recent call last):
    ...
    adaprec_jax.tasks.files.DataError: has contents with sha256 ba7816bf8f01... where
    000000000000... is expected
    """
    found = hashlib.sha256(contents).hexdigest()
    if found != sha256:
        raise DataError(
            f"has contents with sha256 {found[:12]}... where {sha256[:12]}... is "
            "expected"
        )


def _parse_file(path: Path, source: Source, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(_not_empty(path.read_bytes()))
    except DataError as error:
        raise DataError(f"{path} {error}; {source.remedy}.") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {source.remedy}.") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); {source.remedy}."
        ) from error


def _cached(name: str, source: Source, parse: Callable[[bytes], object]) -> Path:
    """Returns the path of the file in the cache, after a download if need be."""

    def download(url: str, output: str, store: pooch.Pooch) -> None:
        # pooch moves the file into the cache only if this function returns.
        pooch.HTTPDownloader()(url, output, store)
        try:
            parse(_not_empty(Path(output).read_bytes()))
        except DataError as error:
            raise DataError(f"{url} {error}; {source.remedy}.") from error

    try:
        store = pooch.create(
            path=source.cache or pooch.os_cache("adaprec_jax"),
            base_url=source.base_url,
            registry={name: None},
            env=None if source.cache else "ADAPREC_DATA",
        )
        # pooch's type of a downloader names the arguments of its processors.
        return Path(store.fetch(name, downloader=download))  # pyright: ignore[reportArgumentType]
    except OSError as error:  # The network's errors are OSErrors, too.
        offline = isinstance(error, requests.ConnectionError)
        raise DataError(
            f"{name} cannot be downloaded from {source.base_url} "
            f"({'the connection failed' if offline else error}); {source.remedy}."
        ) from error


def _not_empty(contents: bytes) -> bytes:
    if not contents:
        raise DataError("is empty")
    return contents
