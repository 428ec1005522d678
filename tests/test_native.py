"""Native products against emulated ones: the same numbers, the same decisions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from adaprec_jax import formats, schedules, targets
from adaprec_jax.cli import main
from adaprec_jax.contractions import (
    Options,
    contraction_table,
    value_and_grad,
    with_precision,
)
from adaprec_jax.contractions.kernels import Kernel, Kernels
from adaprec_jax.native import (
    Native,
    choose,
    foresee,
    kernels_of,
    make_native_dispatch,
)
from adaprec_jax.native.ahead import compile_for
from adaprec_jax.plan import integers, uniform
from adaprec_jax.precision import SharedPrecision
from adaprec_jax.runs import dispatching, metrics, run as running, store
from adaprec_jax.scaling import Recipes, current, per_channel
from adaprec_jax.stats import empty
from adaprec_jax.targets import CONTAINERS, EMULATED, holds, kernel
from adaprec_jax.train import make_dispatch, make_train_step, record
from adaprec_jax.train.loop import CannotGoOnError
from tests.small_run import (
    PROGRAM,
    TABLE,
    assert_equal,
    batches,
    first_state,
    init,
    loss,
    one,
)
from tests.test_run import tiny
from tests.walk_models import TOKENS, Cnn, Mlp, Model, Transformer, linen, normal

CPU = targets.get("cpu")
E4M3, E5M2 = formats.get("float8_e4m3fn"), formats.get("float8_e5m2")
BF16, F16 = formats.get("bfloat16"), formats.get("float16")
FP8 = SharedPrecision(E4M3, E4M3, E5M2)
# A device whose matrix products XLA:CPU cannot compile.
BROKEN = CPU._replace(matrix_products=(("int4", "int4"), *CPU.matrix_products))


def all_native(choices) -> bool:
    return not any(k.emulated for choice in choices.values() for k in choice.kernels)


def values_of(name: str) -> np.ndarray:
    """Every number of a narrow format, as ml_dtypes or the definition has them."""
    if name.startswith(("int", "uint")):
        width = int(name.removeprefix("u").removeprefix("int"))
        low, high = (-(2 ** (width - 1)), 2 ** (width - 1)) if name[0] == "i" else (
            0, 2**width,
        )  # fmt: skip
        return np.arange(low, high).astype(np.float32)
    dtype = np.dtype(getattr(ml_dtypes, name))
    codes = np.arange(2 ** ml_dtypes.finfo(dtype).bits, dtype=np.uint8)
    found = codes.view(dtype).astype(np.float32)
    return found[~np.isnan(found)]


NARROW = [
    name
    for name in formats.names()
    if name != "float8_e8m0fnu" and name.startswith(("float8", "float6", "float4"))
] + [f"{kind}{width}" for kind in ("int", "uint") for width in range(2, 9)]


@pytest.mark.parametrize("dtype", CONTAINERS)
def test_a_dtype_holds_a_format_if_a_cast_there_and_back_changes_no_number(dtype: str):
    low, high = {"int4": (-8, 7), "int8": (-128, 127)}.get(dtype, (0, 0))
    for name in NARROW:
        numbers = values_of(name)
        if high:
            inside = np.clip(np.round(np.nan_to_num(numbers)), low, high)
            kept = bool(
                np.all(inside == numbers)
                and not np.any(np.signbit(numbers) & (numbers == 0))
            )
        else:
            with np.errstate(over="ignore"):
                cast = numbers.astype(jnp.dtype(dtype)).astype(np.float32)
            same = (cast == numbers) & (np.signbit(cast) == np.signbit(numbers))
            kept = bool(np.all(same))
        assert bool(holds(dtype, formats.get(name))) == kept, (name, dtype)


def test_a_wide_format_runs_where_it_is_held_and_no_place_else():
    pairs = targets.get("h100").matrix_products
    assert kernel(pairs, BF16, BF16) == ("bfloat16", "bfloat16")
    assert kernel(pairs, F16, E5M2) == ("float16", "float16")
    assert kernel(pairs, BF16, F16) == EMULATED
    assert kernel(pairs, formats.get("float32"), E4M3) == EMULATED
    assert kernel(pairs, formats.get("tf32"), formats.get("tf32")) == EMULATED
    assert kernel(pairs, formats.integer(9), formats.integer(8)) == (
        "float16", "float16",
    )  # fmt: skip
    # One executable for all steps: what holds the widest of them.
    several = formats.integer(np.array([3, 8]))
    assert kernel(pairs, several, several) == ("int8", "int8")


def test_every_target_names_dtypes_that_hold_formats_and_says_its_source():
    for name in targets.names():
        target = targets.get(name)
        pairs = target.matrix_products + target.convolutions
        assert {dtype for pair in pairs for dtype in pair} <= set(CONTAINERS)
        assert target.source
        assert bool(target.topology) == (target.platform == "tpu")
        assert bool(target.device) == (target.platform == "cuda")


class Lstm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(8))(x)[:, -1])


MODELS = {
    "mlp": lambda: linen(Mlp(), normal(1, 6, 5)),
    "cnn": lambda: linen(Cnn(), normal(2, 2, 8, 8, 3)),
    "transformer": lambda: linen(Transformer(), TOKENS),
    "lstm": lambda: linen(Lstm(), normal(4, 3, 5, 4)),
}
ENTRIES = {
    "float8": FP8,
    "int8": integers(8, 8),
    "int3": integers(3, 4),
    "bfloat16": SharedPrecision(BF16, BF16, BF16),
    "float16": SharedPrecision(F16, F16, F16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_native_gradients_are_the_emulated_ones(name: str):
    model: Model = MODELS[name]()

    def mean_square(params, *inputs):
        out = model.fn(params, *inputs)
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(out)), None

    table = contraction_table(mean_square, model.params, *model.inputs)
    program = PROGRAM._replace(table=table, options=Options())
    for label, entry in ENTRIES.items():
        plan = uniform(table, entry)
        choices = choose(program, record.pack_plan(plan, table), CPU)
        assert all_native(choices), (label, choices)
        native = Options(kernels=kernels_of(choices))
        emulated, found = (
            jax.jit(value_and_grad(mean_square, options))(
                model.params, *model.inputs, plan=plan
            )
            for options in (Options(), native)
        )
        if label in ("float8", "int8", "int3"):
            assert_equal(found, emulated)
        else:
            # Of each product at most 2 k 2^-24 sum |a| |b|; they follow one another.
            for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(emulated[1]),
                            strict=True):  # fmt: skip
                scale = float(jnp.max(jnp.abs(b)))
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


def test_native_gradients_of_layers_in_a_loop_are_the_emulated_ones():
    program = PROGRAM._replace(options=Options())
    params, model_state = init(jax.random.key(0))
    arguments = (params, model_state, one(batches(1), 0), jax.random.key(0))
    for entry in (FP8, integers(3, 4)):
        plan = uniform(TABLE, entry)
        choices = choose(program, record.pack_plan(plan, TABLE), CPU)
        assert all_native(choices)
        emulated, native = (
            jax.jit(value_and_grad(loss, options))(*arguments, plan=plan)
            for options in (Options(), Options(kernels=kernels_of(choices)))
        )
        assert_equal(native, emulated)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_native_product_differs_by_the_order_of_its_sum(dtype: str):
    k = 300
    x, w = normal(0, 20, k), {"w": normal(1, k, 30)}
    fmt = formats.get(dtype)
    plan = {"w": SharedPrecision(fmt, fmt, fmt)}
    options = Options(kernels={"w": Kernels(*[Kernel(dtype, dtype)] * 3)})

    def product(options):
        return with_precision(lambda p, x: x @ p["w"], options)(plan, w, x)

    a, b = (np.abs(np.asarray(v.astype(dtype), np.float64)) for v in (x, w["w"]))
    bound = 2 * k * 2.0**-24 * (a @ b)
    difference = np.abs(np.asarray(product(options) - product(Options()), np.float64))
    assert np.all(difference <= bound)


def test_nan_is_not_lost_in_an_integer():
    plan = {"w": integers(8, 8)}
    options = Options(kernels={"w": Kernels(*[Kernel("int8", "int8")] * 3)})
    fn = with_precision(lambda p, x: x @ p["w"], options)
    x = jnp.ones((2, 3)).at[0, 0].set(jnp.nan)
    assert np.isnan(fn(plan, {"w": jnp.ones((3, 2))}, x)).any()


def test_the_compiled_product_has_the_chosen_operands():
    program = PROGRAM._replace(options=Options())
    plan = uniform(TABLE, integers(4, 8))
    options = Options(kernels=kernels_of(choose(
        program, record.pack_plan(plan, TABLE), CPU
    )))  # fmt: skip
    step = make_train_step(program._replace(options=options))
    batch = jax.tree.map(lambda leaf: leaf[0], batches(1))
    compiled = compile_for(CPU, step, first_state(program), batch)
    assert {product.dtypes for product in compiled.found.products} == {("s8", "s8")}
    of_last = [
        product for product in compiled.found.products if product.is_of("last", "wgrad")
    ]
    assert len(of_last) == 1


def test_what_cannot_be_native_is_emulated_and_says_why():
    recipes = Recipes(per_channel(), per_channel(), current())
    program = PROGRAM._replace(options=Options(recipes))
    packed = record.pack_plan(uniform(TABLE, FP8), TABLE)
    choice = choose(program, packed, CPU)["last"]
    assert all(each.emulated for each in choice.kernels)
    assert choice.reasons[0] == "the scale differs within the activation"
    wide = record.pack_plan(uniform(TABLE, integers(16, 16)), TABLE)
    choice = choose(PROGRAM._replace(options=Options()), wide, CPU)["last"]
    assert choice.reasons == ("a CPU, by XLA multiplies no dtypes that hold int16",) * 3


def float8_controller() -> schedules.Schedule:
    """A closed loop: E4M3 while the gradient's norm is above its running mean."""

    def init(table):
        return jnp.float32(0)

    def update(step, stats, mean):
        above = stats.gradient_norm > mean
        entry = schedules.select(
            above, *[SharedPrecision(*[f] * 3) for f in (E4M3, E5M2)]
        )
        new = jnp.where(stats.finite, 0.8 * mean + 0.2 * stats.gradient_norm, mean)
        return uniform(TABLE, entry), new

    return schedules.Schedule(init, update)


