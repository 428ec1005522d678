"""Work with the formats it was done in: of a step, or added up over a run.

Everything that a lens reads, in plain numbers. Steps in other formats add: a tally of a
run is the sum of those of its steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from adaprec_jax.cost.numbers import Number

# Of abs, max, times and cast, which a scaled format takes; a cast alone is one. Ours.
_SCALED, _CAST = 4.0, 1.0
# Operands by product, as they lie in a packed plan.
_COLUMNS = {"forward": (0, 1), "dgrad": (2, 3), "wgrad": (4, 5)}


class Product(NamedTuple):
    """One of the products of a contraction in one step, all executions together.

    Attributes:
        contraction: Its name in the table.
        product: "forward", "dgrad" or "wgrad".
        macs: Multiply-accumulates, recomputed ones included; padding of a convolution
            counts as work.
        recomputed: Those that rematerialisation adds.
        operands: Elements that are read: of activation and weight for forward, of
            gradient and weight for dgrad, of gradient and activation for wgrad.
        result: Elements that are written.
        weights: Whether a parameter is in the weight slot.
    """

    contraction: str
    product: str
    macs: float
    recomputed: float
    operands: tuple[float, float]
    result: float
    weights: bool


class Work(NamedTuple):
    """What one step does.

    Attributes:
        products: Of the contractions that a plan decides about.
        unplanned: Multiply-accumulates of other products, by part and dtypes of the
            operands. The part is "" for the model, else one of
            `adaprec_jax.contractions.scopes.PARTS`.
        operations: Other arithmetic by part, one for each element of a result (of the
            operand, where it is reduced). The part "rounding" is the arithmetic that
            emulation takes, which hardware that has the formats does not execute.
        transcendentals: Those of them that are no additions and multiplications, such
            as exponentials, by part.
        unknown: What could not be counted, each with the reason.
    """

    products: tuple[Product, ...]
    unplanned: Mapping[tuple[str, str], float]
    operations: Mapping[str, float]
    transcendentals: Mapping[str, float]
    unknown: tuple[str, ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the contractions that a plan decides about."""
        return sum((product.macs for product in self.products), 0.0)


class Term(NamedTuple):
    """One product in one pair of formats.

    Attributes:
        contraction: Its name.
        product: "forward", "dgrad" or "wgrad".
        first: Kind of number of its first operand: the activation of a forward product,
            the gradient of the others.
        second: Of the other operand.
        macs: Multiply-accumulates that are executed.
        nominal: Those that the published metric counts: one forward product each for
            forward, dgrad and wgrad, whether they run or not.
        read: Bytes of both operands, in their formats.
        written: Bytes of the result.
        weights: Whether a parameter is in the weight slot.
    """

    contraction: str
    product: str
    first: Number
    second: Number
    macs: float
    nominal: float
    read: tuple[float, float]
    written: float
    weights: bool


class Tally(NamedTuple):
    """What was done, over some steps.

    Attributes:
        terms: The products.
        unplanned: Multiply-accumulates in float32 that no plan decides about.
        operations: Other arithmetic of model, optimizer, statistics and schedule.
        quantiser: Operations that hardware with the formats spends on scales and casts.
        emulation: Operations that rounding takes where the formats are emulated; no
            lens counts them.
        optimizer: Bytes that the update moves: parameters, gradients and moments.
        steps: How many.
    """

    terms: tuple[Term, ...]
    unplanned: float
    operations: float
    quantiser: float
    emulation: float
    optimizer: float
    steps: float

    @property
    def macs(self) -> float:
        """All multiply-accumulates."""
        return self.unplanned + sum((term.macs for term in self.terms), 0.0)

    def traffic(self) -> dict[str, float]:
        """Returns the bytes that are moved by class of tensor.

        Each product reads its operands and writes its result once; what lies between
        products is taken as fused with them, and counts nothing.
        """
        found = {"weights": 0.0, "activations": 0.0, "gradients": 0.0}
        for term in self.terms:
            reads_weight = term.weights and term.product != "wgrad"
            own = "activations" if term.product == "forward" else "gradients"
            found[own] += term.read[0] + term.written
            found["weights" if reads_weight else "activations"] += term.read[1]
        return {**found, "optimizer": self.optimizer}


