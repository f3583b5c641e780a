"""Many runs of engines in one launch: the denoising loop as a CUDA graph.

What a loop does is noted first, run by run, with every address that each reads and writes. The notes are then captured
as one graph and launched; the same notes again find the graph again, and nothing is captured twice. A graph cannot be
stopped, so it holds no more steps than a second has room for: whoever waits for progress, or wants to stop, waits no
longer than that, or than one step.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from kinograph.engines.gpu import Gpu, Graph

__all__ = ["LONGEST", "Addresses", "Call", "Launcher", "Runnable"]

LONGEST = 1.0  # seconds of work in a graph
_KEPT = 16  # graphs
_TRIALS = 2  # the first of which loads and compiles what the second is timed with


class Runnable(Protocol):
    """What a `Call` runs. It is one and the same thing as long as a graph of it may be launched."""

    @property
    def capturable(self) -> bool:
        """Whether a graph can hold it."""
        ...

    def enqueue(self, addresses: Addresses) -> None:
        """Ask the stream for one run."""
        ...

    def rehearse(self, addresses: Addresses) -> None:
        """The same, with outputs that nobody reads in place of those: whatever happens at first, happens here."""
        ...


Addresses = tuple[tuple[str, int], ...]
"""Where every input and output lies, by name."""


class Call(NamedTuple):
    """One run: of what, on which buffers."""

    what: Runnable
    addresses: Addresses


class Launcher:
    """Runs calls on `gpu`: one at a time, or a loop of them as CUDA graphs where `graphs` allows it.

    `longest` is how many seconds of work one graph may hold.
    """

    def __init__(self, gpu: Gpu, *, graphs: bool = True, longest: float = LONGEST) -> None:
        self._gpu = gpu
        self._use_graphs = graphs
        self._longest = longest
        self._notes: list[Call] | None = None
        self._graphs: OrderedDict[tuple[Call, ...], Graph] = OrderedDict()
        self._seconds: dict[Runnable, float] = {}

    def run(self, call: Call) -> None:
        """Ask for a run, or note it in a loop."""
        if self._notes is None:
            call.what.enqueue(call.addresses)
        else:
            self._notes.append(call)

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        """`Device.repeat`: call `body` for each of `count`; yields the last one done at every pause."""
        if not self._use_graphs:
            for number in range(count):
                body(number)
                yield number
            return
        steps = [self._noted(body, number) for number in range(count)]
        for call in {call.what: call for step in steps for call in step}.values():
            self._rehearse(call)
        start = 0
        while start < count:
            end = self._end(steps, start)
            self._launch([call for step in steps[start:end] for call in step], one=end - start == 1)
            self._gpu.synchronize()
            yield end - 1
            start = end

    def forget(self, what: Runnable | None = None) -> None:
        """Drop the graphs in which `what` runs, or all: it, or the memory it uses, will be gone."""
        for key in [key for key in self._graphs if what is None or any(call.what is what for call in key)]:
            self._graphs.pop(key).close()
        if what is not None:
            self._seconds.pop(what, None)

    def _noted(self, body: Callable[[int], None], number: int) -> list[Call]:
        self._notes = []
        try:
            body(number)
            return self._notes
        finally:
            self._notes = None

    def _rehearse(self, call: Call) -> None:
        """Run once and once more, timed: capturing may neither load nor compile anything."""
        if call.what in self._seconds:
            return
        for _ in range(_TRIALS):
            start = time.perf_counter()
            call.what.rehearse(call.addresses)
            self._gpu.synchronize()
            self._seconds[call.what] = time.perf_counter() - start

    def _end(self, steps: Sequence[Sequence[Call]], start: int) -> int:
        """Where the graph ends that begins with step `start`: with as many as there is time for, and at least one."""
        total, end = 0.0, start
        while end < len(steps) and (end == start or total < self._longest):
            if not all(call.what.capturable for call in steps[end]):
                return max(end, start + 1)
            total += sum(self._seconds[call.what] for call in steps[end])
            end += total <= self._longest or end == start
        return end

    def _launch(self, calls: list[Call], *, one: bool) -> None:
        def work() -> None:
            for call in calls:
                call.what.enqueue(call.addresses)

        if one:  # nothing is gained by a graph of a single step
            work()
            return
        key = tuple(calls)
        graph = self._graphs.pop(key, None) or self._gpu.capture(work)
        self._graphs[key] = graph
        while len(self._graphs) > _KEPT:
            self._graphs.popitem(last=False)[1].close()
        graph.launch()
