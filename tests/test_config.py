import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from adaprec_jax import formats, loss_scaling, scaling, schedules
from adaprec_jax.cli import main
from adaprec_jax.contractions import statistics
from adaprec_jax.runs import config, format_names, identity, overrides
from adaprec_jax.runs.config import Experiment, base
from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.load import bundled, from_json, load
from adaprec_jax.tasks import denoising, digits, function, models, teacher

EACH_CONFIG = pytest.mark.parametrize("name", bundled())
FILES = {path.stem.replace("_", "-"): path for path, _ in bundled().values()}
EACH_FILE = pytest.mark.parametrize("stem", FILES)
TINY = load("digits-cpt")

PER_LAYER = {
    "kind": "per_layer",
    "default": {"kind": "cpt", "cycles": 700},
    "rules": [{"pattern": "first", "schedule": {"kind": "float32"}}],
}
DEFICIT = {"kind": "deficit", "start": 400, "length": 201}
WSD = {
    "kind": "warmup_stable_decay", "peak": 1e-3, "warmup_steps": 1, "decay_steps": 600
}  # fmt: skip
MIXED_KINDS = {"kind": "warmup", "warmup_steps": 3, "low": {"kind": "separate"}}


def apply(*assignments: str) -> Experiment:
    return overrides.apply(TINY, assignments)


def faults(*assignments: str) -> tuple[str, ...]:
    with pytest.raises(InputError) as refused:
        apply(*assignments)
    return refused.value.args


@EACH_CONFIG
def test_a_bundled_config_resolves_and_comes_back_from_its_json(name, tmp_path):
    experiment = load(name)
    assert experiment.name == name
    path = tmp_path / "config.json"
    path.write_text(experiment.model_dump_json())
    assert from_json(path) == experiment
    assert identity.run_id(from_json(path)) == identity.run_id(experiment)


@EACH_FILE
def test_a_config_file_opens_with_what_it_is_the_command_and_its_arms(stem):
    first, _, third, *_ = lines = FILES[stem].read_text().splitlines()
    assert first.startswith('"""')
    assert third.startswith(f"adaprec run {stem}-float32")
    opening = " ".join(lines[: lines.index('"""')]).replace(",", " ").split()
    arms = [arm for path, arm in bundled().values() if path == FILES[stem]]
    assert set(arms) - {"float32"} <= set(opening)


@EACH_FILE
def test_the_arms_of_a_file_differ_in_precision_alone(stem):
    arms = [load(name) for name, (path, _) in bundled().items() if path == FILES[stem]]
    assert arms[0].schedule.kind == "float32"
    others = {"name", "schedule", "scaling"}
    assert len({arm.model_dump_json(exclude=others) for arm in arms}) == 1
    assert len({identity.run_id(arm) for arm in arms}) == len(arms) >= 3


def test_the_resolved_config_is_the_golden_one():
    golden = Path(__file__).parent / "golden" / "digits_cpt.json"
    assert load("digits-cpt").model_dump(mode="json") == json.loads(golden.read_text())


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("steps=1000", "steps", 1000),
        ("optimizer.learning_rate.peak=1e-3", "optimizer.learning_rate.peak", 1e-3),
        ("optimizer.learning_rate.peak=1", "optimizer.learning_rate.peak", 1.0),
        ("optimizer.clip_norm=.5", "optimizer.clip_norm", 0.5),
        ("optimizer.clip_norm=none", "optimizer.clip_norm", None),
        ("model.hidden=[8, 4]", "model.hidden", (8, 4)),
        ("name=123", "name", "123"),
        ("name=true", "name", "true"),
        ("tags=[]", "tags", ()),
        ("scaling.weight.power_of_two=false", "scaling.weight.power_of_two", False),
        ("scaling.weight.kind=delayed", "scaling.weight.history", 1024),
        ("compute_dtype=bfloat16", "compute_dtype", "bfloat16"),
        ('schedule={"kind":"cpt","cycles":2}', "schedule.cycles", 2),
    ],
)
def test_a_value_is_read_as_its_field_says(assignment, path, value):
    found: Any = apply(assignment)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_kind_is_switched_together_with_its_settings_in_any_order():
    schedule = apply(
        "schedule.high=0.2", "schedule.max_bits=6", "schedule.start_bits=6",
        "schedule.kind=two_threshold",
    ).schedule  # fmt: skip
    expected = config.TwoThreshold(
        high=0.2, min_bits=3, max_bits=6, start_bits=6, gradient_bits=8
    )
    assert schedule == expected  # min_bits and gradient_bits as in the file


