"""A cost: bytes of the weights that a step reads."""

import math

from adaprec_jax import formats


def weight_bytes():
    """Counts each weight once, at the width of the forward product."""

    def cost(table, plan):
        return sum(
            math.prod(c.shapes[1]) * formats.bits(plan[c.name].weight) / 8
            for c in table.contractions
        )

    return cost
