import inspect
import json
import subprocess
import sys
from typing import Annotated, ClassVar, Literal, get_args

import pytest
from pydantic import Field, ValidationError

from adaprec_jax import schedules
from adaprec_jax.cli import main
from adaprec_jax.runs import kinds
from adaprec_jax.runs.about import about
from adaprec_jax.runs.config import (
    CPT,
    ImportedSchedule,
    PerLayer,
    Rule,
    Schedule,
    TwoThreshold,
)
from adaprec_jax.runs.config.base import Settings
from adaprec_jax.runs.errors import InputError

MODELS = get_args(get_args(Schedule)[0])


@pytest.fixture
def adaprec(capsys, monkeypatch):
    """Runs the command; returns exit code, output and errors."""

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaprec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def test_every_kind_is_listed_in_one_line(adaprec):
    code, out, err = adaprec("schedules")
    head, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split()[:2] == ["kind", "loop"]
    assert [line.split()[0] for line in lines] == [
        model.model_fields["kind"].default for model in MODELS
    ]
    rows = {line.split()[0]: line for line in lines}
    assert rows["cpt"].split()[1] == "open"
    assert "bits along a cosine" in rows["cpt"]
    assert "Fu et al. 2021, arXiv:2101.09868" in rows["cpt"]
    assert rows["two_threshold"].split()[1] == "closed"


def test_the_list_as_json(adaprec):
    listed = {
        each["kind"]: each for each in json.loads(adaprec("schedules", "--json")[1])
    }
    assert listed["cyclic"] == {
        "kind": "cyclic",
        "summary": "Bits that rise and fall in cycles of a named shape",
        "loop": "open",
        "source": "Wolfe and Kyrillidis 2024, arXiv:2403.02243",
    }
    assert len(listed) == len(MODELS)


def test_a_kind_is_printed_with_what_it_may_be_set_to(adaprec):
    code, out, _ = adaprec("schedules", "cyclic")
    rows = {
        line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line
    }
    assert code == 0
    assert rows["cyclic:"].endswith("in cycles of a named shape.")
    assert rows["open"].startswith("open loop: it depends on the step alone; Wolfe")
    assert rows["min_bits"].startswith("min_bits 3 integer from 2 to 16 fewest,")
    assert rows["shape"].startswith("shape (required) CR, CT, LR,")
    assert "it has no settings" in adaprec("schedules", "float32")[1]


def test_a_kind_as_json_holds_its_settings(adaprec):
    shown = json.loads(adaprec("schedules", "two_threshold", "--json")[1])
    settings = {each["name"]: each for each in shown["settings"]}
    assert shown["loop"] == "closed"
    assert "kind" not in settings
    assert settings["roles"] == {
        "name": "roles",
        "required": False,
        "default": ["activation", "weight"],
        "allowed": "list of activation, weight or gradient",
        "description": "tensors whose largest signal counts",
    }
    allowed = {name: each["allowed"] for name, each in settings.items()}
    assert allowed["low"] == "number from 0 to 1"
    assert allowed["every"] == "integer from 1"
    of = {each.name: each.allowed for each in kinds.find("late_switch")[1]}
    assert of["fraction"] == "number above 0 below 1"
    assert of["high"] == "settings of kind separate or shared"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_what_is_said_of_a_kind_is_what_its_function_says(model):
    kind = model.model_fields["kind"].default
    if kind in ("float32", "shuffled_cpt", "per_layer", "forked", "import"):
        assert about(kind) == {}  # made of other schedules, or of none
        return
    said = " ".join((inspect.getdoc(getattr(schedules, kind)) or "").split())
    titles = "Decides", "Signal", "Costs", "Source", "Against"
    told = " ".join(f"{title}: {text}" for title, text in about(kind).items())
    assert tuple(about(kind)) == titles
    assert f" {told} Args: " in said