def test_a_setting_inside_a_default_keeps_the_rest_of_that_default():
    schedule = apply("schedule.kind=late_switch", "schedule.high.weight=float16")
    high = schedule.schedule.high
    assert (high.activation, high.weight) == ("bfloat16", "float16")


@pytest.mark.parametrize(
    ("assignment", "fault"),
    [
        ("steps=0", "steps should be at least 1, got 0."),
        ("steps=1e3", "steps should be an integer, got 1000.0."),
        ("steps=many", "steps should be an integer, got 'many'."),
        ("seed=-1", "seed should be at least 0, got -1."),
        ("batch_size=true", "batch_size should be an integer, got True."),
        ("model.hidden=[8, 0]", "model.hidden.1 should be at least 1"),
        ("optimizer.learning_rate.peak=-1", "peak should be above 0, got -1."),
        ("optimizer.learning_rate.peak=nan", "peak should be a finite number, got nan"),
        ("parameter_dtype=fp9", "should be 'float32', 'bfloat16' or 'float16', got"),
        ("scaling.weight.rounding=up", "'toward_zero' or 'stochastic', got 'up'."),
        ("name=../x", "name: it must begin with a letter or digit"),
        ("name=a b", "name: it must begin with a letter or digit"),
        ("name=.hidden", "name: it must begin with a letter or digit"),
        (f"name={'a' * 65}", "name: it must begin with a letter or digit and be at"),
        ("tags=3", "tags should be a list, got 3."),
        ("statistics=amax", "statistics should be a list, got 'amax'."),
        ("scaling.weight.power_of_two=maybe", "should be true or false, got 'maybe'."),
        ("loss_scaling.kind=3", "loss_scaling.kind: unknown 3; known are none, static"),
        ('schedule={"kind":"import","target":3}', "target should be text, got 3."),
        (
            'schedule={"kind":"pfq","forward_bits":[],"gradient_bits":[]}',
            "schedule.forward_bits should have at least 1 item, got [].",
        ),
        (
            'schedule={"kind":"per_layer","default":{"kind":"float32"},'
            '"rules":[{"pattern":"","schedule":{"kind":"float32"}}]}',
            "schedule.rules.0.pattern should have at least 1 character, got ''.",
        ),
        ("stepz=3", "Unknown setting 'stepz'; did you mean 'steps'?"),
        ("schedule.min_bit=3", "did you mean 'schedule.min_bits'?"),
        ("min_bits=3", "did you mean 'schedule.min_bits'?"),
        ("optimiser.b1=0.5", "'optimiser.b1'; did you mean 'optimizer.b1'?"),
        ("schedule=cpt", "schedule should be an object, got 'cpt'."),
        ("optimizer.lr=3", "Unknown setting 'optimizer.lr'; known are learning_rate,"),
        ("steps.x=3", "steps.x: steps can only be set as a whole, as JSON."),
        ("schedule.kind=cpd", "schedule.kind: unknown 'cpd'; did you mean 'cpt'?"),
        ('schedule={"kind":"cpd"}', "schedule.kind: unknown 'cpd'; did you mean"),
        ('schedule={"min_bits":3}', "schedule.kind is missing."),
        ('schedule={"kind":"cpt","cycle":3}', "'schedule.cycle'; did you mean 'cycle"),
        ("schedule.kind=warmup", "schedule.warmup_steps is missing."),
        ("schedule.min_bits=9", "schedule.min_bits (9) must not be above max_bits"),
        (f"schedule={json.dumps(DEFICIT)}", "schedule.start and length together (601)"),
        ('schedule={"kind":"late_switch","at":"decay"}', "schedule.at: decay needs a"),
        (f"optimizer.learning_rate={json.dumps(WSD)}", "decay_steps together (601)"),
        ("schedule.cycles=601", "schedule.cycles (601) must not be above steps (600)."),
        ("micro_batches=7", "batch_size (64) must be a multiple of micro_batches (7)."),
        ("steps=610", "steps (610) must be a multiple of steps_per_dispatch (20)."),
        ("task.kind=fashion_mnist", "the task fashion_mnist needs cnn, got mlp."),
        ("model.kind=cnn", "digits needs mlp, resnet, vit, recurrent, experts or gra"),
        ('model={"kind":"vit","patch":3}', "patch should be 1, 2, 4 or 8, got 3."),
        ("tags", "--set takes path=value, got 'tags'."),
        (f"schedule={json.dumps(PER_LAYER)}", "schedule.default.cycles (700) must not"),
        (f"schedule={json.dumps(MIXED_KINDS)}", "schedule.kind must be the same in"),
        (f"steps={'1' * 5000}", "steps"),
        ("steps=1000000000", "steps should be at most 10000000"),
        ("batch_size=4294967296", "batch_size should be below 2147483648"),
        ("model.hidden=[99999999999]", "model.hidden.0 should be below 2147483648"),
        ("optimizer.learning_rate.peak=1e39", "should be at most 3.4e+38"),
        (f"tags={'[' * 50_000}", "tags"),
        ('tags=["\\ud800"]', "A text is not Unicode"),
        ("name=\udcff", "--set takes text in UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence_that_names_it(assignment, fault):
    [sentence] = faults(assignment)
    assert fault in sentence
    assert sentence.endswith((".", "?"))


def test_all_faults_are_said_at_once():
    said = faults("steps=0", "batch_size=0", "schedule.gradient_bits=40")
    assert [sentence.split()[0] for sentence in said] == [
        "steps", "batch_size", "schedule.gradient_bits",
    ]  # fmt: skip


def test_a_kind_that_is_unknown_is_the_only_fault_beneath_it():
    assert len(faults("schedule.kind=cpd", "schedule.whatever=3")) == 1


def test_the_same_path_twice_is_refused():
    assert faults("seed=1", "seed=2") == ("seed is set twice, to '1' and '2'.",)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: config.Transformer(width=100, heads=3), "width (100) must be a mult"),
        (lambda: config.ViT(width=32, heads=5), "width (32) must be a multiple of he"),
        (lambda: config.Experts(top=5), "top (5) must not be above members (4)."),
        (lambda: config.Cosine(peak=1e-3, final=1.0), "final (1.0) must not be above"),
        (lambda: config.DynamicLossScaling(min_scale=2.0**16), "min_scale <= init_sca"),
        (lambda: config.TwoThreshold(low=0.5, high=0.5), "low (0.5) must be below hi"),
        (lambda: config.APT(min_bits=9), "min_bits (9) must not be above max_bits (8)"),
        (lambda: config.LDP(min_bits=8), "min_bits (8) must be below max_bits (8)"),
        (lambda: config.TwoThreshold(start_bits=9), "start_bits (9) must lie in min_"),
        (
            lambda: config.Piecewise(
                boundaries=(5, 5), precisions=(config.SharedFormats(),) * 3
            ),
            "boundaries must rise",
        ),
        (
            lambda: config.Piecewise(
                boundaries=(5,), precisions=(config.SharedFormats(),)
            ),
            "precisions must be one more than boundaries, got 1 and 1.",
        ),
        (
            lambda: config.TwoThreshold(low=0.0, high=1.0),
            "low (0) and high (1) are the ends of a share",
        ),
        (
            lambda: config.Snip(low="float8_e4m3fn", high="float4_e2m1fn"),
            "low (float8_e4m3fn) must not have more bits than high (float4_e2m1fn).",
        ),
        (
            lambda: config.MoR(
                low=config.SharedFormats(activation="float16", weight="int8")
            ),
            "low.gradient (float32) must not have more bits than high.gradient (bfl",
        ),
        (
            lambda: config.PerLayer(
                default=config.Float32(),
                rules=(config.Rule(pattern="a", schedule=config.Float32()),) * 2,
            ),
            "rules must have different patterns",
        ),
    ],
)
def test_a_rule_between_fields_says_which_and_with_what_values(make, fault):
    with pytest.raises(ValueError, match=r"Value error") as refused:
        make()
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("name", "described"),
    [
        *((n, n) for n in formats.names() if n != "float8_e8m0fnu"),
        ("fixed<8,4>", "fixed<8,4>"),
        ("ufixed<6,-2>", "ufixed<6,-2>"),
        ("float<4,3,fn>", "float8_e4m3fn"),
        ("float<5,6>", "float<5,6,bias=15,ieee>"),
        ("float<4,3,bias=8,fnuz>", "float8_e4m3fnuz"),
    ],
)
def test_a_format_is_known_by_its_name_or_by_its_description(name, described):
    assert formats.describe(format_names.parse(name)) == described


