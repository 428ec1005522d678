"""Lenses: ways to turn counted work into a cost, each with a band and its source.

What a format saves depends more on the lens than on the format: an addition in float32
after every FP8 product costs more than the product. So there are several, and a report
shows them side by side.
"""

from typing import NamedTuple

from adaprec_jax.cost import arithmetic
from adaprec_jax.cost.arithmetic import Energy, Node
from adaprec_jax.cost.devices import Device, unit
from adaprec_jax.cost.numbers import FLOAT32
from adaprec_jax.cost.quantity import Quantity
from adaprec_jax.cost.tally import Tally, Term

TABLES = ("bitops", "ace", "arith45", "arith45_mem", "arith7", "arith7_mem")
DEVICES = ("chip", "roofline", "time")
LENSES = (*TABLES, *DEVICES)
_SOURCES = {
    "45nm": "Horowitz, ISSCC 2014 (45 nm)",
    "7nm": "Jouppi et al., ISCA 2021, table 2 (7 nm)",
}
_LEAST_POWER = 0.6  # of the rated power, under load; ours


class Bound(NamedTuple):
    """Where a product spends its time on a device.

    Attributes:
        compute: Seconds at the peak rate of its units; None without a published one.
        memory: Seconds at the peak bandwidth.
        unit: The units it computes in.
    """

    compute: float | None
    memory: float
    unit: str | None

    @property
    def kind(self) -> str | None:
        """What takes longer, "compute" or "memory"; None if it is not known."""
        if self.compute is None:
            return None
        return "compute" if self.compute >= self.memory else "memory"


def look(lens: str, done: Tally, device: Device | None = None) -> Quantity | None:
    """Returns the cost of some work through one lens; None where it is not known.

    `bitops` and `ace` count bit operations: `bitops` as CPT publishes it, three
    products for each contraction; `ace` of the products that run, those of no plan in
    float32.
    `arith45` and `arith7` add the energy of all arithmetic, `..._mem` that of the
    memory, too. On a device, `chip` is its rated power times the time that the products
    take at peak, `roofline` times the longer of computing and moving of each product;
    `time` is that of `roofline`. No efficiency below peak is assumed.

    Args:
        lens: One of `LENSES`.
        done: The work.
        device: Needed by those of `DEVICES`.

    Raises:
        ValueError: The lens is unknown, or needs a device.
    """
    if lens not in LENSES:
        raise ValueError(f"lens must be one of {', '.join(LENSES)}, got {lens!r}.")
    if lens in DEVICES:
        if device is None:
            raise ValueError(f"The lens {lens} needs a device.")
        return _on_device(lens, done, device)
    if lens == "bitops":
        found = sum(t.nominal * t.first.bits * t.second.bits for t in done.terms)
        return _exact(found / 1e9, "Gbitop", "CPT, arXiv:2101.09868")
    if lens == "ace":
        found = sum(t.macs * t.first.bits * t.second.bits for t in done.terms)
        found += done.unplanned * FLOAT32.bits**2
        return _exact(found / 1e9, "Gbitop", "ACE of PokeBNN, of the products that run")
    node: Node = "45nm" if lens.startswith("arith45") else "7nm"
    return _arithmetic(node, done, memory=lens.endswith("_mem"))


def bound(term: Term, device: Device) -> Bound:
    """Returns how long a product computes and moves on a device."""
    chosen = unit(device, term.first, term.second)
    compute = None if chosen is None else 2 * term.macs / device.rates[chosen]
    moved = sum(term.read) + term.written
    return Bound(compute, moved / device.bandwidth, chosen)


def _exact(value: float, unit: str, source: str) -> Quantity:
    return Quantity(value, unit, value, value, "modelled", source)


def _arithmetic(node: Node, done: Tally, *, memory: bool) -> Quantity | None:
    found = Energy(0.0, 0.0, 0.0)
    source = _SOURCES[node]
    for term in done.terms:
        if not term.macs:
            continue
        each = arithmetic.mac(node, term.first, term.second)
        if each is None:
            return None
        if not all(arithmetic.rechecked(node, f) for f in (term.first, term.second)):
            source = f"{_SOURCES[node]}; 16-bit floats recalled, not re-checked"
        found = found.plus(each.times(term.macs))
    wide = arithmetic.mac(node, FLOAT32, FLOAT32)
    if wide is not None:
        found = found.plus(wide.times(done.unplanned))
    others = done.operations + done.quantiser
    found = found.plus(arithmetic.elementwise(node).times(others))
    if memory:
        bits = 8 * sum(done.traffic().values())
        found = found.plus(arithmetic.memory(node).times(bits))
    value, low, high = found.times(1e-12)
    return Quantity(value, "J", low, high, "modelled", source)


def _on_device(lens: str, done: Tally, device: Device) -> Quantity | None:
    seconds = 0.0
    for term in done.terms:
        if not term.macs:
            continue
        here = bound(term, device)
        if here.compute is None:
            return None
        seconds += here.compute if lens == "chip" else max(here.compute, here.memory)
    if done.unplanned:
        rate = device.rates.get("float32")
        if rate is None:
            return None
        seconds += 2 * done.unplanned / rate
    if lens != "chip":
        seconds += done.optimizer / device.bandwidth
    source = f"{device.product}: {device.source}"
    if lens == "time":
        return _exact(seconds, "s", source)
    if device.power is None:
        return None
    joules = seconds * device.power
    return Quantity(joules, "J", _LEAST_POWER * joules, joules, "tdp_estimate", source)