def test_a_kind_is_printed_with_what_is_said_of_it_above_its_settings(
    adaprec, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = adaprec("schedules", "late-switch")  # a dash will do
    lines = out.splitlines()
    assert code == 0
    places = [lines.index(title) for title in about("late_switch")]
    head = next(k for k, line in enumerate(lines) if line.startswith("setting "))
    assert places == sorted(places)
    assert len(places) == 5
    assert places[-1] < head
    assert max(map(len, lines[places[0] : head])) <= 60
    against = " ".join(" ".join(lines[places[-1] + 1 : head]).split())
    assert against.startswith("The gain hangs on the decay of the learning rate. In")
    assert against.endswith("one model of 12 billion parameters.")
    shown = json.loads(adaprec("schedules", "late-switch", "--json")[1])
    assert shown["kind"] == "late_switch"
    assert shown["about"]["Signal"] == "The step alone."


def test_a_kind_is_told_of_without_jax():
    program = (
        "import sys; sys.argv = ['adaprec', 'schedules', 'pfq']\n"
        "from adaprec_jax.cli import main\n"
        "try: main()\n"
        "finally: print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert "\nAgainst\n" in done.stdout
    assert done.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("twothreshold", "did you mean 'two_threshold'?"), ("x", "known are float32, ")],
)
def test_an_unknown_kind_is_one_sentence(adaprec, given, meant):
    code, out, err = adaprec("schedules", given)
    assert (code, out) == (2, "")
    assert err.startswith(f"adaprec: Unknown schedule kind '{given}'; {meant}")
    assert len(err.splitlines()) == 1
    assert all(kind in err for kind in kinds.models())


def test_what_is_allowed_is_what_settings_accept():
    """The bounds in words, read back, are where validation changes its mind."""
    for setting in kinds.find("cpt")[1]:
        words = setting.allowed.split()
        bounds = dict(zip(words[1::2], map(int, words[2::2]), strict=True))
        for word, step in (("from", -1), ("to", 1)):
            if word in bounds:
                CPT.model_validate(
                    {"max_bits": 16, "min_bits": 2} | {setting.name: bounds[word]}
                )
                with pytest.raises(ValidationError, match=setting.name):
                    CPT.model_validate({setting.name: bounds[word] + step})


def test_a_kind_that_is_added_is_listed_without_an_edit_elsewhere(adaprec, monkeypatch):
    class Sawtooth(Settings):
        """Bits that fall and jump.

        Source: Nobody 2030, arXiv:3001.00001.
        """

        loop: ClassVar[Literal["open"]] = "open"
        kind: Literal["sawtooth"] = "sawtooth"
        teeth: int = Field(description="of the saw", examples=[2, 3])

    union = Annotated[CPT | Sawtooth, Field(discriminator="kind")]
    monkeypatch.setattr(kinds, "Schedule", union)
    assert "Bits that fall and jump" in adaprec("schedules")[1]
    assert "Nobody 2030, arXiv:3001.00001" in adaprec("schedules", "sawtooth")[1]
    assert [example.teeth for example in kinds.examples("sawtooth")] == [2, 3]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_kind_describes_itself(model):
    found, settings = kinds.find(model.model_fields["kind"].default)
    assert found.summary
    assert not found.summary.endswith(".")
    assert "arXiv" not in found.summary  # that is the source's
    assert found.source
    assert found.loop in ("open", "closed", "either")
    assert all(setting.description for setting in settings), settings
    assert all(setting.allowed for setting in settings)


@pytest.mark.parametrize("kind", [k.kind for k in kinds.kinds() if k.loop == "open"])
def test_every_open_loop_kind_can_be_drawn(kind):
    shown = kinds.examples(kind)
    assert shown
    assert {example.kind for example in shown} == {kind}


def test_a_part_that_is_closed_closes_the_loop():
    closed, opened = TwoThreshold(), CPT()
    assert kinds.is_closed(closed)
    assert not kinds.is_closed(opened)
    assert not kinds.is_closed(ImportedSchedule(target="mine:schedule"))
    inner = PerLayer(rules=(Rule(pattern="last", schedule=closed),), default=opened)
    outer = PerLayer(rules=(Rule(pattern="first", schedule=opened),), default=inner)
    assert kinds.is_closed(outer)
    plain = PerLayer(rules=(Rule(pattern="last", schedule=opened),), default=opened)
    assert not kinds.is_closed(plain)


def test_find_says_that_there_is_no_such_kind():
    with pytest.raises(InputError, match="did you mean 'cpt'"):
        kinds.find("cptt")