@pytest.mark.parametrize(
    "name", ["int33", "fp8", "fixed<40,4>", "fixed<8>", "float<9,3>", "float8_e8m0fnu"]
)
def test_an_unknown_format_is_refused(name):
    with pytest.raises(ValueError, match=r"format|must lie in"):
        config.SharedFormats(weight=name)


def test_each_value_says_where_it_came_from():
    assignments = ["schedule.kind=shuffled_cpt", "schedule.shuffle_seed=3"]
    final = apply(*assignments)
    sources = overrides.sources(TINY, final, assignments)
    assert sources["schedule.kind"] == "command line"
    assert sources["schedule.shuffle_seed"] == "command line"
    assert sources["schedule.min_bits"] == "file"
    assert sources["optimizer.learning_rate.peak"] == "file"
    assert sources["optimizer.b1"] == "default"
    assert sources["scaling.gradient.rounding"] == "file"
    assert sources["scaling.weight.kind"] == "default"
    assert sources.keys() == overrides.leaves(final.model_dump(mode="json")).keys()


def test_touching_a_default_leaves_its_neighbours_default():
    assignments = ["scaling.weight.rounding=toward_zero"]
    sources = overrides.sources(TINY, apply(*assignments), assignments)
    assert sources["scaling.weight.rounding"] == "command line"
    assert sources["scaling.weight.kind"] == "default"


