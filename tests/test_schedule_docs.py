"""The docstrings that the page on what each schedule decides is made of."""

import inspect
import re
from typing import get_type_hints

import pytest

from adaprec_jax import schedules
from adaprec_jax.report.course_file import dumps, loads
from adaprec_jax.runs.build import make_schedule
from adaprec_jax.runs.load import load
from adaprec_jax.testing import table
from experiments import decisions

SECTIONS = ["Decides", "Signal", "Costs", "Source", "Against"]


def makes_a_schedule(function: object) -> bool:
    """Whether it makes a schedule of numbers and formats, not of other schedules."""
    if not inspect.isfunction(function):
        return False
    hints = get_type_hints(function)
    made = hints.pop("return", None)
    return made is schedules.Schedule and "Schedule" not in str(hints)


FACTORIES = [
    name for name in schedules.__all__ if makes_a_schedule(getattr(schedules, name))
]


def sections(name: str) -> dict[str, str]:
    """The sections of a factory's docstring by title, in their order."""
    text = inspect.getdoc(getattr(schedules, name)) or ""
    found = re.split(r"^(\w+):\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def test_factories_are_told_from_combinators():
    assert {"constant", "cpt", "cyclic", "two_threshold"} <= set(FACTORIES)
    assert not {"join", "per_layer", "hold", "shuffled", "bits"} & set(FACTORIES)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_schedule_says_what_it_decides_and_what_is_against_it(name):
    found = sections(name)
    assert [title for title in found if title in SECTIONS] == SECTIONS
    assert [*found][: len(SECTIONS)] == SECTIONS  # before the arguments
    for title in SECTIONS:
        assert found[title].strip().rstrip("`").endswith("."), title


@pytest.mark.parametrize("name", FACTORIES)
def test_a_source_is_a_paper_or_says_that_it_is_none(name):
    source = sections(name)["Source"]
    assert re.search(
        r"arXiv:\d{4}\.\d{4,5}|\b(19|20)\d\d\b|Common practice|Ours", source
    )


@pytest.mark.parametrize("arm", decisions.arms())
def test_what_a_schedule_logs_is_named_where_its_signal_is(arm):
    experiment = load(f"digits-{arm}")
    schedule = make_schedule(experiment.schedule, experiment.steps)
    logged = set(schedule.signals(schedule.init(table())))
    said = sections(experiment.schedule.kind)["Signal"]
    assert set(re.findall(r"`signal/(\w+)/PATH`", said)) == logged
    assert logged or "Logs no column of its own" in said


@pytest.mark.parametrize("arm", decisions.arms())
def test_what_a_closed_loop_decided_is_there_for_the_gallery(arm):
    course = loads((decisions.FOLDER / f"{arm}.json").read_text())
    assert course.steps == load(f"digits-{arm}").steps
    assert len(course.layers) == 5
    assert course.bits.shape == (
        len(course.starts),
        len(course.layers),
        len(course.operands),
    )
    assert dumps(course) == (decisions.FOLDER / f"{arm}.json").read_text()
