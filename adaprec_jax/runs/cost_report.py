"""What `adaprec cost` says of one run, as a tree that is printed or written as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from adaprec_jax.cost import carbon
from adaprec_jax.cost.carbon import Grid, Price
from adaprec_jax.cost.devices import Device
from adaprec_jax.cost.lenses import DEVICES, TABLES, bound, look
from adaprec_jax.cost.quantity import Quantity, saving
from adaprec_jax.cost.tally import Tally
from adaprec_jax.runs import store
from adaprec_jax.runs.costing import Spent, part, phase_counts

Tree: TypeAlias = dict[str, Any]


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        lenses: Names; all that need no device, and all others with one, by default.
        device: To look at.
        grid: For carbon; needs `pue`.
        pue: Of the data centre.
        market: Market-based intensity in gCO2e/kWh, a second figure.
        made: Grams of making a device, and years of its life.
        price: Of an hour of the device.
    """

    lenses: tuple[str, ...] = ()
    device: Device | None = None
    grid: Grid | None = None
    pue: float | None = None
    market: float | None = None
    made: tuple[float, float] | None = None
    price: Price | None = None


def report(spent: Spent, asked: Asked) -> Tree:
    """Returns the cost of one run, through every lens that was asked for."""
    work, memory = spent.counted.work, spent.counted.memory._asdict()
    looked = {lens: _through(lens, spent, asked) for lens in lenses(asked)}
    tree: Tree = {
        "name": spent.name,
        "basis": spent.basis,
        "steps": spent.done.steps,
        "parameters": spent.counted.parameters,
        "macs": spent.done.macs,
        "macs_recomputed": sum((p.recomputed for p in work.products), 0.0)
        * spent.done.steps,
        "macs_unplanned": spent.done.unplanned,
        "operations": spent.done.operations,
        "quantiser_operations": spent.done.quantiser,
        "emulation_operations": spent.done.emulation,
        "memory_bytes": memory | {"in_all": sum(memory.values())},
        "moved_bytes": spent.done.traffic(),
        "lenses": looked,
        "phases": _phases(spent),
        "contractions": _contractions(spent, asked),
        "products": _by_product(spent, asked),
        "not_counted": [
            *work.unknown,
            *map(_not_reached, spent.counted.table.not_reached),
        ],
    }
    if asked.grid is not None and asked.pue is not None:
        tree["carbon"] = _carbon(spent, asked)
    if asked.price is not None:
        time = look("time", spent.done, asked.device)
        tree["money"] = _shown(carbon.spent(time, asked.price))
        tree["price"] = asked.price._asdict()
    return tree


def keep(directory: Path, tree: Tree) -> None:
    """Writes the cost of a run into its directory.

    Carbon and money are there as null where no grid, or no price, was asked for: they
    have no default.

    Raises:
        InputError: The file cannot be written.
    """
    known = {"carbon": None, "money": None} | tree
    store.write_json(directory / store.COST, known)


def lenses(asked: Asked) -> tuple[str, ...]:
    """Returns the lenses that are looked through."""
    if asked.lenses:
        return asked.lenses
    return TABLES if asked.device is None else (*TABLES, *DEVICES)


def _through(lens: str, spent: Spent, asked: Asked) -> Tree:
    here = look(lens, spent.done, asked.device)
    over = {
        name: saving(look(lens, base, asked.device), here)
        for name, base in (("float32", spent.float32), ("bfloat16", spent.bfloat16))
    }
    return {
        "cost": _shown(here),
        **{
            f"saved_over_{name}": None if found is None else dataclasses.asdict(found)
            for name, found in over.items()
        },
    }


def _phases(spent: Spent) -> list[Tree]:
    """Returns the steps under each plan, with the mean bits of a product's operand."""
    return [
        {
            "steps": steps,
            "first": next(p.start for p in spent.phases if p.plan == plan),
            "bitops": _shown(look("bitops", spent.plans[plan])),
            "arith7": _shown(look("arith7", spent.plans[plan])),
        }
        for plan, steps in phase_counts(spent).items()
    ]


def _contractions(spent: Spent, asked: Asked) -> list[Tree]:
    """Returns each product of each contraction, and what bounds it on the device."""
    found: dict[tuple[str, str], list[Any]] = {}
    for term in spent.done.terms:
        if term.macs:
            found.setdefault((term.contraction, term.product), []).append(term)
    rows = []
    for (name, product), terms in found.items():
        alone = part(spent.done, name, product)
        row: Tree = {
            "contraction": name,
            "product": product,
            "formats": _pairs(terms),
            "macs": alone.macs,
            "bytes": sum(alone.traffic().values()),
            "arith7": _shown(look("arith7", alone)),
        }
        if asked.device is not None:
            bounds = [bound(term, asked.device) for term in terms]
            row["units"] = sorted({str(b.unit) for b in bounds})
            row["bound"] = sorted({str(b.kind) for b in bounds})
        rows.append(row)
    return rows


def _pairs(terms: Sequence[Any]) -> list[str]:
    pairs = (f"{term.first.name} x {term.second.name}" for term in terms)
    return list(dict.fromkeys(pairs))


def _by_product(spent: Spent, asked: Asked) -> Tree:
    """Returns the cost of forward, dgrad and wgrad alone, through each lens."""
    found: Tree = {}
    for product in ("forward", "dgrad", "wgrad"):
        alone: Tally = part(spent.done, product=product)
        found[product] = {
            lens: _shown(look(lens, alone, asked.device)) for lens in lenses(asked)
        }
    return found


def _carbon(spent: Spent, asked: Asked) -> Tree:
    """Returns the carbon by each lens that gives an energy."""
    grid, pue = asked.grid, asked.pue
    if grid is None or pue is None:
        return {}
    found: Tree = {"grid": grid._asdict(), "pue": pue, "lenses": {}}
    time = look("time", spent.done, asked.device) if asked.device else None
    for lens in lenses(asked):
        energy = look(lens, spent.done, asked.device)
        if energy is None or energy.unit != "J":
            continue
        grams = carbon.operational(energy, pue, grid)
        row: Tree = {"location_based": _shown(grams)}
        for intensity in carbon.COMPARED:
            other = Grid("compared", intensity, "", "for comparison")
            compared = carbon.operational(energy, pue, other)
            row[f"at_{intensity:g}"] = _shown(compared)
        if asked.market is not None:
            bought = Grid("market-based", asked.market, grid.year, "as contracted")
            row["market_based"] = _shown(carbon.operational(energy, pue, bought))
        if asked.made is not None and time is not None:
            whole, years = asked.made
            made = carbon.embodied(
                time.value, whole=whole, years=years, kind=energy.kind
            )
            row["embodied"] = _shown(made)
            row["sci"] = _shown(carbon.sci(grams, made, 1.0, "run"))
        if grams is not None and asked.device is not None:
            row["model_card"] = carbon.model_card(
                grams, training_type="pre-training", location=grid.name,
                hardware=f"1 x {asked.device.product}",
            )  # fmt: skip
        found["lenses"][lens] = row
    return found


def _not_reached(each: Any) -> str:
    return f"{each.what} at {each.where}: {each.reason}"


def _shown(found: Quantity | None) -> Mapping[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)