def test_a_list_serves_as_a_tuple():
    assert config.MLP(hidden=[64, 32]) == config.MLP(hidden=(64, 32))
    with pytest.raises(ValueError, match=r"hidden\.1"):
        config.MLP(hidden=[64, "32"])


def test_the_id_is_the_hash_of_what_decides_the_outcome():
    golden = Path(__file__).parent / "golden" / "digits_cpt.json"
    settings = json.loads(golden.read_text())
    del settings["name"], settings["tags"], settings["sinks"]
    del settings["keep_checkpoints"]
    data = digits.load().fingerprint
    whole = json.dumps(
        {"data": data, "config": settings}, sort_keys=True, separators=(",", ":")
    )
    assert identity.run_id(TINY) == hashlib.sha256(whole.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("assignment", "same"),
    [
        ("name=other", True),
        ('tags=["a"]', True),
        ("task.folder=/somewhere", True),
        ("seed=1", False),
        ("schedule.cycles=3", False),
        ("evaluate_every=200", False),
    ],
)
def test_name_tags_and_folder_are_no_part_of_the_id(assignment, same):
    experiment = load("fashion-mnist-cpt")
    changed = overrides.apply(experiment, [assignment])
    assert (identity.run_id(changed) == identity.run_id(experiment)) is same


@pytest.mark.parametrize(
    ("options", "data"),
    [
        (
            config.Teacher(target="regression", size=8, features=3, outputs=2),
            lambda: teacher.load("regression", size=8, features=3, outputs=2),
        ),
        (config.Function(size=8), lambda: function.load(8)),
        (config.Denoising(), denoising.load),
    ],
)
def test_the_fingerprint_is_the_one_of_the_data(options, data):
    assert identity.fingerprint(options) == data().fingerprint


