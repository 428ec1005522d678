"""The runs of published bundles are still those that the code would train."""

import json
import tarfile
from pathlib import Path

import pytest

from adaprec_jax.runs import identity
from adaprec_jax.runs.validation import validate

BUNDLES = sorted(Path(__file__).parents[1].glob("experiments/*/bundle.tar.xz"))


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.parent.name)
def test_a_published_run_has_the_id_that_it_had(path: Path):
    # A setting that is new must be left out of configs where it is the default.
    with tarfile.open(path) as bundle:
        (name,) = [each for each in bundle.getnames() if each.endswith("study.json")]
        study = json.load(bundle.extractfile(name))
    cells = study["cells"]
    assert len(cells) > 200
    for cell in cells[::20]:
        assert identity.run_id(validate(cell["config"])) == cell["run_id"]


def test_bundles_are_found():
    assert len(BUNDLES) >= 2
