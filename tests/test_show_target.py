"""`adaprec show --contractions --target`: what is native on a device, and why not."""

import json

import pytest

from adaprec_jax.cli import main


def shown(monkeypatch, capsys, *arguments: str) -> tuple[int | str | None, str, str]:
    monkeypatch.setattr("sys.argv", ["adaprec", "show", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def test_each_product_has_its_dtypes_or_the_reason_why_it_has_none(monkeypatch, capsys):
    on = ["--contractions", "--target", "h100"]
    code, out, _ = shown(monkeypatch, capsys, "digits-cpt", *on)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["Dense_0", "dgrad", "int8", "x", "int8"] in rows
    assert out.splitlines()[-1] == "executables of the whole schedule: 1"
    _, out, _ = shown(monkeypatch, capsys, "shakespeare-mxfp8", *on)
    assert "emulated: " in out
    assert "has no native dot_general of blocks with scales" in out


def test_the_same_as_json(monkeypatch, capsys):
    on = ["--contractions", "--target", "b200", "--json"]
    _, out, _ = shown(monkeypatch, capsys, "shakespeare-mxfp8", *on)
    found = json.loads(out)
    assert found["executables"] == 1
    assert len(found["products"]) == 3 * 7
    assert found["products"][-1] == {
        "contraction": "head",
        "product": "wgrad",
        "chosen": ["float8_e4m3fn"] * 2,
        "scales": {"size": 32, "dtype": "float8_e8m0fnu"},
        "reason": "",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "h100"], "--target is an option of --contractions, give both."),
        (["--contractions", "--target", "h1"], "--target must be one of b200, cpu, "),
    ],
)
def test_wrong_options_get_a_sentence(arguments, said, monkeypatch, capsys):
    code, _, err = shown(monkeypatch, capsys, "digits-cpt", *arguments)
    assert code == 2
    assert said in err