def test_a_json_config_is_never_run(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("raise SystemExit('executed')")
    with pytest.raises(InputError, match="is not JSON"):
        load(str(path))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "defines no function config()"),
        ("def config(): raise SystemExit(0)", "line 1: SystemExit: 0."),
        ("def config(): raise ValueError", "line 1: ValueError."),
        ("def config(): raise ValueError('a\\nb')", "line 1: ValueError: a."),
        ("def config(x): return 3", "TypeError: config() missing 1 required"),
        (
            "from adaprec_jax.runs.load import load\ndef config():\n"
            "  return load('digits-cpt').model_copy(update={'name': '../../evil'})",
            "name: it must begin with a letter or digit",
        ),
        (
            "from adaprec_jax.runs.load import load\ndef config():\n"
            "  return load('digits-cpt').model_copy(update={'steps': 41})",
            "steps (41) must be a multiple of steps_per_dispatch (20).",
        ),
        ("def config(): return 3", "config() must return an Experiment, got int."),
        ("def config(:", "line 1: SyntaxError"),
        ("\n\nx = y", "line 3: NameError: name 'y' is not defined"),
        ("def config():\n  return {}['config_']", "line 2: KeyError"),
        (
            "from adaprec_jax.runs.config import CPT\n"
            "def config(): return CPT(min_bits=9, max_bits=8)",
            "CPT.min_bits (9) must not be above max_bits (8).",
        ),
    ],
)
def test_a_config_file_with_an_error_is_one_sentence(tmp_path, text, fault):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load(str(path))
    [sentence] = refused.value.args
    assert sentence.startswith(str(path))
    assert fault in sentence


ARMS = """
from adaprec_jax.runs.config import *
ARMS = ("slow", "fast")
def config(arm):
    rate = {"slow": 0.1, "fast": 0.5}[arm]
    return Experiment(
        name=f"mine-{arm}", task=Digits(), model=MLP(), steps=3, batch_size=4,
        optimizer=SGD(learning_rate=ConstantRate(peak=rate)),
    )
"""


@pytest.mark.parametrize(
    ("end", "name", "rate"),
    [(":slow", "mine-slow", 0.1), (":fast", "mine-fast", 0.5)],
)
def test_a_file_has_arms_that_are_named_behind_it(tmp_path, end, name, rate):
    path = tmp_path / "mine.py"
    path.write_text(ARMS)
    experiment = load(f"{path}{end}")
    assert experiment.name == name
    assert experiment.optimizer.learning_rate == config.ConstantRate(peak=rate)


def test_an_only_arm_need_not_be_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ARMS.replace('("slow", "fast")', '("fast",)'))
    assert load(str(path)) == load(f"{path}:fast")


