"""How tables and numbers are shown: as text in a terminal, as HTML in a notebook."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

Cell: TypeAlias = str | int | float

_CELL = "text-align:{}; vertical-align:top; padding:2px 12px 2px 0"
_CAPTION = "caption-side:top; text-align:left; padding:4px 0"


class Shown(NamedTuple):
    """Something to look at: a terminal shows its text, a notebook its HTML.

    >>> Shown("4 bits", "<b>4</b> bits")
    4 bits
    """

    text: str
    html: str

    def __repr__(self) -> str:
        """Returns the text."""
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def html_table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = ""
) -> str:
    """Returns a table in HTML; whatever the texts hold, they are shown as they are.

    Args:
        head: Names of the columns; one that holds nothing but "" is left out.
        rows: Texts, which stand on the left, and numbers, on the right.
        caption: Stands above the table.

    >>> "<b>" in html_table(["layer"], [["<b>"]])
    False
    """
    (top, *body), sides = _columns(head, rows)
    above = f'<caption style="{_CAPTION}">{_escaped(caption)}</caption>'
    lines = [
        f"<table>{above if caption else ''}",
        f"<thead>{_html_row('th', top, sides)}</thead>",
        "<tbody>",
        *(_html_row("td", row, sides) for row in body),
        "</tbody></table>",
    ]
    return "\n".join(lines)


def text_table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = ""
) -> str:
    """Returns a table in lines of text; arguments as `html_table`.

    >>> print(text_table(["name", "bits"], [["int4", 4], ["bfloat16", 16]]))
    name      bits
    int4         4
    bfloat16    16
    """
    texts, sides = _columns(head, rows)
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if side == "right" else text.ljust(width)
            for text, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in texts
    ]
    return "\n".join([*([caption] if caption else []), *lines])


def text_of(cell: Cell) -> str:
    """Returns a cell as text, a whole number with all its digits.

    >>> text_of(262144), text_of(0.0387109381), text_of("int4")
    ('262,144', '0.03871', 'int4')
    """
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def value_range(low: float, high: float) -> str:
    """Returns the range of a format; one of powers of two alone has no zero.

    >>> value_range(-448.0, 448.0), value_range(-8.0, 7.0), value_range(0.5, 4.0)
    ('±448', '-8 to 7', '2^-1 to 2^2')
    """
    if low > 0:
        return f"{power_of_two(low)} to {power_of_two(high)}"
    return f"±{high:.5g}" if low == -high else f"{low:.5g} to {high:.5g}"


def power_of_two(number: float) -> str:
    """Returns a power of two as one.

    >>> power_of_two(0.25), power_of_two(1.0)
    ('2^-2', '1')
    """
    exponent = math.frexp(number)[1] - 1
    return f"2^{exponent}" if exponent else "1"


def _columns(
    head: Sequence[str], rows: Iterable[Sequence[Cell]]
) -> tuple[list[list[str]], list[str]]:
    """Returns the texts of head and rows, and on which side each column stands."""
    body = [list(row) for row in rows]
    columns = list(zip(*body, strict=True)) or [("-",)] * len(head)
    kept = [i for i, column in enumerate(columns) if any(cell != "" for cell in column)]
    texts = [head, *([text_of(cell) for cell in row] for row in body)]
    sides = ["left" if _has_text(columns[i]) else "right" for i in kept]
    return [[row[i] for i in kept] for row in texts], sides


def _has_text(column: Sequence[Cell]) -> bool:
    return any(isinstance(cell, str) and cell for cell in column)


def _html_row(tag: str, texts: Sequence[str], sides: Sequence[str]) -> str:
    cells = (
        f'<{tag} style="{_CELL.format(side)}">{_escaped(text)}</{tag}>'
        for text, side in zip(texts, sides, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
