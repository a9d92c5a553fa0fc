"""One model, many callers: a bounded queue in front of the one thread that uses the model.

    scheduler = Scheduler(model)
    job = scheduler.submit(lambda model, cancel: model.stream(messages, cancel=cancel), client="kitchen")
    for piece in job: ...           # or: async for piece in job

Fair: clients take turns. Next comes the oldest job of the client whose turn is longest ago, so ten jobs of
one client delay another's first by one job. At most `max_waiting` jobs wait. A client of which none waits
gets in even then, in place of the newest job of the client that has most (McKenney, "Stochastic Fairness
Queueing", 1990, drops from the longest queue, too).

Bounded: what a job makes lies in it until it is read, BUFFER items at most. When that is full the model
waits, and with it everybody else, but for PATIENCE seconds in the whole life of a job and no longer: then the
job ends, with a DeadlineError behind the items that are there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import suppress
from math import inf
from threading import Condition, Event, RLock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edge_gemma.errors import ClosedError, DeadlineError, PromptError, QueueFullError

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Model

T = TypeVar("T")
Work = Callable[["Model", Event], Iterable[T]]  # should end soon after the event is set

BUFFER = 1024  # items; a piece of text takes about 200 bytes
PATIENCE = 10.0  # seconds
GRACE = 10.0  # seconds that a running job has to end by itself
SMOOTHING = 0.2  # weight of the last job in the average of their seconds


class _Cancel(Event):
    """Set by whoever cancels, and by the clock: nothing has to run at the deadline."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def is_set(self) -> bool:
        return super().is_set() or monotonic() >= self._deadline


class Job(Generic[T]):
    """Work that was submitted. Iterate once, with `for` or `async for`, over what the work makes.

    Iterating raises what the work raises; DeadlineError where the deadline passes before the work begins, or
    where the reader is too slow; QueueFullError where another client took its place; ClosedError where the
    scheduler is closed before its turn. Leaving the loop cancels the job.
    """

    def __init__(self, scheduler: Scheduler, work: Work[T], client: str, deadline: float) -> None:
        self.client = client
        self.submitted = monotonic()
        self.started: float | None = None  # None until the model begins with it
        self.ended: float | None = None
        self._scheduler = scheduler
        self._work = work
        self._deadline = deadline  # as `monotonic` tells the time; infinity: none
        self._cancel = _Cancel(deadline)
        self._changed = Condition(scheduler._lock)  # guards all that follows
        self._items: deque[T] = deque()
        self._error: Exception | None = None
        self._patience = PATIENCE
        self._left = False  # whether its reader went away
        self._wake: Callable[[], object] | None = None  # an asynchronous reader, where one waits

    @property
    def waited(self) -> float:
        """Seconds from submission to the beginning of the work, or until now."""
        return (self.started or self.ended or monotonic()) - self.submitted

    @property
    def expired(self) -> bool:
        """Whether the deadline came before the end."""
        return (self.ended or monotonic()) >= self._deadline

    def cancel(self) -> None:
        """End it soon. What was made until then can still be read; that may be nothing."""
        self._cancel.set()
        with self._changed:
            if self._scheduler._withdraw(self):
                self._end()
            self._changed.notify_all()  # the model, where it waits for room

    def __iter__(self) -> Generator[T, None, None]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._ready, self._seconds_left())
                    items = self._take()
                    if not items and self.ended is not None:
                        return
                yield from items
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(changed.set)
        try:
            while True:
                changed.clear()
                with self._changed:
                    items = self._take()
                    if not items and self.ended is not None:
                        return
                    left = self._seconds_left()
                for item in items:
                    yield item
                if not items:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(changed.wait(), left)
        finally:
            self._wake = None
            self._leave()

    def _leave(self) -> None:
        self._left = True
        self.cancel()

    # Below, the lock is held: by the caller, or by `with`.

    def _ready(self) -> bool:
        return bool(self._items) or self.ended is not None

    def _take(self) -> list[T]:
        """The next item, if there is one. Raises what ended the job, once all items are taken."""
        if self._items:
            self._changed.notify_all()
            return [self._items.popleft()]
        if self.ended is None and self.started is None and self.expired and self._scheduler._withdraw(self):
            self._end(self._too_late())
        if self._error:
            raise self._error
        return []

    def _seconds_left(self) -> float | None:
        """How long a reader should wait at most. Once the work has begun, it is the work that ends."""
        if self.started is not None or self._deadline == inf:
            return None
        return max(0.0, self._deadline - monotonic())

    def _too_late(self) -> DeadlineError:
        seconds = self._deadline - self.submitted
        return DeadlineError(f"its turn did not come within {seconds:.3g} s: allow more time, or try later")

    def _end(self, error: Exception | None = None) -> None:
        self.ended, self._error = monotonic(), error
        self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._wake:
            with suppress(RuntimeError):  # its event loop is closed: nobody reads any more
                self._wake()

    def _hand_over(self, item: T) -> None:
        with self._changed:
            before = monotonic()
            room = self._changed.wait_for(
                lambda: len(self._items) < BUFFER or self._cancel.is_set(), self._patience
            )
            self._patience -= monotonic() - before
            if not room:
                raise DeadlineError(
                    f"{len(self._items)} pieces lay unread while the model waited {PATIENCE:g} s: read faster"
                )
            self._items.append(item)
            self._tell()


