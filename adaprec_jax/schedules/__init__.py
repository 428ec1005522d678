"""Precision schedules: pairs of pure functions that decide each step's plan.

A schedule of one's own is a factory that returns a `Schedule`; it goes into one file,
one line here and one line in the table of contract tests.
"""

from adaprec_jax.bit_counts import cyclic_bits as bits
from adaprec_jax.schedules.accordion import accordion
from adaprec_jax.schedules.adapt_kummer import adapt_kummer
from adaprec_jax.schedules.adaptive_loss_scale import adaptive_loss_scale
from adaprec_jax.schedules.ampa import ampa
from adaprec_jax.schedules.apt import apt
from adaprec_jax.schedules.by_bottleneck import by_bottleneck
from adaprec_jax.schedules.changed import changed
from adaprec_jax.schedules.combinators import (
    around,
    clip,
    delay,
    hold,
    join,
    per_layer,
)
from adaprec_jax.schedules.constant import constant
from adaprec_jax.schedules.cpt import cpt
from adaprec_jax.schedules.cyclic import cyclic
from adaprec_jax.schedules.deficit import deficit
from adaprec_jax.schedules.late import LateState, late
from adaprec_jax.schedules.late_switch import late_switch
from adaprec_jax.schedules.ldp import ldp
from adaprec_jax.schedules.maturity import maturity
from adaprec_jax.schedules.mor import mor
from adaprec_jax.schedules.muppet import muppet
from adaprec_jax.schedules.native_on import native_on
from adaprec_jax.schedules.pfq import pfq
from adaprec_jax.schedules.piecewise import piecewise
from adaprec_jax.schedules.qem import qem
from adaprec_jax.schedules.range_test import RangeTest, range_test
from adaprec_jax.schedules.schedule import (
    Schedule,
    Scope,
    Signals,
    observed,
    reads_of,
    select,
)
from adaprec_jax.schedules.snip import snip
from adaprec_jax.schedules.sqrt3 import sqrt3
from adaprec_jax.schedules.tabulated import TabulatedState, shuffled, stack, tabulated
from adaprec_jax.schedules.two_threshold import two_threshold
from adaprec_jax.schedules.warmup import warmup

__all__ = [
    "LateState",
    "RangeTest",
    "Schedule",
    "Scope",
    "Signals",
    "TabulatedState",
    "accordion",
    "adapt_kummer",
    "adaptive_loss_scale",
    "ampa",
    "apt",
    "around",
    "bits",
    "by_bottleneck",
    "changed",
    "clip",
    "constant",
    "cpt",
    "cyclic",
    "deficit",
    "delay",
    "hold",
    "join",
    "late",
    "late_switch",
    "ldp",
    "maturity",
    "mor",
    "muppet",
    "native_on",
    "observed",
    "per_layer",
    "pfq",
    "piecewise",
    "qem",
    "range_test",
    "reads_of",
    "select",
    "shuffled",
    "snip",
    "sqrt3",
    "stack",
    "tabulated",
    "two_threshold",
    "warmup",
]