@pytest.mark.parametrize("verb", ["run", "show", "plot", "range-test"])
def test_of_several_arms_none_is_taken_for_another(verb, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(ARMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adaprec", verb, "mine.py"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == (
        "adaprec: mine.py has 2 arms; name one: mine.py:slow or mine.py:fast.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "end", "fault"),
    [
        (ARMS, ":fats", " has no arm 'fats'; its arms are slow, fast."),
        ("def config(): pass", ":a", " has no arm 'a'; it defines no ARMS."),
        ("ARMS = ()", "", ": ARMS must be a tuple of names, at least one, got ()."),
        ("ARMS = ['a']", "", ": ARMS must be a tuple of names, at least one, got ['"),
        ("ARMS = ('a', 3)", ":a", ": ARMS must be a tuple of names, at least one, got"),
        ("ARMS = ('a',)", "", " defines no function config()."),
        ("ARMS = ('a',)\ndef config(): pass", "", ": TypeError: config() takes 0 pos"),
        ("def config(arm): pass", "", ": TypeError: config() missing 1 required pos"),
        (ARMS.replace('"fast":', '"fats":'), ":fast", ", line 5: KeyError: 'fast'."),
        (ARMS.replace("steps=3", "steps=0"), ":fast", ": steps should be at least 1"),
    ],
)
def test_what_is_wrong_with_arms_is_one_sentence(tmp_path, text, end, fault):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load(f"{path}{end}")
    [sentence] = refused.value.args
    assert sentence.startswith(f"{path}{fault}")


SHAKESPEARE = ["float32", "fp8", "late-switch", "mxfp8", "deepseek", "nvfp4"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shakespeare-fp9", SHAKESPEARE),
        ("shakespeare", SHAKESPEARE),
        ("shakespeare_late", SHAKESPEARE),
        ("shakspeare-fp8", ["fp8"]),
    ],
)
def test_an_unknown_arm_of_a_bundled_config_is_told_all_that_there_are(name, meant):
    with pytest.raises(InputError) as refused:
        load(name)
    [sentence] = refused.value.args
    *most, last = (repr(f"shakespeare-{arm}") for arm in meant)
    names = f"{', '.join(most)} or {last}" if most else last
    assert sentence == (
        f"Unknown config {name!r}; did you mean {names}? `adaprec configs` lists all."
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("digits-acordion", ["digits-accordion"]),
        ("digits", []),
        ("quite-another", []),
    ],
)
def test_an_unknown_config_does_not_name_them_all(name, meant):
    with pytest.raises(InputError) as refused:
        load(name)
    [sentence] = refused.value.args
    assert sentence.startswith(f"Unknown config {name!r}; ")
    assert sentence.endswith("`adaprec configs` lists all.")
    assert len(sentence) < 200
    assert all(repr(each) in sentence for each in meant)