class Scheduler:
    """Lets one model serve many callers, one job at a time. Close it before the model."""

    def __init__(self, model: Model, *, max_waiting: int = 16) -> None:
        if max_waiting < 1:
            raise PromptError(f"max_waiting is {max_waiting}: expected at least 1")
        self.max_waiting = max_waiting
        self._model = model
        self._lock = RLock()
        self._changed = Condition(self._lock)  # a job came, or the end
        self._waiting: dict[str, deque[Job[Any]]] = {}  # by client, in the order of their turns; none empty
        self._running: Job[Any] | None = None
        self._closed = False
        self._seconds = 1.0  # of a job, lately
        self._thread = Thread(target=self._run, name="edge-gemma-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._running is not None

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, work: Work[T], *, client: str = "", deadline: float | None = None) -> Job[T]:
        """Put work in the queue.

        Args:
            work: called with the model and an event, in the model's thread; what it gives is iterated
                there. The event is set when the job is cancelled or its deadline passes: the work should
                end then.
            client: whose it is: clients take turns.
            deadline: seconds from now for waiting and working together.

        Raises:
            QueueFullError: too many jobs wait.
            ClosedError: the scheduler is closed.
        """
        job = Job(self, work, client, inf if deadline is None else monotonic() + deadline)
        with self._lock:
            if self._closed:
                raise ClosedError("no more work is taken, this is ending: try again later")
            if self.waiting >= self.max_waiting:
                self._make_room(client)
            self._waiting.setdefault(client, deque()).append(job)
            self._changed.notify()
        return job

    def close(self, grace: float = GRACE) -> None:
        """Jobs that wait end in a ClosedError; one that runs is cancelled after `grace` seconds."""
        with self._lock:
            self._closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                job._end(ClosedError("its turn did not come before this ended: try again later"))
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(grace)
        if running := self._running:
            running.cancel()
        self._thread.join()

    def _make_room(self, client: str) -> None:
        for job in [job for jobs in self._waiting.values() for job in jobs if job.expired]:
            self._withdraw(job)
            job._end(job._too_late())
        if self.waiting < self.max_waiting:
            return
        seconds = max(1.0, self._seconds)
        full = QueueFullError(f"{self.waiting} prompts wait already: try again in {seconds:.0f} s", seconds)
        longest = max(self._waiting.values(), key=len)
        if client in self._waiting or len(longest) == 1:
            raise full
        longest.pop()._end(full)

    def _withdraw(self, job: Job[Any]) -> bool:
        """Take a job out of the queue; False where it is not in it."""
        jobs = self._waiting.get(job.client)
        if not jobs or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.client]
        return True

    def _run(self) -> None:
        while job := self._next():
            error = None
            try:
                self._do(job)
            except Exception as found:  # whatever the work raises is its reader's
                error = found
            with self._lock:
                self._running = None
                job._end(error)
                assert job.started is not None and job.ended is not None
                self._seconds += SMOOTHING * (job.ended - job.started - self._seconds)
            del job, error  # the images and clips of a prompt do not lie here until the next one comes

    def _next(self) -> Job[Any] | None:
        """The job whose turn it is, when there is one; None at the end."""
        with self._lock:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return None
                client, jobs = next(iter(self._waiting.items()))
                job = jobs.popleft()
                del self._waiting[client]
                if jobs:
                    self._waiting[client] = jobs  # behind the others
                if not job.expired:
                    job.started = monotonic()
                    self._running = job
                    return job
                job._end(job._too_late())

    def _do(self, job: Job[T]) -> None:
        items = job._work(self._model, job._cancel)
        try:
            for item in items:
                if job._left:
                    break
                job._hand_over(item)
        finally:
            if isinstance(items, Generator):
                items.close()  # frees the model for the next one
