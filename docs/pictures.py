"""For mkdocs: draws the gallery."""

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from docstrings import linked
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from adaprec_jax.report.course_file import loads
from adaprec_jax.report.figure import Course, figure, save
from adaprec_jax.runs import kinds, overrides
from adaprec_jax.runs.config import Experiment
from adaprec_jax.runs.config.base import Settings
from adaprec_jax.runs.foreseen import foreseen
from adaprec_jax.runs.load import load

# A network with some layers, and a learning rate that moves.
_SETTINGS = (
    "model.hidden=[64, 64, 64, 64]",
    'optimizer.learning_rate={"kind": "warmup_cosine", "peak": 2e-3, '
    '"warmup_steps": 60}',
)


# What closed loops decided in a run: `python -m experiments.decisions` makes them.
_DECISIONS = Path(__file__).parent / "decisions"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds each figure to the site, under gallery/."""
    for name, (_, picture) in _gallery().items():
        files.append(File.generated(config, f"gallery/{name}.svg", content=picture))
    for path in sorted(_DECISIONS.glob("*.json")):
        picture = _picture(loads(path.read_text()))
        name = f"gallery/run-{path.stem}.svg"
        files.append(File.generated(config, name, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Puts what is generated into the pages that ask for it."""
    del page
    made = {
        "<!-- gallery: open -->": _open,
        "<!-- gallery: closed -->": _closed,
    }
    for mark, make in made.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    return markdown


@functools.cache
def _gallery() -> Mapping[str, tuple[Experiment, bytes]]:
    """Returns the figures by name, with what they show."""
    found = {}
    network = overrides.apply(load("digits-int8"), list(_SETTINGS))
    for kind in kinds.kinds():
        shown = kinds.examples(kind.kind)
        for k, schedule in enumerate(shown):
            if kinds.is_closed(schedule):
                continue
            name = "-".join([kind.kind, *_chosen(schedule, k)])
            experiment = network.model_copy(update={"name": name, "schedule": schedule})
            found[name] = experiment, _drawn(experiment)
    return found


def _chosen(schedule: Settings, number: int) -> list[str]:
    """Returns what tells an example of several from the others, in a file's name."""
    fields = type(schedule).model_fields.items()
    values = [
        str(getattr(schedule, name))
        for name, field in fields
        if len(field.examples or ()) > 1
    ]
    plain = all(value.isidentifier() for value in values)
    return values if plain else [str(number + 1)]


def _drawn(experiment: Experiment) -> bytes:
    return _picture(foreseen(experiment))


def _picture(course: Course) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "figure.svg")
        save(figure([course]), path)
        return path.read_bytes()


def _open() -> Iterator[str]:
    """Yields the part of the gallery that needs no run."""
    for kind in kinds.kinds():
        mine = {
            name: experiment.schedule
            for name, (experiment, _) in _gallery().items()
            if name.partition("-")[0] == kind.kind
        }
        if not mine:
            continue
        source = linked(kind.source)
        yield f"\n## {kind.kind}\n\n{kind.summary}. Source: {source}.\n"
        if len(mine) > 2:
            yield '<div class="grid" markdown>\n'
        for name, schedule in mine.items():
            chosen = {"kind": True} | dict.fromkeys(schedule.model_fields_set, True)
            tree = schedule.model_dump(mode="json", include=chosen)
            short = len(json.dumps(tree)) < 70
            path, text = f"gallery/{name}.svg", f"Bits over the steps of {name}"
            yield f"<div markdown>\n[![{text}]({path})]({path})\n"
            yield f"```json\n{json.dumps(tree, indent=None if short else 2)}\n```\n"
            yield "</div>\n"
        if len(mine) > 2:
            yield "</div>\n"


def _closed() -> Iterator[str]:
    """Yields the part of the gallery that shows what runs decided."""
    arms = {path.stem: load(f"digits-{path.stem}").schedule
            for path in sorted(_DECISIONS.glob("*.json"))}  # fmt: skip
    for kind in kinds.kinds():
        mine = [arm for arm, schedule in arms.items() if schedule.kind == kind.kind]
        if kind.loop == "open" or (kind.loop == "either" and not mine):
            continue
        yield f"\n## {kind.kind}\n\n{kind.summary}. Source: {linked(kind.source)}.\n"
        for arm in mine:
            path, text = f"gallery/run-{arm}.svg", f"Bits over the steps of {arm}"
            yield f"[![{text}]({path})]({path})\n\n`digits-{arm}`\n"
