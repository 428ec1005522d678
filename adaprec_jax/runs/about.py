"""What is said of a schedule where it is made, read from the source: imports no JAX."""

import ast
import re
from pathlib import Path

import adaprec_jax

SECTIONS = ("Decides", "Signal", "Costs", "Source", "Against")
_SECTION = re.compile(r"^(\w+):\n((?:    .*(?:\n|\Z)|\n)+)", re.MULTILINE)


def about(kind: str) -> dict[str, str]:
    """Returns what a schedule decides, by what, at what cost, after whom; its faults.

    By title, as one line of text each, from the docstring of the function in
    `adaprec_jax.schedules` that has the name and the file of the kind. Empty where
    there is none: for float32, and for what is made of other schedules.

    Args:
        kind: Of a schedule, as a config names it.

    >>> about("late_switch")["Signal"]
    'The step alone.'
    """
    path = Path(adaprec_jax.__file__).parent / "schedules" / f"{kind}.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == kind:
            found = dict(_SECTION.findall(ast.get_docstring(node) or ""))
            said = {title: found[title] for title in SECTIONS if title in found}
            return {title: " ".join(text.split()) for title, text in said.items()}
    return {}