def test_the_bundled_configs_are_listed_by_task(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaprec", "configs"])
    with pytest.raises(SystemExit):
        main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["config", "task", "model", "precision"]
    rows = {line.split()[0]: line.split(maxsplit=3) for line in lines}
    assert sorted(rows) == sorted(bundled())
    tasks = [row[1] for row in rows.values()]
    assert tasks == sorted(tasks)
    assert {"digits", "fashion_mnist", "function", "shakespeare"} <= set(tasks)
    assert rows["vit-int8"][1:] == ["digits", "vit", "int8"]
    assert rows["digits-cpt"][3] == "int3 to int8 in 6 cycles"
    assert rows["digits-warmup"][3].startswith("bfloat16; activation int4, weight")
    assert rows["shakespeare-nvfp4"][3].endswith("; nvfp4 scaling")


def test_a_bundled_arm_is_called_by_file_and_arm():
    path, arm = bundled()["fashion-mnist-two-threshold"]
    assert (path.name, arm) == ("fashion_mnist.py", "two-threshold")
    assert load("fashion_mnist_two_threshold") == load(f"{path}:two-threshold")


@pytest.mark.parametrize("name", ["no.py", "no.json", "."])
def test_a_config_that_is_not_there_is_one_sentence(name, tmp_path):
    with pytest.raises(InputError) as refused:
        load(str(tmp_path / name))
    assert len(refused.value.args) == 1


@pytest.mark.parametrize(
    ("model", "function", "given_by_build"),
    [
        (config.MLP, models.MLP, {"outputs"}),
        (config.CNN, models.CNN, {"outputs"}),
        (config.Transformer, models.Transformer, {"context"}),
        (config.ResNet, models.ResNet, {"outputs"}),
        (config.ViT, models.ViT.__init__, {"self", "image", "outputs", "rngs"}),
        (config.Recurrent, models.Recurrent, {"outputs"}),
        (config.Experts, models.Experts, {"outputs"}),
        (
            config.Graph,
            models.Graph.__init__,
            {"self", "grid", "features", "outputs", "rngs"},
        ),
        (config.Denoiser, models.Denoiser, set()),
        (
            config.Siren,
            models.Siren.__init__,
            {"self", "features", "outputs", "rngs"},
        ),
        (config.CPT, schedules.cpt, {"steps"}),
        (config.Cyclic, schedules.cyclic, {"steps"}),
        (config.TwoThreshold, schedules.two_threshold, {"quantities"}),
        (config.MoR, schedules.mor, set()),
        (config.Snip, schedules.snip, set()),
        (config.AMPA, schedules.ampa, set()),
        (config.Sqrt3, schedules.sqrt3, set()),
        (config.AdaptKummer, schedules.adapt_kummer, set()),
        (config.LDP, schedules.ldp, set()),
        (config.AdaptiveLossScale, schedules.adaptive_loss_scale, set()),
        (config.PFQ, schedules.pfq, set()),
        (config.MuPPET, schedules.muppet, set()),
        (config.QEM, schedules.qem, set()),
        (config.APT, schedules.apt, set()),
        (config.Accordion, schedules.accordion, set()),
        (config.Maturity, schedules.maturity, set()),
        (config.ByBottleneck, schedules.by_bottleneck, set()),
        (config.LateSwitch, schedules.late_switch, {"steps"}),
        (config.Deficit, schedules.deficit, set()),
        (config.NoLossScaling, loss_scaling.none, {"inner"}),
        (config.StaticLossScaling, loss_scaling.static, {"inner"}),
        (config.DynamicLossScaling, loss_scaling.dynamic, {"inner"}),
        (config.NoScaling, scaling.none, set()),
        (config.CurrentScaling, scaling.current, set()),
        (config.DelayedScaling, scaling.delayed, set()),
        (config.PerChannelScaling, scaling.per_channel, set()),
        (config.BlockScaling, scaling.blockwise, set()),
        (config.MXScaling, scaling.mx, set()),
        (config.NVFP4Scaling, scaling.nvfp4, set()),
        (config.SBMScaling, scaling.sbm, set()),
        (config.DoReFaScaling, scaling.dorefa, {"role"}),
        (config.WAGEScaling, scaling.wage, {"role"}),
        (config.SWALPScaling, scaling.swalp, set()),
        (config.MuPPETScaling, scaling.muppet, set()),
        (config.NoiseScaling, scaling.noise, set()),
    ],
)
def test_settings_are_called_like_the_arguments_they_become(
    model, function, given_by_build
):
    arguments = set(inspect.signature(function).parameters) - {"parent", "name"}
    assert set(model.model_fields) - {"kind"} == arguments - given_by_build


def test_statistics_and_roles_are_those_that_a_step_gathers():
    assert set(get_args(base.Statistic)) == set(statistics.QUANTITIES)
    assert get_args(base.Role) == statistics.ROLES


def settings_models(model: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        if child.__module__.startswith("adaprec_jax"):
            yield child
        yield from settings_models(child)


def test_every_number_says_what_it_is():
    undescribed = [
        f"{model.__name__}.{name}"
        for model in settings_models()
        for name, field in model.model_fields.items()
        if field.annotation in (int, float) and not field.description
    ]
    assert undescribed == []


def test_no_setting_is_called_like_a_kind():
    """Places in error messages are told from pydantic's tags by that."""
    fields = {name for model in settings_models() for name in model.model_fields}
    kinds = {
        model.model_fields["kind"].default
        for model in settings_models()
        if "kind" in model.model_fields
    }
    assert fields & kinds == set()
