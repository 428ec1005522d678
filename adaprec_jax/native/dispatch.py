"""Dispatches that run in native dtypes, each in an executable for its formats.

An executable is compiled for a set of operand dtypes, not for a plan: the formats stay
data, so plans that need the same dtypes share it. It is compiled in the background,
ahead of the dispatch that needs it: where a schedule reads the step alone, all plans
are known; else `schedules.late` says some dispatches before which plan comes. What is
not there in time is waited for, so that results never depend on time.
"""

import time
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jaxtyping import PyTree

from adaprec_jax import stats
from adaprec_jax.contractions.kernels import Kernels
from adaprec_jax.native.choose import choose, kernels_of
from adaprec_jax.native.foresee import foresee, learns
from adaprec_jax.schedules.late import LateState
from adaprec_jax.targets import Target
from adaprec_jax.train import Metrics, Program, TrainState, make_train_step, record
from adaprec_jax.train.loop import CannotGoOnError

# How many dispatches ahead the executable of a known plan is asked for.
_AHEAD = 1000


class Native(NamedTuple):
    """How a program runs natively.

    Attributes:
        target: What it runs on.
        steps: Of the run.
        dispatch: Of one dispatch.
        max_executables: More different ones than these end the run.
        emulate_failures: Whether what cannot be compiled is emulated; the run then
            depends on what compiles where.
    """

    target: Target
    steps: int
    dispatch: int
    max_executables: int = 16
    emulate_failures: bool = False


class Report(NamedTuple):
    """What running natively took.

    Attributes:
        executables: How many were compiled.
        waited: Seconds for which a dispatch waited for its executable, the first not
            counted.
        failures: What could not be compiled and was emulated.
    """

    executables: int
    waited: float
    failures: tuple[str, ...]


class _Foreseen:
    """The kernels of the dispatches, all of them known."""

    def __init__(self, order: tuple[int, ...], kinds: tuple[dict[str, Kernels], ...]):
        self.order, self.kinds = order, kinds

    def kernels(self, number: int) -> dict[str, Kernels] | None:
        """Returns those of a dispatch; None after the last."""
        return self.kinds[self.order[number]] if number < len(self.order) else None

    def learn(self, number: int, coming: Any) -> None:
        """Takes what a dispatch says about those to come: nothing new."""

    def known(self, number: int) -> int:
        """Returns up to which dispatch the kernels can be asked for now."""
        return number + _AHEAD


class _Learned:
    """The kernels of the dispatches, decided by those before them."""

    def __init__(self, program: Program, native: Native, first: TrainState):
        self.program, self.native = program, native
        self.chosen: dict[bytes, dict[str, Kernels]] = {}
        begun, coming = int(first.calls) // native.dispatch, _coming(program, first)
        self.late = coming.shape[0] - 1
        # What the schedule said before this session.
        self.coming = {begun + k: (coming, k) for k in range(coming.shape[0])}

    def learn(self, number: int, coming: Any) -> None:
        self.coming[number + 1 + self.late] = (coming, self.late)

    def kernels(self, number: int) -> dict[str, Kernels] | None:
        if number * self.native.dispatch >= self.native.steps:
            return None
        rows, ahead = self.coming.pop(number)
        packed = np.asarray(rows)[ahead]  # waits for the dispatch that decided it
        key = packed.tobytes()
        if key not in self.chosen:
            found = choose(self.program, packed, self.native.target)
            self.chosen[key] = kernels_of(found)
        return self.chosen[key]

    def known(self, number: int) -> int:
        return number + 1 + self.late


class _Ready(NamedTuple):
    """An executable, and when it was known which one it is."""

    executable: Future[Any]
    known: float