def run_all(dispatch, program, steps: int, size: int, start=None):
    state = start or first_state(program)
    found = []
    for step in range(int(state.calls), steps, size):
        state, measured = dispatch(state, batches(size, step))
        found.append(jax.device_get(measured))
    return state, found


def test_a_closed_loop_takes_the_same_decisions_in_both_modes():
    schedule = schedules.late(float8_controller(), every=4, dispatches=1)
    program = PROGRAM._replace(schedule=schedule)
    native = make_native_dispatch(program, Native(CPU, 200, 4), first_state(program))
    emulated = make_dispatch(make_train_step(program))
    ended, measured = run_all(native, program, 200, 4)
    native.close()
    expected, wanted = run_all(emulated, program, 200, 4)
    assert_equal(ended, expected)
    assert_equal(measured, wanted)
    plans = np.concatenate([m.plan for m in measured])
    changed = np.flatnonzero((plans[1:] != plans[:-1]).any(axis=(1, 2, 3))) + 1
    assert len(changed) >= 5
    assert not np.any(changed % 4)  # at the beginning of a dispatch


def test_late_decisions_hold_from_the_dispatch_after_the_next():
    bits = [8, 7, 6, 5, 4, 3, 2]
    inner = schedules.piecewise([2, 4, 6, 8, 10, 12], [integers(b, 8) for b in bits])
    schedule = schedules.late(inner, every=3, dispatches=1)
    state, found = schedule.init(TABLE), []
    for step in range(14):
        plan, state = schedule.update(jnp.int32(step), empty(TABLE), state)
        found.append(int(formats.bits(plan["last"].weight)))
    # Decided in steps 2, 5, 8: 7, 6 and 4 bits; two dispatches of three steps later.
    assert found == [8] * 6 + [7] * 3 + [6] * 3 + [4] * 2
    with pytest.raises(ValueError, match="Expected dispatches of at least 1 step"):
        schedules.late(inner, every=0, dispatches=1)


