"""The cost of whole runs: foreseen, recorded, to a target, and as the command says."""

import json
import math
import re
import shutil
import sys

import pytest

from adaprec_jax import bit_counts
from adaprec_jax.cli import main
from adaprec_jax.cost.devices import device
from adaprec_jax.cost.lenses import look
from adaprec_jax.cost.quantity import saving
from adaprec_jax.runs import overrides, run as running, store
from adaprec_jax.runs.costing import foreseen_cost, part, recorded_cost, steps_to
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import load
from adaprec_jax.runs.varied import varied


def arm(name, *settings):
    return overrides.apply(load(name), settings)


def said(monkeypatch, capsys, *arguments):
    """The exit code, the output and the complaint of the command."""
    monkeypatch.setattr(sys, "argv", ["adaprec", "cost", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_the_published_saving_of_cpt_comes_out_of_the_counted_run():
    # CPT, arXiv:2101.09868: 3 to 8 bits, backward 8, 32 cycles, 64,000 iterations.
    cycled = arm("digits-cpt", "steps=64000", "schedule.cycles=32")
    cpt, static = foreseen_cost(cycled), foreseen_cost(arm("digits-int8"))
    assert cpt.done.steps == 64_000
    assert sum(phase.steps for phase in cpt.phases) == 64_000
    ratio = look("bitops", cpt.done).value / look("bitops", cpt.float32).value
    assert round(ratio, 6) == 0.039579
    of_static = look("bitops", static.done).value / look("bitops", static.float32).value
    assert of_static == 0.0625
    assert round(100 * (1 - ratio / of_static), 2) == 36.67
    # With the addition in float32, scales, casts and the update, less is left of it.
    per_step = [look("arith7_mem", each.done) for each in (static, cpt)]
    saved = saving(per_step[0].times(64_000 / static.done.steps), per_step[1])
    assert 0 < saved.low <= saved.high < 0.05


def test_a_run_costs_as_much_as_its_parts():
    spent = foreseen_cost(arm("digits-step-list"))
    contractions = {term.contraction for term in spent.done.terms}
    for lens in ("bitops", "ace"):
        whole = look(lens, spent.done).value
        by_layer = [look(lens, part(spent.done, name)).value for name in contractions]
        assert sum(by_layer) == pytest.approx(whole)
    assert len(spent.plans) == len(spent.phases) == 4
    by_phase = [
        p.steps * look("arith7", spent.plans[p.plan]).value for p in spent.phases
    ]
    assert sum(by_phase) == pytest.approx(look("arith7", spent.done).value)


def test_fewer_bits_never_cost_more_through_any_lens():
    runs = [
        foreseen_cost(arm("digits-int8", *(f"schedule.precision.{role}=int{b}"
                      for role in ("activation", "weight", "gradient"))))
        for b in (3, 8, 12)
    ]  # fmt: skip
    for lens in ("bitops", "ace", "arith45", "arith7_mem", "chip", "roofline"):
        found = [look(lens, each.done, device("h100")).value for each in runs]
        assert found == sorted(found), lens


def test_a_closed_loop_is_counted_as_at_its_first_step_and_says_so():
    spent = foreseen_cost(arm("digits-two-threshold"))
    assert spent.basis == "first step"
    assert len(spent.phases) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a schedule that goes from int8 to FP8: the widths do not change."""
    out = tmp_path_factory.mktemp("runs")
    fp8 = '{"activation": "float8_e4m3fn", "weight": "float8_e4m3fn", '
    fp8 += '"gradient": "float8_e5m2", "kind": "shared"}'
    int8 = fp8.replace("float8_e4m3fn", "int8").replace("float8_e5m2", "int8")
    schedule = (
        f'{{"kind": "piecewise", "boundaries": [6], "precisions": [{int8}, {fp8}]}}'
    )
    experiment = arm(
        "digits-int8", f"schedule={schedule}", "steps=8", "steps_per_dispatch=4",
        "evaluate_every=4", "checkpoint_every=4",
    )  # fmt: skip
    outcome = running.run(experiment, out=out)
    assert outcome.state == "done"
    return experiment, store.locate(out, experiment), outcome


def test_what_a_run_recorded_costs_what_was_foreseen(run):
    experiment, directory, outcome = run
    foreseen, recorded = foreseen_cost(experiment), recorded_cost(directory)
    assert recorded.basis == "recorded"
    assert recorded.done == foreseen.done
    assert [p.steps for p in recorded.phases] == [6, 2]
    kinds = {term.first.name for term in recorded.done.terms}
    assert {"int8", "float8"} <= kinds
    assert recorded_cost(directory, until=6).done.steps == 6
    energy = look("arith7", recorded.done)
    assert outcome.results["arith7_J"] == pytest.approx(energy.value)
    assert outcome.results["arith7_J_low"] <= energy.value
    assert energy.value <= outcome.results["arith7_J_high"]


def test_a_run_directory_holds_what_the_command_says(run, monkeypatch, capsys):
    _, directory, _ = run
    written = json.loads((directory / store.COST).read_text())
    assert (written.pop("carbon"), written.pop("money")) == (None, None)  # no default
    _, out, _ = said(monkeypatch, capsys, directory, "--json")
    assert [written] == json.loads(out)
    place = ("--device", "h100", "--grid", "FRA", "--pue", "1.5", "--price",
             "2:USD:2026-11-01", "--lens", "roofline", "--lens", "arith7")  # fmt: skip
    _, out, _ = said(monkeypatch, capsys, directory, *place, "--json", "--keep")
    kept = json.loads((directory / store.COST).read_text())
    assert [kept] == json.loads(out)
    assert kept["money"]["unit"] == "USD"
    assert set(kept["carbon"]["lenses"]) == {"roofline", "arith7"}
    for options in ([directory, "--target", "accuracy=0"], ["digits-int8"]):
        code, _, fault = said(monkeypatch, capsys, *options, "--keep")
        assert code == 2
        assert "--keep" in fault


def test_a_target_is_reached_at_the_first_evaluation_that_has_it(run):
    _, directory, _ = run
    assert steps_to(directory, "accuracy", 0.0) == 4
    assert steps_to(directory, "accuracy", 1.1) is None
    for name in ("validation/accuracy", "validation/highest/accuracy"):
        assert steps_to(directory, name, 0.0) == 4
    assert steps_to(directory, "loss", 1e9) == 4  # falls
    with pytest.raises(InputError, match="no validation metric 'bleu'; there are"):
        steps_to(directory, "bleu", 1.0)


def test_the_command_says_of_a_run_what_it_recorded(run, monkeypatch, capsys):
    _, directory, _ = run
    code, out, _ = said(monkeypatch, capsys, directory, "--json", "--device", "h100",
                        "--grid", "FRA", "--pue", "1.5", "--embodied", "164:4",
                        "--price", "2:USD:2026-11-01", "--market", "0")  # fmt: skip
    (tree,) = json.loads(out)
    assert (code, tree["basis"], tree["steps"]) == (0, "recorded", 8)
    lens = tree["lenses"]["roofline"]["cost"]
    assert lens["kind"] == "tdp_estimate"
    grams = tree["carbon"]["lenses"]["roofline"]
    assert grams["location_based"]["value"] == pytest.approx(
        lens["value"] / 3.6e6 * 1.5 * 56.039
    )
    assert grams["market_based"]["value"] == 0
    seconds = tree["lenses"]["time"]["cost"]["value"]
    made = 164_000 * seconds / (4 * 365 * 24 * 3600)
    assert grams["embodied"]["value"] == pytest.approx(made)
    assert grams["sci"]["value"] == pytest.approx(
        made + grams["location_based"]["value"]
    )
    assert tree["money"]["value"] == pytest.approx(2 * seconds / 3600)
    assert tree["lenses"]["arith45"]["saved_over_bfloat16"] is None  # no such entry
    code, out, _ = said(monkeypatch, capsys, directory, "--target", "accuracy=0")
    assert "to accuracy=0" in out
    code, out, _ = said(monkeypatch, capsys, directory, "--target", "accuracy=2")
    assert "did not reach accuracy=2" in out


@pytest.mark.slow
def test_attention_grows_with_the_square_of_the_sequence():
    def macs(factor):
        spent = foreseen_cost(varied(arm("shakespeare-fp8"), "sequence", factor))
        terms = spent.done.terms
        attention = sum(t.macs for t in terms if "," in t.contraction)
        return attention, sum(t.macs for t in terms) - attention

    one, two = macs(1), macs(2)
    assert two[0] / one[0] == 4
    assert two[1] / one[1] == 2


def test_the_command_tells_how_cost_grows(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "digits-int8", "--vary", "batch", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["factor"] for row in rows] == [1, 2, 4]
    assert [row["macs_power"] for row in rows] == [None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--device", "abacus"], "--device must be one of v100, a100"),
        (["--lens", "joules"], "--lens must be one of bitops, ace"),
        (["--lens", "chip"], "--lens chip needs --device."),
        (["--grid", "FRA"], "--grid needs --pue"),
        (["--grid", "Atlantis", "--pue", "1"], "--grid must be one of FRA, DEU"),
        (["--grid", "FRA", "--pue", "0.5"], "--pue must be a number from 1 on"),
        (["--pue", "1.2"], "--pue is of carbon: it needs --grid."),
        (["--price", "2:USD:2026"], "--price is of a device: it needs --device."),
        (["--price", "2", "--device", "h100"], "--price must be PER_HOUR:CURRENCY"),
        (["--embodied", "x", "--grid", "FRA", "--pue", "1", "--device", "h100"],
         "--embodied takes KG:YEARS"),
        (["--vary", "depth"], "--vary takes batch, sequence, width, got 'depth'."),
        (["--vary", "sequence"], "has no sequence to vary: its task is digits."),
        (["--target", "accuracy"], "--target takes NAME=VALUE with a number"),
        (["--target", "accuracy=nan"], "--target takes NAME=VALUE with a number"),
        (["--vary", ""], "--vary takes batch, sequence, width, got ''."),
        (["--price", "2:USD:soon", "--device", "h100"],
         "--price must be PER_HOUR:CURRENCY:DATE"),
        (["--set", "batch_size=100000000"], "too large for its statistics"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(options, fault, monkeypatch, capsys):
    code, _, err = said(monkeypatch, capsys, "digits-int8", *options)
    assert code == 2
    assert err.startswith("adaprec: ")
    assert fault in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_every_kind_of_bundled_config_has_a_cost():
    for name in ("denoiser-cpt", "experts-int4", "graph-int8", "gru-int8", "vit-cpt",
                 "resnet-cpt", "function-int4", "fashion-mnist-snip",
                 "shakespeare-nvfp4"):  # fmt: skip
        spent = foreseen_cost(load(name))
        found = look("arith7", spent.done)
        assert found is not None
        assert 0 < found.value < look("arith7", spent.float32).value
        assert spent.counted.work.unknown == ()


def test_the_ratio_is_that_of_the_settings_where_they_tell_it():
    spent = foreseen_cost(arm("digits-cyclic-rr"))
    bits = bit_counts.cyclic_bits("RR", min_bits=3, max_bits=8, cycles=6, steps=600)
    ratio = look("bitops", spent.done).value / look("bitops", spent.float32).value
    assert math.isclose(ratio, bit_counts.bitops_ratio(bits, 8), rel_tol=1e-9)


def test_what_is_printed_has_units_kinds_dates_and_eighty_columns(monkeypatch, capsys):
    code, out, _ = said(
        monkeypatch, capsys, "digits-float32", "--device", "h100", "--grid", "FRA",
        "--pue", "1.5", "--embodied", "164:4", "--price", "2:USD:2026-11-01",
    )  # fmt: skip
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    # 600 steps of 64 images; products of 64 x 64 and 64 x 10, the first has no dgrad.
    bitops = 600 * 64 * 3 * (64 * 64 + 64 * 10) * 32**2 / 1e9
    rows = [line.split() for line in out.splitlines()]
    assert ["bitops", f"{bitops:.4g}", "Gbitop", "modelled", "0.00", "-300.00"] in rows
    # At the peak of 66.9 TFLOP/s and 700 W; the least power is ours.
    chip = 600 * 64 * 2 * (2 * 64 * 64 + 3 * 64 * 10) / 66.9e12 * 700 * 1e3
    (row,) = [row for row in rows if row[:1] == ["chip"]]
    assert float(row[1]) == pytest.approx(chip, rel=0.01)
    assert row[5:7] == ["mJ", "tdp_estimate"]
    assert "roofline, tdp_estimate:" in out
    assert "2 USD an hour (2026-11-01)" in out


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a":1}', "damaged at line 1."),
        ('[["int3"]]', "damaged at line 1."),
        ('[["int8","int8","int8","int8","int8","bananas"]]', "damaged at line 1."),
        ('[["int8","int8","int8","int8","int8","int8"]]', "number of layers than the"),
    ],
)
def test_damaged_plans_are_said(line, fault, run, tmp_path):
    directory = shutil.copytree(run[1], tmp_path / "run")
    (directory / "plans.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(InputError, match=fault):
        recorded_cost(directory)


def test_of_a_run_that_has_not_ended_it_is_said(run, tmp_path, monkeypatch, capsys):
    ended = json.loads((run[1] / "cost.json").read_text())
    directory = shutil.copytree(run[1], tmp_path / "run")
    (directory / "status.json").unlink()
    _, out, _ = said(monkeypatch, capsys, directory)
    assert ended["basis"] == "recorded"
    assert "recorded so far" in out


def test_plans_that_are_numbered_wrongly_are_not_counted(run, tmp_path):
    directory = shutil.copytree(run[1], tmp_path / "run")
    path = directory / "metrics.jsonl"
    path.write_text(re.sub(r'"plan":[0-9.e+-]+', '"plan":-1.0', path.read_text()))
    with pytest.raises(InputError, match="lacks plans"):
        recorded_cost(directory)


def test_settings_are_not_taken_for_those_of_a_run(run, monkeypatch, capsys):
    code, _, err = said(monkeypatch, capsys, run[1], "--set", "steps=4")
    assert (code, err) == (
        2, "adaprec: --set is of configs, and only runs were given.\n",
    )  # fmt: skip