class NativeDispatch:
    """Called as the function that `train.make_dispatch` returns; see the module."""

    def __init__(
        self,
        program: Program,
        native: Native,
        plans: _Foreseen | _Learned,
        calls: int,
        out_shardings: PyTree,
    ):
        self._program, self._native, self._plans = program, native, plans
        self._out_shardings = out_shardings
        self._number = self._first = self._asked = calls // native.dispatch
        # One thread finds out, in order, which executables are needed; two make them.
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._compiler = ThreadPoolExecutor(2, thread_name_prefix="compile")
        self._executables: dict[Hashable, Future[Any]] = {}
        self._coming: dict[int, Future[_Ready]] = {}
        self._shapes: tuple[Any, Any] = ((), ())
        self._waited = 0.0
        self._failures: list[str] = []

    def __call__(
        self, state: TrainState, batches: PyTree
    ) -> tuple[TrainState, Metrics]:
        """Returns what the steps of the batches lead to, as `train.make_dispatch`.

        Raises:
            CannotGoOnError: An executable cannot be compiled, or is one too many.
        """
        number = self._number
        if number == self._first:  # All dispatches have the shapes of the first.
            self._shapes = jax.tree.map(_shape, (state, batches))
            self._ask(self._plans.known(number - 1))
        start = time.perf_counter()
        ready = self._coming.pop(number).result()
        executable = ready.executable.result()
        if number > self._first:
            late = time.perf_counter() - max(start, ready.known)
            self._waited += max(late, 0.0)
        state, metrics, coming = executable(state, batches)
        self._number += 1
        self._plans.learn(number, coming)
        self._ask(self._plans.known(number))
        return state, metrics

    def report(self) -> Report:
        """Returns what it took so far."""
        return Report(len(self._executables), self._waited, tuple(self._failures))

    def close(self) -> None:
        """Ends the background threads."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._compiler.shutdown(wait=True, cancel_futures=True)

    def _ask(self, last: int) -> None:
        """Has the executables of the dispatches up to this one made."""
        for number in range(self._asked, last + 1):
            self._coming[number] = self._planner.submit(self._prepare, number)
        self._asked = max(self._asked, last + 1)

    def _prepare(self, number: int) -> _Ready:
        """Returns the executable of a dispatch, which is perhaps still being made."""
        kernels = self._plans.kernels(number)
        known = time.perf_counter()
        if kernels is None:
            return _Ready(Future(), known)
        key = tuple(kernels.items())
        if key not in self._executables:
            most = self._native.max_executables
            if len(self._executables) >= most:
                raise CannotGoOnError(
                    f"dispatch {number} needs one executable more than max_executables "
                    f"({most}) allows"
                )
            made = self._compiler.submit(self._compiled, kernels)
            self._executables[key] = made
        return _Ready(self._executables[key], known)

    def _compiled(self, kernels: dict[str, Kernels]) -> Any:
        """Returns the executable; that of the emulation if that may be and has to."""
        try:
            return self._compile(kernels)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            what = f"{type(error).__name__}: {reason}"
            if not self._native.emulate_failures:
                raise CannotGoOnError(
                    f"an executable could not be compiled: {what}"
                ) from error
            self._failures.append(what)
            return self._compile({})

    def _compile(self, kernels: dict[str, Kernels]) -> Any:
        options = self._program.options._replace(kernels=kernels)
        program = self._program._replace(options=options)
        train_step = make_train_step(program)

        def dispatch(state: TrainState, batches: PyTree) -> tuple[Any, Any, Any]:
            state, metrics = lax.scan(train_step, state, batches)
            return state, metrics, _coming(program, state)

        shardings = self._out_shardings
        if isinstance(shardings, tuple):  # What is to come lies where the metrics do.
            shardings = (*shardings, shardings[1])
        jitted = jax.jit(dispatch, donate_argnums=0, out_shardings=shardings)
        return jitted.lower(*self._shapes).compile()


def make_native_dispatch(
    program: Program,
    native: Native,
    first: TrainState,
    out_shardings: PyTree = None,
) -> NativeDispatch:
    """Returns a dispatch that chooses an executable by the formats of its steps.

    Args:
        program: What a step does. A schedule that learns is inside `schedules.late`.
        native: How it runs.
        first: The state to go on from.
        out_shardings: Of the state and of the metrics, or of both, on a mesh.

    Raises:
        ValueError: The schedule learns and is not late, or more executables are needed
            than allowed, which is known for a schedule that reads the step alone.
    """
    nothing = stats.empty(program.table, program.watch)
    if not isinstance(first.schedule_state, LateState):
        if learns(program.schedule, nothing, first.schedule_state):
            raise ValueError(
                "A schedule that learns must decide ahead of its executables: put it "
                "into schedules.late."
            )
        order, kinds = foresee(
            program, native.target, steps=native.steps, dispatch=native.dispatch
        )
        if len(kinds) > native.max_executables:
            raise ValueError(
                f"The run needs {len(kinds)} executables, and max_executables is "
                f"{native.max_executables}."
            )
        plans: _Foreseen | _Learned = _Foreseen(order, kinds)
    else:
        plans = _Learned(program, native, first)
    return NativeDispatch(program, native, plans, int(first.calls), out_shardings)


def _coming(program: Program, state: TrainState) -> Any:
    """Returns the plans of the next dispatches in rows, where a schedule says them."""
    if not isinstance(state.schedule_state, LateState):
        return ()
    return jax.vmap(lambda plan: record.pack_plan(plan, program.table))(
        state.schedule_state.coming
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    )
