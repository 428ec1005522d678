"""The page of a report, as HTML that opens offline and as Markdown.

Importing this needs jinja2, the extra `report`. Whatever texts hold, they are shown as
they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from adaprec_jax.report.sheets import Sheet, in_markdown, markdown

_ANSWERS = ("better", "worse", "equivalent", "inconclusive")
_TEXTS = ("arm", "part", "verdict", "of", "setting", "value", "state")


class Picture(NamedTuple):
    """A figure of a report: the name of its files, and what it shows."""

    name: str
    caption: str


class Section(NamedTuple):
    """A part of a report under a heading."""

    title: str
    text: str
    sheets: Sequence[Sheet]
    figures: Sequence[Picture]


class Page(NamedTuple):
    """A report.

    Attributes:
        title: Of the page.
        lead: A sentence on what it is about.
        notes: What a reader must know, one sentence each.
        sections: Its parts.
    """

    title: str
    lead: str
    notes: Sequence[str]
    sections: Sequence[Section]


def html(page: Page) -> str:
    """Returns the page as HTML; figures and tables lie in folders beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adaprec_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    template = environment.get_template("study.html")
    return template.render(**page._asdict(), answers=_ANSWERS, texts=_TEXTS)


def as_markdown(page: Page) -> str:
    """Returns the page as Markdown."""
    notes = "\n".join(f"- {in_markdown(note)}" for note in page.notes)
    parts = [f"# {in_markdown(page.title)}", in_markdown(page.lead), notes]
    for section in page.sections:
        parts += [f"## {in_markdown(section.title)}", in_markdown(section.text)]
        for sheet in section.sheets:
            parts += [f"### {in_markdown(sheet.title)}"] if sheet.title else []
            parts.append(markdown(sheet))
        for figure in section.figures:
            caption = in_markdown(figure.caption)
            parts.append(f"![{caption}](figures/{figure.name}.svg)")
    return "\n\n".join(part for part in parts if part) + "\n"
