"""The README's example runs as printed."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("fresh_caches")  # compilations are counted

README = Path(__file__).parents[1] / "README.md"


def test_the_example_learns_in_one_compilation():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["step"]._cache_size() == 1
    assert names["value"] < 0.15  # The variance of the targets is about 0.5.


@pytest.mark.parametrize("command", ["demo", "pytest"])
def test_the_commands_install_from_the_lock_file(command: str):
    lines = [
        line
        for line in README.read_text().splitlines()
        if command in line.split("&&")[-1]
    ]
    assert any("pip install -r requirements.lock" in line for line in lines)
