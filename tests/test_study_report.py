"""The report of a study: the same bytes each time, and what they say."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaprec_jax.report import sheets, study_figures
from adaprec_jax.report.study_figures import Point
from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.columns import column
from adaprec_jax.studies.compare import compare
from adaprec_jax.studies.report import report
from adaprec_jax.studies.results import gathered
from tests import made_up_study
from tests.made_up_study import ACCURACY

ARMS = ["digits-float32", "digits-int8", "digits-int3", "digits-cpt"]
COSTS = [1.0, 0.0625, 0.0186, 0.0394]
SEEDS = 3
OPERANDS = (
    "forward.activation", "forward.weight", "dgrad.gradient", "dgrad.weight",
    "wgrad.gradient", "wgrad.activation",
)  # fmt: skip
BAD = "<script>alert(1)</script>"


def bits(first: float, second: float) -> dict[str, float]:
    layers = {"Dense_0": first, "Dense_1": second}
    return {f"bits/{layer}/{o}": b for layer, b in layers.items() for o in OPERANDS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    study = made_up_study.study(out, ARMS, SEEDS)
    rng = np.random.default_rng(1)
    for arm, cost in zip(ARMS, COSTS, strict=True):
        for seed in range(SEEDS):
            value = 0.95 + 0.01 * rng.normal() - 0.05 * (cost < 0.03)
            rows = {1: {"cost": cost, "learning_rate": 0.01, **bits(4, 4)}}
            rows |= {
                step: {"validation/highest/accuracy": value - 0.1 * (step < 300)}
                for step in (100, 300, 600)
            }
            if arm == "digits-cpt":
                rows[301] = {"cost": cost, **bits(8, 6)}
            made_up_study.end(
                study, out, arm, seed, {ACCURACY: value, "cost": cost},
                rows=dict(sorted(rows.items())), xla_flags=BAD,
            )  # fmt: skip
    return study, out


def rendered(runs, out: Path, margin: float | None = 0.02) -> dict[str, bytes]:
    results = gathered(*runs)
    page = report(
        results, "float32", [column(results.arms, "test/accuracy", margin=margin)], out
    )
    assert page == out / "index.html"
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    return rendered(runs, tmp_path_factory.mktemp("report"))


def test_a_report_rendered_again_has_the_same_bytes(runs, made, tmp_path):
    code = (
        "import sys; from adaprec_jax.cli import main\n"
        "sys.argv = ['adaprec', *sys.argv[1:]]\nmain()"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, "report", "made-up", "--out",
            str(tmp_path / "again"), "--runs", str(runs[1]), "--metric",
            "test/accuracy", "--margin", "0.02",
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert rendered(runs, tmp_path / "again") == made  # over what is there
    assert done.stdout == f"{tmp_path / 'again' / 'index.html'}\n"
    assert {name.rpartition(".")[2] for name in made} == {
        "html", "md", "csv", "tex", "svg", "pdf",
    }  # fmt: skip


def test_it_opens_offline_and_nothing_in_it_is_run(made):
    page = made["index.html"].decode()
    assert "http" not in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in made["report.md"].decode()
    for source in ("cost", "forest", "curves"):
        name = f"figures/{source}-test-highest-accuracy"
        assert f'src="{name}.svg"' in page
        assert {f"{name}.svg", f"{name}.pdf"} <= made.keys()


def test_the_numbers_are_those_of_the_comparison(runs, made):
    results = gathered(*runs)
    columns = [column(results.arms, "test/accuracy", margin=0.02)]
    found = compare(results, "float32", columns)
    text = made["tables/test-highest-accuracy.csv"].decode().splitlines()
    rows = {row["arm"]: row for row in csv.DictReader(text)}
    for verdict in found.verdicts:
        row = rows[verdict.arm]
        assert float(row["difference"]) == verdict.difference.estimate
        assert float(row["p"]) == verdict.p
        assert row["verdict"] == verdict.answer
        assert f'<td class="text {verdict.answer}">' in made["index.html"].decode()
    assert rows["digits-float32"]["verdict"] == ""
    tex = made["tables/test-highest-accuracy.tex"].decode()
    assert tex.count(r"\\") == 1 + len(ARMS)
    assert r"95 \% interval" in tex


def test_precision_and_layers_are_drawn_where_they_change(made):
    assert {"figures/precision.svg", "figures/layers.svg"} <= made.keys()
    layers = made["figures/layers.svg"].decode()
    assert "digits-cpt" in layers
    assert "digits-int8" not in layers


def test_the_front_holds_what_nothing_beats_in_cost_and_metric():
    rng = np.random.default_rng(0)
    points = [Point(str(k), *rng.random(2).tolist(), 0, 1) for k in range(40)]
    for higher in (True, False):
        beats = lambda a, b, sign=(1 if higher else -1): (
            a.cost <= b.cost and sign * a.mean >= sign * b.mean and a != b
        )
        expected = {p for p in points if not any(beats(q, p) for q in points)}
        assert set(study_figures.pareto(points, higher=higher)) == expected


def test_arms_that_all_diverged_are_drawn_without_a_number(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:2], 2)
    for seed in range(2):
        value = {ACCURACY: 0.9 + seed / 100, "cost": 1.0}
        made_up_study.end(study, tmp_path, ARMS[0], seed, value)
        made_up_study.end(study, tmp_path, ARMS[1], seed, None, state="diverged")
    made = rendered((study, tmp_path), tmp_path / "report")
    page = made["index.html"].decode()
    assert "nan" not in page
    assert "unknown" in page
    assert "counts as the worst" in page


def test_names_of_files_and_latex_are_safe():
    assert sheets.file_name("../a b/$x") == "a-b-x"
    assert sheets.in_latex("a_b & 5 % \\x") == r"a\_b \& 5 \% \textbackslash{}x"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_report_without_its_extra_names_it(runs, tmp_path, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from adaprec_jax.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "made-up", "--runs", str(runs[1]),
         "--out", str(tmp_path / "x")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"adaprec: A report needs {package}, which is not installed: "
        "pip install 'adaprec-jax[report]'.\n"
    )


def test_damaged_metrics_are_said_and_not_left_out(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[:2], 2)
    for cell in study.cells:
        where = made_up_study.end(
            study, tmp_path, cell.experiment.name, cell.seed,
            {ACCURACY: 0.9 + cell.seed / 100, "cost": 1.0},
            rows={1: {"cost": 1.0, **bits(4, 4)}},
        )  # fmt: skip
        (where / "metrics.jsonl").write_text('{"step":1,"bits/\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged at line 1"):
        rendered((study, tmp_path), tmp_path / "report")


def test_without_an_arm_in_float32_a_baseline_is_asked_for(tmp_path):
    study = made_up_study.study(tmp_path, ARMS[1:3], 2)
    for cell in study.cells:
        arm, value = cell.experiment.name, {ACCURACY: 0.9 + cell.seed / 10}
        made_up_study.end(study, tmp_path, arm, cell.seed, value)
    code = "from adaprec_jax.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "made-up", "--runs", str(tmp_path),
         "--out", str(tmp_path / "x")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("adaprec: The study made-up has no arms in float32")
    assert json.loads((tmp_path / "made-up.study.json").read_text())
