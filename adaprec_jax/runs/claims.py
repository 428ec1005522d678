"""The field's headline claims beside what is counted and modelled here.

Each verdict follows from numbers by one rule, so that no wording can bend it: a claim
is supported if all that is counted or modelled reaches it, not supported if nothing
does, and untested if only a measurement could tell. None of these numbers is one.
Narrow formats are given the best that training with them does: results of forward and
dgrad in 16 bits.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from adaprec_jax.cost.devices import device
from adaprec_jax.cost.lenses import look
from adaprec_jax.cost.numbers import FLOAT32
from adaprec_jax.cost.quantity import saving
from adaprec_jax.cost.tally import Tally
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.costing import in_one_format
from adaprec_jax.runs.counted import Counted, counted
from adaprec_jax.runs.load import load
from adaprec_jax.runs.overrides import apply

Verdict: TypeAlias = Literal["supported", "not supported", "untested"]

_ENERGY = ("arith45", "arith45_mem", "arith7", "arith7_mem")
_DEVICES = ("a100", "h100", "b200", "mi300x")
_LARGE = (
    "model.layers=8", "model.width=4096", "model.heads=32", "task.context=2048",
    "batch_size=8",
)  # fmt: skip
# Name -> format, claimed speed, claimed share of energy, claimed share of memory.
_FORMATS = {
    "FP16/BF16": ("bfloat16", 2.0, (0.30, 0.50), 0.50),
    "FP8": ("float8_e4m3fn", 4.0, (0.0, 0.60), 0.75),
    "INT8": ("int8", 4.0, (0.0, 0.70), 0.75),
    "INT4": ("int4", 8.0, (0.0, 0.80), 0.87),
}
_UPPER = {"INT8": 6.0}  # where a claim of speed is a range


class Claim(NamedTuple):
    """A claim beside what is known of it.

    Attributes:
        claim: In a few words.
        claimed: The figure.
        low: The lowest that is counted or modelled; None where nothing is.
        high: The highest.
        unit: Of these: "x", "%" or "".
        basis: What they are from.
        measured: What was measured here; "none" where nothing was.
        verdict: By `judge`.
    """

    claim: str
    claimed: str
    low: float | None
    high: float | None
    unit: str
    basis: str
    measured: str
    verdict: Verdict


class Sized(NamedTuple):
    """A model of some size, its step counted."""

    name: str
    experiment: Experiment
    counted: Counted


def judge(claimed: int | float, low: float | None, high: float | None) -> Verdict:
    """Returns the verdict on a claim that something is at least so much.

    >>> judge(2.0, 2.5, 3.0), judge(2.0, 1.0, 1.9), judge(2.0, 1.0, 3.0)
    ('supported', 'not supported', 'untested')
    """
    if low is None or high is None:
        return "untested"
    # Published peaks are rounded to a unit in the fourth digit.
    if low >= claimed * (1 - 1e-3):
        return "supported"
    return "not supported" if high < claimed * (1 - 1e-3) else "untested"


def all_sizes() -> list[Sized]:
    """Returns a small, a middle and a large model, with the work of a step of each.

    The large one is a transformer of width 4096, 8 blocks and 2048 bytes of context,
    where products take most of the time; it is counted and never run.
    """
    chosen = (
        ("digits MLP", load("digits-float32")),
        ("Shakespeare transformer", load("shakespeare-float32")),
        ("transformer of width 4096", apply(load("shakespeare-float32"), _LARGE)),
    )
    return [Sized(name, each, counted(each)) for name, each in chosen]


def claims(sizes: Sequence[Sized]) -> list[Claim]:
    """Returns all claims, judged over models of some sizes."""
    found = [_fewer_flops(sizes), _occupancy(), _a_quarter()]
    for name in _FORMATS:
        found += [_speed(name, base, sizes) for base in ("tf32", "float32")]
        found += [_energy(name, sizes), _power(name, sizes), *_memory(name, sizes)]
    return found


def _fewer_flops(sizes: Sequence[Sized]) -> Claim:
    ratios = []
    for each in sizes:
        wide, narrow = (_in(each, name) for name in ("float32", "int8"))
        ratios += [1 - _arithmetic(narrow) / _arithmetic(wide)]
    low, high = 100 * min(ratios), 100 * max(ratios)
    return Claim(
        "fewer bits mean fewer FLOPs", "above 0 %", low, high, "%",
        "counted operations of INT8 against float32, scales and casts included", "none",
        "supported" if low > 0 else "not supported" if high <= 0 else "untested",
    )  # fmt: skip


def _in(each: Sized, name: str) -> Tally:
    """Returns a step in one format, with results as training in it writes them."""
    bits = 32.0 if name in ("float32", "tf32") else 16.0
    return in_one_format(each.experiment, each.counted, name, bits)


def _arithmetic(done: Tally) -> float:
    return 2 * done.macs + done.operations + done.quantiser


def _occupancy() -> Claim:
    return Claim(
        "low precision raises occupancy", "", None, None, "",
        "registers and warps are in no lens", "none", "untested",
    )  # fmt: skip


def _a_quarter() -> Claim:
    # A tensor of a million numbers, and one float32 scale.
    share = 100 * (1 - (8 * 1e6 + 32) / (32 * 1e6))
    return Claim(
        "INT8 tensors need a quarter of the memory", "75 %", share, share, "%",
        "storage of one tensor with its scale", "none", judge(75.0, share, share),
    )  # fmt: skip


def _speed(name: str, base: str, sizes: Sequence[Sized]) -> Claim:
    fmt, claimed, _, _ = _FORMATS[name]
    found = _times(fmt, base, sizes)
    text = (
        f"{claimed:g}x" if name not in _UPPER else f"{claimed:g} to {_UPPER[name]:g}x"
    )
    low, high = min(found), max(found)
    return Claim(
        f"{name}: speed over {base.upper().replace('FLOAT', 'FP')}", text, low, high,
        "x", "roofline on A100, H100, B200 and MI300X", "none",
        judge(claimed, low, high),
    )  # fmt: skip


def _times(fmt: str, base: str, sizes: Sequence[Sized]) -> list[float]:
    """Returns the ratios of time on devices that have a rate for the formats."""
    found = []
    for each in sizes:
        wide, narrow = (_in(each, name) for name in (base, fmt))
        for name in _DEVICES:
            before, after = (
                look("time", done, device(name)) for done in (wide, narrow)
            )
            if before is not None and after is not None:
                found.append(before.value / after.value)
    return found


def _energy(name: str, sizes: Sequence[Sized]) -> Claim:
    fmt, _, (least, most), _ = _FORMATS[name]
    lenses = (*_ENERGY, "chip", "roofline")
    saved = [found for lens in lenses if (found := _saved(lens, fmt, sizes))]
    # "Up to" is said of the best case: of the best size under each lens.
    ends = [x for found in saved for x in (found if least else [max(found)])]
    low, high = 100 * min(ends), 100 * max(ends)
    text = (
        f"{100 * least:g} to {100 * most:g} %" if least else f"up to {100 * most:g} %"
    )
    which = "all sizes" if least else "best size"
    return Claim(
        f"{name}: energy", text, low, high, "%",
        f"{which}, over FP32 by tables, over TF32 on H100", "none",
        judge(100 * (least or most), low, high),
    )  # fmt: skip


def _saved(lens: str, fmt: str, sizes: Iterable[Sized]) -> list[float]:
    """Returns the saving of each size, none if a lens does not know the format."""
    on_device = lens in ("chip", "roofline")
    base, chosen = ("tf32", device("h100")) if on_device else ("float32", None)
    found = []
    for each in sizes:
        wide, narrow = (_in(each, name) for name in (base, fmt))
        saved = saving(look(lens, wide, chosen), look(lens, narrow, chosen))
        found += [] if saved is None else [saved.value]
    return found


def _power(name: str, sizes: Sequence[Sized]) -> Claim:
    """Sets the pair of claims beside the average power that it implies."""
    fmt, speed, (least, most), _ = _FORMATS[name]
    ends = [s * (1 - e) for s in (speed, _UPPER.get(name, speed))
            for e in ((least, most) if least else (most,))]  # fmt: skip
    low, high = min(ends), max(ends)
    rises = f"{low:.1f} to {high:.1f}x" if high > low else f"{low:.1f}x"
    ratios = []
    for each in sizes:
        wide, narrow = (_in(each, kind) for kind in ("tf32", fmt))
        ratios += _average_power(wide, narrow)
    return Claim(
        f"{name}: average power that speed and energy imply", rises,
        min(ratios), max(ratios), "x",
        "arithmetic and memory at 7 nm over the time of the roofline on H100", "none",
        judge(low, min(ratios), max(ratios)),
    )  # fmt: skip


def _average_power(wide: Tally, narrow: Tally) -> list[float]:
    """Returns the ratio of the powers, if both are known.

    The table has no TF32: its multiplications count as those of float32.
    """
    chosen = device("h100")
    full = narrow._replace(
        terms=tuple(
            n._replace(first=FLOAT32, second=FLOAT32, read=w.read, written=w.written)
            for w, n in zip(wide.terms, narrow.terms, strict=True)
        ),
        quantiser=0.0,
    )
    energies = [look("arith7_mem", done) for done in (full, narrow)]
    times = [look("time", done, chosen) for done in (wide, narrow)]
    if None in energies or None in times:
        return []
    powers = [
        e.value / t.value for e, t in zip(energies, times, strict=True) if e and t
    ]
    return [powers[1] / powers[0]]


def _memory(name: str, sizes: Sequence[Sized]) -> list[Claim]:
    fmt, _, _, claimed = _FORMATS[name]
    bits = {"bfloat16": 16, "float8_e4m3fn": 8, "int8": 8, "int4": 4}[fmt]
    stored = 100 * (1 - bits / 32)
    # Parameters, gradients and moments stay in float32, beside a narrow copy.
    saved = []
    for each in sizes:
        memory = each.counted.memory
        before = sum(memory)
        copy = each.counted.parameters * bits / 8
        after = before - memory.activations * (1 - bits / 32) + copy
        saved.append(100 * (1 - after / before))
    text = f"{100 * claimed:g} %"
    return [
        Claim(f"{name}: memory of a stored tensor", text, stored, stored, "%",
              "bits", "none", judge(100 * claimed, stored, stored)),
        Claim(f"{name}: memory of a training step", text, min(saved), max(saved), "%",
              "counted; all kept activations narrow, float32 masters and moments",
              "none", judge(100 * claimed, min(saved), max(saved))),
    ]  # fmt: skip
