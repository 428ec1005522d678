"""Tables of a report: as Markdown, as LaTeX, and as numbers to compute with."""

import csv
import html
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


class Sheet(NamedTuple):
    """A table.

    Attributes:
        name: Of its files.
        title: Above it.
        head: Names of the columns.
        rows: Texts, as people read them.
        numbers: The same rows for the CSV file, with all digits and under `fields`.
        fields: Names of the columns of the CSV file.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[str | float | int | None]]
    fields: Sequence[str]


def markdown(sheet: Sheet) -> str:
    r"""Returns a table in Markdown; no cell can hold tags.

    >>> print(markdown(Sheet("x", "X", ["a|b"], [["<1"]], [], [])))
    | a\|b |
    | --- |
    | &lt;1 |
    """
    lines = [sheet.head, ["---"] * len(sheet.head), *sheet.rows]
    return "\n".join(f"| {' | '.join(map(in_markdown, line))} |" for line in lines)


def latex(sheet: Sheet) -> str:
    r"""Returns a table in LaTeX, for `\input` into a paper; it needs booktabs.

    >>> print(latex(Sheet("x", "100 %", ["a_b"], [["1"]], [], [])))
    \begin{tabular}{l}
    \toprule
    a\_b \\
    \midrule
    1 \\
    \bottomrule
    \end{tabular}
    % 100 \%
    """
    line = lambda cells: f"{' & '.join(map(in_latex, cells))} \\\\"
    sides = "l" + "r" * (len(sheet.head) - 1)
    body = "\n".join(map(line, sheet.rows))
    return (
        f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{line(sheet.head)}\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n% {in_latex(sheet.title)}"
    )


def as_csv(sheet: Sheet) -> str:
    """Returns the numbers of a table as CSV, with all their digits.

    >>> print(as_csv(Sheet("x", "X", [], [], [["a", 0.1, None]], ["arm", "mean", "p"])))
    arm,mean,p
    a,0.1,
    <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sheet.fields)
    writer.writerows(sheet.numbers)
    return text.getvalue()


def in_latex(text: str) -> str:
    r"""Returns text that LaTeX prints as it is.

    >>> in_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def file_name(text: str) -> str:
    """Returns text as the name of a file.

    >>> file_name("test/highest/accuracy")
    'test-highest-accuracy'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "table"


def in_markdown(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line.

    >>> in_markdown("<b>")
    '&lt;b&gt;'
    """
    text = html.escape(text, quote=False).replace("\n", " ")
    return re.sub(r"([\\|*`\[\]])", r"\\\1", text)
