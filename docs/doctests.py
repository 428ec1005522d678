"""For mkdocstrings: docstrings hold doctests and sections of our own; show them.

Examples become code, what is said of a schedule (docs/add.md) paragraphs.
"""

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(
    r"^(Decides|Signal|Costs|Source|Against):\n((?:    .*(?:\n|\Z)|\n)+)", re.MULTILINE
)


class Doctests(griffe.Extension):
    """Puts fences around examples, and titles of our own into bold."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of whatever was found in the source."""
        if obj.docstring:
            text = _SECTION.sub(
                lambda found: f"**{found[1]}.** {textwrap.dedent(found[2])}",
                obj.docstring.value,
            )
            obj.docstring.value = _EXAMPLE.sub(
                lambda found: f"```pycon\n{found[0]}\n```", text
            )
