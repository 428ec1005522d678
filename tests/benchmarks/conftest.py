"""Everything here measures speed: `pytest tests/benchmarks -m speed -s`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.speed)