def test_a_schedule_keeps_to_what_a_device_multiplies():
    h100 = targets.get("h100")
    wide = SharedPrecision(E4M3, E4M3, formats.get("tf32"))
    inner = schedules.piecewise([1, 2], [FP8, wide, integers(16, 8)])
    schedule = schedules.native_on(inner, h100, BF16)
    state, found = schedule.init(TABLE), []
    for step in range(3):
        plan, state = jax.jit(schedule.update)(jnp.int32(step), empty(TABLE), state)
        found.append([formats.describe(fmt) for fmt in plan["last"]])
    assert found == [
        ["float8_e4m3fn", "float8_e4m3fn", "float8_e5m2"],
        ["bfloat16"] * 3,
        ["bfloat16"] * 3,
    ]
    with pytest.raises(ValueError, match="has no native product of the fallback"):
        schedules.native_on(inner, h100, formats.get("float32"))


def switching() -> schedules.Schedule:
    return schedules.piecewise(
        [6, 10], [FP8, SharedPrecision(BF16, BF16, BF16), integers(4, 8)]
    )


def test_a_schedule_that_is_known_needs_an_executable_for_each_set_of_dtypes():
    program = PROGRAM._replace(schedule=switching(), options=Options())
    order, kinds = foresee(program, CPU, steps=16, dispatch=4)
    # Steps 4 and 5 are float8, which bfloat16 holds; 8 and 9 bfloat16, with int4.
    assert order == (0, 1, 1, 2)
    forward = [kind["last"].forward.left for kind in kinds]
    assert forward == ["float8_e4m3fn", "bfloat16", "int8"]
    with pytest.raises(ValueError, match="needs 3 executables, and max_executables is"):
        make_native_dispatch(
            program, Native(CPU, 16, 4, max_executables=2), first_state(program)
        )


