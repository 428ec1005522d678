"""Which contractions a device computes faster in narrower formats; imports no JAX."""

import math

from adaprec_jax.contractions.table import Contraction
from adaprec_jax.cost.devices import Device
from adaprec_jax.cost.lenses import bound
from adaprec_jax.cost.numbers import Number, number
from adaprec_jax.cost.tally import Term
from adaprec_jax.precision import Entry, separate


def seconds(contraction: Contraction, entry: Entry, device: Device) -> float | None:
    r"""Returns how long the products of one execution take at the device's peaks.

    $$ \sum_{p} \max\left(\frac{2 \, MAC}{rate(p)}, \frac{bytes(p)}{bandwidth}\right) $$

    over forward, dgrad and wgrad (forward alone where there is no gradient). Operands
    are read in their formats, results written in float32; all is the roofline's best.

    Args:
        contraction: As the table has it.
        entry: Its formats, plain numbers; of several layers that of all.
        device: With its published rates.

    Returns:
        None if the device has no published rate for one of the products.

    >>> from adaprec_jax.cost.devices import device
    >>> from adaprec_jax.plan import integers
    >>> from adaprec_jax.testing import table
    >>> h100 = device("h100")
    >>> seconds(table().contractions[0], integers(8, 8), h100) > 0
    True
    """
    total = 0.0
    for term in terms(contraction, entry):
        found = bound(term, device)
        if found.compute is None:
            return None
        total += max(found.compute, found.memory)
    return total


def terms(contraction: Contraction, entry: Entry) -> list[Term]:
    """Returns the products of one execution in the formats of an entry."""
    c = contraction
    left, right, out = (float(math.prod(shape)) for shape in c.shapes)
    size = math.prod(c.parameter_shape)
    # Without its plan axes a parameter has the size of the operand it reaches.
    mine = [s for s in (right, left) if c.parameter and size % s == 0]
    weight = mine[0] if mine else right
    activation = left if weight == right else right
    precision = separate(entry)
    moved = {
        "forward": (activation, weight, out, *precision.forward),
        "dgrad": (out, weight, activation, *precision.dgrad),
        "wgrad": (out, activation, weight, *precision.wgrad),
    }
    found = []
    for product, (a, b, result, *formats) in moved.items():
        if product != "forward" and not c.differentiated:
            continue
        kinds: list[Number] = [number(fmt) for fmt in formats]
        read = (a * kinds[0].bits / 8, b * kinds[1].bits / 8)
        macs = float(c.macs)
        found.append(
            Term(c.name, product, kinds[0], kinds[1], macs, macs, read, 4 * result,
                 bool(c.parameter))
        )  # fmt: skip
    return found
