"""The page that follows a study: who is answered, what is told, and what is drawn."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from adaprec_jax.report.figure import COLOURS
from adaprec_jax.runs import metrics, store
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies import live as watching
from adaprec_jax.studies.live import Curve, Live
from adaprec_jax.studies.serve import server
from adaprec_jax.studies.study import save, study_of
from tests import made_up_study

ARMS = ["digits-float32", "digits-cpt"]
METRIC = "validation/highest/accuracy"
BAD = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Every request looks, and every look asks."""
    monkeypatch.setattr(watching, "_REST", 0.0)
    monkeypatch.setattr(watching, "_ASK", 0.0)


def row(step: int, **more: float) -> dict[str, float]:
    return {"loss": 2.0 / step, **more}


@pytest.fixture
def runs(tmp_path):
    """A study of two arms and two seeds, of which one run is done and one is cut."""
    study = made_up_study.study(tmp_path, ARMS, 2)
    bits = {f"bits/Dense_0/{o}": 3.0 for o in ("forward.weight", "dgrad.gradient")}
    first = {"cost": 0.5, **bits, "saturation_fraction/Dense_0/weight": 0.25}
    rows = {1: row(1, **first), 2: row(2), 300: row(300, **{METRIC: 0.9, "cost": 0.25})}
    made_up_study.end(study, tmp_path, ARMS[0], 0, {}, rows={1: row(1)})
    cut = made_up_study.end(study, tmp_path, ARMS[1], 0, {}, rows=rows)
    (cut / store.STATUS).unlink()
    return study, tmp_path, cut


@contextmanager
def serving(out: Path, study: str = "made-up") -> Iterator[int]:
    with server(Live(study, out), 0) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield served.server_port
        finally:
            served.shutdown()
            thread.join()


