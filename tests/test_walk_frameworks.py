"""Models of other frameworks than Flax linen go in unmodified."""

import pytest

from tests.walk_identity import assert_same
from tests.walk_models import MODELS

GROUPS = {
    framework: [name for name in MODELS if name.startswith(framework)]
    for framework in ("nnx", "equinox")
}


@pytest.mark.parametrize("names", GROUPS.values(), ids=GROUPS)
def test_float32_entries_change_nothing(names: list[str]):
    assert_same(names)
