"""The course of a run as JSON: what a figure needs, in a file that can be kept."""

import json

import numpy as np

from adaprec_jax.report.figure import Course

_ARRAYS = ("starts", "bits", "cost", "rate_steps", "rates")
_NAMES = ("layers", "operands")


def dumps(course: Course) -> str:
    """Returns a course as JSON.

    >>> none = np.zeros(0, int)
    >>> bits = np.array([[[4]], [[8]]])
    >>> course = Course(
    ...     "x", 9, np.array([0, 5]), ("a",), ("w",), bits, None, none, none / 1
    ... )
    >>> loads(dumps(course)).bits.tolist()
    [[[4]], [[8]]]
    """
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in course._asdict().items()
    }
    return json.dumps(plain, separators=(",", ":")) + "\n"


def loads(text: str) -> Course:
    """Returns the course that `dumps` wrote.

    Raises:
        ValueError: The text is no course.
    """
    try:
        stored = json.loads(text)
        arrays = {
            name: np.asarray(stored[name])
            for name in _ARRAYS
            if stored[name] is not None
        }
        names = {name: tuple(stored[name]) for name in _NAMES}
        return Course(**stored | arrays | names)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"Expected a course as JSON, got {text[:40]!r}.") from error