def asked(port: int, path: str, method: str = "GET", host: str | None = "localhost"):
    """Sends a path as it is, which urllib would tidy up first."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    return reply.status, reply.read().decode(), dict(reply.headers)


def test_only_this_machine_and_only_get_are_answered(runs):
    with serving(runs[1]) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as reply:
            assert reply.headers["Content-Type"].startswith("text/html")
            assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
        for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1:9", "[::1]:80"):
            assert asked(port, "/", host=host)[0] == 200, host
        refused = ("evil.example", "localhost.evil.example", "localhost:80:80", "")
        for host in (*refused, "127.0.0.1@evil.example", "2130706433", None):
            assert asked(port, "/data", host=host)[0] == 403, host
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            assert asked(port, "/", method)[0] == 405
        assert asked(port, "/", "TRACE")[0] == 501


def test_no_path_leads_to_a_file(runs):
    names = ("made-up.study.json", "../made-up.study.json", "%2e%2e/", "..%2f..%2f")
    with serving(runs[1]) as port:
        paths = [f"/{name}" for name in names] + [
            "//etc/passwd",
            "/live.py",
            "/live.js/",
        ]
        for path in [*paths, "/etc/passwd", f"http://localhost:{port}/", "/data/"]:
            assert asked(port, path)[0] == 404, path
        assert asked(port, "/data?after=x")[0] == 400
        assert asked(port, "/data?after=1e9")[0] == 400


def test_what_is_told_is_what_the_runs_wrote(runs):
    study, out, cut = runs
    told = Live("made-up", out).tell(run=study.cells[2].run_id)
    assert told["order"] == [cell.run_id for cell in study.cells]
    by_id = {run["id"]: run for run in told["runs"]}
    states = [by_id[cell.run_id]["state"] for cell in study.cells]
    assert states == ["done", "new", "interrupted", "new"]
    stored = metrics.read(cut / store.METRICS)
    mine = by_id[study.cells[2].run_id]
    curve = mine["curves"]["loss"]
    assert dict(zip(curve["steps"], curve["values"], strict=True)) == stored["loss"]
    assert mine["curves"][METRIC]["last"] == [300, stored[METRIC][300]]
    # 299 steps at a half, the 300th at a quarter.
    assert mine["cost"] == pytest.approx((299 * 0.5 + 0.25) / 300)
    assert told["metrics"] == {METRIC: True}
    details = told["details"]
    assert details["layers"] == ["Dense_0"]
    assert details["curves"]["bits/forward.weight"]["values"] == [[3]]
    assert details["curves"]["saturation_fraction/weight"]["values"] == [0.25]


def test_only_what_is_new_is_told(runs):
    _, out, cut = runs
    followed = Live("made-up", out)
    told = followed.tell()
    session, after = told["session"], told["look"]
    told = followed.tell(session, after)
    assert (told["runs"], told["order"]) == ([], None)
    path = cut / store.METRICS
    with (
        FileLock(cut / ".lock"),
        metrics.start(path, 300) as file,
    ):  # it is gone on with
        metrics.append(file, [301], {"loss": [0.5]})
        file.write(b'{"step":302,"lo')  # no whole line yet
        (news,) = followed.tell(session, told["look"])["runs"]
    assert (news["state"], news["step"], news["anew"]) == ("running", 301, False)
    assert news["curves"] == {
        "loss": {
            "from": 3, "steps": [301], "values": [0.5], "last": [301, 0.5], "every": 1
        }
    }  # fmt: skip
    assert len(followed.tell("another", after)["runs"]) == 4  # another server's looks


def test_a_run_that_went_back_is_told_anew(runs):
    _, out, cut = runs
    followed = Live("made-up", out)
    told = followed.tell()
    with metrics.start(cut / store.METRICS, 2) as file:  # killed, back at a checkpoint
        steps = [*range(3, 40)]
        metrics.append(file, steps, {"loss": [1.0 + step for step in steps]})
    (news,) = followed.tell(told["session"], told["look"])["runs"]
    assert news["anew"]
    curve = news["curves"]["loss"]
    assert curve["steps"] == [1, 2, *steps]
    assert METRIC not in news["curves"]


def test_damage_and_deletion_are_told_of_and_stop_nothing(runs):
    study, out, cut = runs
    followed = Live("made-up", out)
    told = followed.tell()
    with (cut / store.METRICS).open("ab") as file:
        file.write(b'\x00\xff\n{"step":"x","loss":1}\n[]\n{"step":301,"loss":NaN}\n')
        file.write(b'{"step":302,"loss":1' + b"0" * 400 + b"}\n")
    (out / "made-up.study.json").write_text("[{")
    (done,) = out.glob(f"*-{study.cells[0].run_id}")
    shutil.rmtree(done)
    told = followed.tell(told["session"], told["look"])
    assert "made-up.study.json is damaged" in told["said"]
    by_id = {run["id"]: run for run in told["runs"]}
    assert (
        by_id[study.cells[0].run_id] | {"state": "new", "step": 0, "anew": True}
        == (by_id[study.cells[0].run_id])
    )
    hurt = by_id[study.cells[2].run_id]
    assert hurt["message"] == "Damaged lines of metrics: 3."
    assert hurt["curves"]["loss"]["values"] == [None, None]  # NaN, and beyond float
    (cut / store.STATUS).write_text("{}")
    (hurt,) = followed.tell(told["session"], told["look"])["runs"]
    assert (hurt["state"], "status.json is damaged" in hurt["message"]) == (
        "failed", True,
    )  # fmt: skip
    save(study_of([c.experiment for c in study.cells[1:]], "made-up"), out)
    told = followed.tell(told["session"], told["look"])
    assert (told["said"], len(told["order"])) == ("", 3)


@pytest.mark.parametrize("total", [5, 9, 1000])
def test_a_curve_is_thinned_evenly_and_asked_in_parts_is_the_same(total):
    room, curve = 4, Curve(4)
    shown: list[int] = []
    for step in range(total):
        curve.add(step + 1, step, float(step))
        news = curve.since(step)  # as a page that asks after every row
        assert news is not None
        shown[news["from"] :] = news["steps"]
        assert news["last"] == [step, float(step)]
    whole = curve.since(0)
    assert whole is not None
    assert shown == whole["steps"] == [*range(0, total, whole["every"])]
    assert min(room, total) <= len(shown) <= 2 * room


def test_the_colours_are_those_of_the_figures():
    style = Path(watching.__file__).parents[1] / "report" / "templates" / "live.css"
    light = style.read_text().partition("@media")[0]
    assert tuple(re.findall(r"--c\d: (#\w+);", light)) == COLOURS


def test_the_port_and_the_study_are_said_to_be_wrong_without_jax(runs):
    with serving(runs[1]) as port:
        code = (
            "import sys; from adaprec_jax.cli import main\n"
            "try:\n    main()\nfinally:\n    print('jax' in sys.modules)"
        )
        taken = ("serve", "made-up", "--port", str(port))
        for arguments, said in (
            (taken, f"adaprec: Cannot listen on port {port} of 127.0.0.1: "),
            (("serve", "made-dwn"), "adaprec: There is no study 'made-dwn' in "),
        ):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments, "--runs", str(runs[1])],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 2
            assert done.stderr.startswith(said)
            assert len(done.stderr.splitlines()) == 1
            assert done.stdout == "False\n"
    with pytest.raises(InputError, match="no such port"):
        server(Live("made-up", runs[1]), 70000)


def rendered(port: int, run: str, folder: Path) -> str:
    """Returns the page as Chromium has it after its script has run."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, "This test needs Chromium; leave it out by -m 'not slow'."
    done = subprocess.run(
        [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={folder}", "--window-size=1280,900",
            "--virtual-time-budget=4000", f"http://127.0.0.1:{port}/#{run}",
        ],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
def test_the_page_draws_the_study_and_runs_nothing_of_it(runs, tmp_path):
    study, out, cut = runs
    path = out / "made-up.study.json"
    cells = json.loads(path.read_text())
    for cell in cells:  # A name is checked where it is given, but files can be edited.
        cell["arm"] = f"{BAD} {cell['config']['name']}"
    path.write_text(json.dumps(cells))
    outcome = store.Outcome("failed", 300, {}, BAD)
    store.finish(cut, outcome)
    with serving(out) as port:
        page = rendered(port, study.cells[2].run_id, tmp_path / "chromium")
    assert "1 of 4 runs have a result, 3 are holes" in page
    assert "<img" not in page
    assert page.count("<script") == 1  # its own
    assert "&lt;script&gt;alert(1)" in page
    for drawn in ("Training loss", "Validation, highest/accuracy", "Precision of each"):
        assert drawn in page
    assert 'class="curve c0' in page
    assert 'class="curve c1 chosen' in page
    assert re.search(r"<td>300/600</td>", page)
    assert "does not answer" not in page