def step_tally(
    work: Work,
    rows: Sequence[tuple[str, Sequence[Number]]],
    shared: Sequence[str],
    *,
    update_bytes: float,
    result_bits: float = 32.0,
) -> Tally:
    """Returns the tally of one step.

    Args:
        work: What the step does.
        rows: For each layer of each contraction its name and the kinds of number of its
            six operands, in the order of `adaprec_jax.train.record.OPERANDS`. The
            layers of a contraction do equal work.
        shared: The contractions whose products share their rounded operands.
        update_bytes: That the optimizer's update moves.
        result_bits: In which forward and dgrad write; the weight's gradient is written
            in float32.

    Raises:
        ValueError: A contraction has no formats.
    """
    layers: dict[str, list[Sequence[Number]]] = {}
    for name, kinds in rows:
        layers.setdefault(name, []).append(kinds)
    terms: dict[tuple[str, str, Number, Number], Term] = {}
    quantiser = 0.0
    found = {(p.contraction, p.product): p for p in work.products}
    for name in dict.fromkeys(p.contraction for p in work.products):
        if name not in layers:
            raise ValueError(f"The contraction {name!r} has no formats.")
        share = 1 / len(layers[name])
        forward = found.get((name, "forward"))
        nominal = 0.0 if forward is None else forward.macs - forward.recomputed
        for kinds in layers[name]:
            done: set[str] = set()
            for product in _COLUMNS:
                here = found.get((name, product))
                pair = [kinds[column] for column in _COLUMNS[product]]
                operands = (0.0, 0.0) if here is None else here.operands
                term = Term(
                    name, product, pair[0], pair[1],
                    macs=share * (0.0 if here is None else here.macs),
                    nominal=share * nominal,
                    read=(share * operands[0] * pair[0].bits / 8,
                          share * operands[1] * pair[1].bits / 8),
                    written=share * (0.0 if here is None else here.result)
                    * (32.0 if product == "wgrad" else result_bits) / 8,
                    weights=forward is not None and forward.weights,
                )  # fmt: skip
                key = (name, product, pair[0], pair[1])
                terms[key] = term if key not in terms else _merged(terms[key], term)
                if here is not None:
                    roles = _roles(product)
                    quantiser += sum(
                        share * elements * _each(kind)
                        for role, kind, elements in zip(
                            roles, pair, operands, strict=True
                        )
                        if name not in shared or role not in done
                    )
                    done |= set(roles)
    operations = sum(v for part, v in work.operations.items() if part != "rounding")
    return Tally(
        terms=tuple(terms.values()),
        unplanned=sum((v for (part, _), v in work.unplanned.items()
                       if part != "rounding"), 0.0),
        operations=float(operations),
        quantiser=float(quantiser),
        emulation=work.operations.get("rounding", 0.0),
        optimizer=float(update_bytes),
        steps=1.0,
    )  # fmt: skip


def summed(tallies: Iterable[tuple[Tally, float]]) -> Tally:
    """Returns the sum of tallies, each times a number of steps.

    >>> nothing = summed([])
    >>> nothing.steps, nothing.macs
    (0.0, 0.0)
    """
    terms: dict[tuple[str, str, Number, Number], Term] = {}
    rest = [0.0] * 6
    for each, times in tallies:
        for term in each.terms:
            key = (term.contraction, term.product, term.first, term.second)
            scaled = _scaled(term, times)
            terms[key] = scaled if key not in terms else _merged(terms[key], scaled)
        for k, value in enumerate(each[1:]):
            rest[k] += times * value
    return Tally(tuple(terms.values()), *rest)


def _roles(product: str) -> tuple[str, str]:
    return {
        "forward": ("activation", "weight"),
        "dgrad": ("gradient", "weight"),
        "wgrad": ("gradient", "activation"),
    }[product]


def _each(kind: Number) -> float:
    """Returns the operations that bring one element into its format."""
    if kind.bits == 32:
        return 0.0
    return _SCALED if kind.scaled else _CAST


def _scaled(term: Term, factor: float) -> Term:
    return term._replace(
        macs=factor * term.macs,
        nominal=factor * term.nominal,
        read=(factor * term.read[0], factor * term.read[1]),
        written=factor * term.written,
    )


def _merged(a: Term, b: Term) -> Term:
    return a._replace(
        macs=a.macs + b.macs,
        nominal=a.nominal + b.nominal,
        read=(a.read[0] + b.read[0], a.read[1] + b.read[1]),
        written=a.written + b.written,
    )