@pytest.mark.slow
def test_a_native_run_goes_on_from_any_dispatch():
    program = PROGRAM._replace(schedule=switching())
    native = Native(CPU, 16, 4)
    whole = make_native_dispatch(program, native, first_state(program))
    ended, _ = run_all(whole, program, 16, 4)
    assert whole.report().executables == 3
    whole.close()
    halfway = make_native_dispatch(program, native, first_state(program))
    state, _ = run_all(halfway, program, 8, 4)
    halfway.close()
    again = make_native_dispatch(program, native, state)
    resumed, _ = run_all(again, program, 16, 4, start=state)
    again.close()
    assert_equal(resumed, ended)


def test_a_schedule_that_learns_must_decide_ahead():
    with pytest.raises(ValueError, match=r"put it into schedules\.late"):
        make_native_dispatch(PROGRAM, Native(CPU, 8, 4), first_state())


@pytest.mark.slow
def test_what_does_not_compile_stops_the_run_or_is_emulated():
    schedule = schedules.piecewise([4], [integers(8, 8), integers(4, 4)])
    program = PROGRAM._replace(schedule=schedule, options=Options())
    stops = make_native_dispatch(program, Native(BROKEN, 8, 4), first_state(program))
    state, _ = run_all(stops, program, 4, 4)
    with pytest.raises(CannotGoOnError, match="an executable could not be compiled"):
        stops(state, batches(4, 4))
    stops.close()
    goes_on = make_native_dispatch(
        program, Native(BROKEN, 8, 4, emulate_failures=True), first_state(program)
    )
    ended, _ = run_all(goes_on, program, 8, 4)
    assert len(goes_on.report().failures) == 1
    goes_on.close()
    expected, _ = run_all(make_dispatch(make_train_step(program)), program, 8, 4)
    assert_equal(ended, expected)


INTEGERS = (
    '[{"kind": "shared", "activation": "int8", "weight": "int8", "gradient": "int8"},'
    '{"kind": "shared", "activation": "int4", "weight": "int4", "gradient": "int4"}]'
)
SWITCHES = {
    "schedule.kind": "piecewise",
    "schedule.boundaries": "[8]",
    "schedule.precisions": INTEGERS,
    "execution.kind": "native",
}


def test_a_native_run_has_the_rows_of_the_emulated_one(tmp_path):
    emulated, native = tiny(), tiny({"execution.kind": "native"})
    outcomes = [running.run(each, out=tmp_path) for each in (emulated, native)]
    columns = [
        metrics.read(store.locate(tmp_path, each) / store.METRICS)
        for each in (emulated, native)
    ]
    np.testing.assert_equal(*columns)  # NaN equals NaN
    assert outcomes[1].state == "done", outcomes[1].message
    assert outcomes[1].results["compilations"] == 1  # 3 to 8 bits, all of them as int8
    assert outcomes[1].results["executables_emulated"] == 0


def test_a_run_that_cannot_be_compiled_keeps_a_checkpoint_and_says_so(
    tmp_path, monkeypatch
):
    experiment = tiny(SWITCHES)
    monkeypatch.setattr(dispatching, "target_here", lambda name: BROKEN)
    outcome = running.run(experiment, out=tmp_path)
    assert (outcome.state, outcome.step) == ("failed", 8)
    assert outcome.message.startswith("an executable could not be compiled:")
    monkeypatch.undo()
    outcome = running.run(experiment, out=tmp_path)
    assert (outcome.state, outcome.step) == ("done", 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["execution.kind=native", "execution.target=h100"],
         "execution.target: h100 is not here, JAX finds cpu"),
        (["execution.kind=native", "execution.late=0"], "execution.late"),
        (["execution.kind=native", "execution.target=h1"], "execution.target"),
    ],
)  # fmt: skip
def test_wrong_settings_get_a_sentence(
    arguments: list[str], said: str, tmp_path, capsys, monkeypatch
):
    settings = [part for each in arguments for part in ("--set", each)]
    monkeypatch.setattr(
        "sys.argv", ["adaprec", "run", "digits-int8", *settings, "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_mesh_rounds_and_multiplies_as_one_device():
    program = PROGRAM._replace(schedule=switching())
    alone = make_native_dispatch(program, Native(CPU, 16, 4), first_state(program))
    expected, _ = run_all(alone, program, 16, 4)
    alone.close()
    from adaprec_jax.train import data_mesh, everywhere, replicate, shard

    mesh = data_mesh(jax.devices()[:8])
    start = replicate(first_state(program), mesh)
    spread = make_native_dispatch(program, Native(CPU, 16, 4), start, everywhere(mesh))
    ended, _ = run_all(
        lambda state, batch: spread(state, shard(batch, mesh)), program, 16, 4, start
    )
    spread.close()
    assert_equal(ended.plan, expected.plan)
    for a, b in zip(
        jax.tree.leaves(ended.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)
