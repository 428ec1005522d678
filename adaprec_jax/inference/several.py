"""Many claims at once: how likely it is that one of them is wrong."""

from collections.abc import Sequence


def adjusted(claims: Sequence[Sequence[float]]) -> list[list[float]]:
    """Returns p-values so large that all at or below 5 % may be believed together.

    Holm's steps (1979): the smallest p-value counts as often as there are comparisons,
    the next once less, and so on. A comparison may make two claims that exclude each
    other's error, that two arms differ and that they differ by less than a margin; at
    most one of them can be wrong, so that they count as one until both are believed
    (Shaffer 1986).

    Args:
        claims: The p-values of each comparison, one or two.

    Returns:
        As many, none above 1.

    >>> adjusted([[0.01], [0.04], [0.03]])
    [[0.03], [0.06], [0.06]]
    >>> adjusted([[0.01, 0.5], [0.02, 0.02]])
    [[0.02, 0.5], [0.04, 0.04]]
    """
    order = sorted((p, i, j) for i, ps in enumerate(claims) for j, p in enumerate(ps))
    left = [len(ps) for ps in claims]
    found = [list(ps) for ps in claims]
    highest = 0.0
    for p, i, j in order:
        open_ = sum(count > 0 for count in left)
        highest = max(highest, min(p * open_, 1.0))
        found[i][j] = highest
        left[i] -= 1
    return found
