"""The queue in front of a model. It never looks at the model, so here there is none."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import aclosing
from threading import Event
from typing import Any

import pytest

from edge_gemma.errors import ClosedError, DeadlineError, PromptError, QueueFullError
from edge_gemma.runtime import scheduler as scheduler_module
from edge_gemma.runtime.scheduler import Job, Scheduler, Work

NO_MODEL: Any = None
LONG = 20.0  # seconds: a test that waits so long has failed
SOON = 5.0
SHORT = 0.05


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(NO_MODEL, max_waiting=4)
    yield scheduler
    scheduler.close(grace=0)


class Gate:
    """Work that says when it began, and goes on when it may or must."""

    def __init__(self) -> None:
        self.began, self.opened, self.told = Event(), Event(), Event()

    def __call__(self, model: Any, cancel: Event) -> Iterator[str]:
        self.began.set()
        yield "begun"
        until(lambda: self.opened.is_set() or cancel.is_set())
        if cancel.is_set():
            self.told.set()
        yield "cancelled" if cancel.is_set() else "done"


@pytest.fixture
def gate(scheduler: Scheduler) -> Gate:
    """A job that keeps the scheduler busy until it is opened."""
    gate = Gate()
    scheduler.submit(gate, client="gate")
    assert gate.began.wait(LONG)
    return gate


def until(true: Callable[[], bool], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def says(*items: Any) -> Work[Any]:
    return lambda model, cancel: items


def fails(model: Any, cancel: Event) -> Iterator[str]:
    yield "so far"
    raise PromptError("no further")


def test_a_job_gives_what_its_work_makes(scheduler: Scheduler) -> None:
    assert list(scheduler.submit(says("a", None, "b"))) == ["a", None, "b"]
    assert list(scheduler.submit(says())) == []


def test_a_job_can_be_read_with_async_for(scheduler: Scheduler) -> None:
    async def read() -> list[Any]:
        return [item async for item in scheduler.submit(says("a", None, "b"))]

    assert asyncio.run(read()) == ["a", None, "b"]


def test_tasks_read_while_others_wait(scheduler: Scheduler, gate: Gate) -> None:
    async def read(name: str) -> list[str]:
        return [item async for item in scheduler.submit(says(name), client=name)]

    async def all_of_them() -> list[list[str]]:
        tasks = [asyncio.create_task(read(name)) for name in "abc"]
        while scheduler.waiting < 3:
            await asyncio.sleep(0)
        gate.opened.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(all_of_them()) == [["a"], ["b"], ["c"]]


def test_errors_are_the_readers(scheduler: Scheduler) -> None:
    found = []
    with pytest.raises(PromptError, match="no further"):
        for item in scheduler.submit(fails):
            found.append(item)
    assert found == ["so far"]

    def refuses(model: Any, cancel: Event) -> Iterator[str]:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        list(scheduler.submit(refuses))
    assert list(scheduler.submit(says("goes on"))) == ["goes on"]


def test_clients_take_turns(scheduler: Scheduler, gate: Gate) -> None:
    order: list[str] = []

    def work(name: str) -> Work[str]:
        def note(model: Any, cancel: Event) -> list[str]:
            order.append(name)
            return []

        return note

    jobs = [scheduler.submit(work(name), client=name[0]) for name in ("a1", "a2", "a3", "b1")]
    gate.opened.set()
    for job in jobs:
        assert list(job) == []
    assert order == ["a1", "b1", "a2", "a3"]


def test_the_queue_is_bounded(scheduler: Scheduler, gate: Gate) -> None:
    for _ in range(4):
        scheduler.submit(says(), client="a")
    with pytest.raises(QueueFullError, match="4 prompts wait already: try again in 1 s") as caught:
        scheduler.submit(says(), client="a")
    assert caught.value.retry_after >= 1
    assert scheduler.waiting == 4


def test_a_full_queue_has_room_for_another_client(scheduler: Scheduler, gate: Gate) -> None:
    """In place of the newest job of the client that has most; never of one's only job."""
    mine = [scheduler.submit(says(number), client="a") for number in range(4)]
    others = [scheduler.submit(says(client), client=client) for client in "bcd"]
    with pytest.raises(QueueFullError):
        scheduler.submit(says(), client="e")
    gate.opened.set()
    for job in mine[1:]:
        with pytest.raises(QueueFullError):
            list(job)
    assert [list(job) for job in (mine[0], *others)] == [[0], ["b"], ["c"], ["d"]]


def test_retry_after_follows_how_long_jobs_take(
    scheduler: Scheduler, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.monotonic
    monkeypatch.setattr(scheduler_module, "monotonic", lambda: clock() + 100)
    gate.opened.set()
    until(lambda: not scheduler.busy)
    again = Gate()
    scheduler.submit(again)
    assert again.began.wait(LONG)
    for _ in range(4):
        scheduler.submit(says())
    with pytest.raises(QueueFullError) as caught:
        scheduler.submit(says())
    assert 20 < caught.value.retry_after < 30  # 1 second, and a fifth of the way to 100


def test_what_comes_too_late_is_never_begun(scheduler: Scheduler, gate: Gate) -> None:
    late = Gate()
    job = scheduler.submit(late, deadline=SHORT)
    with pytest.raises(DeadlineError, match="its turn did not come within 0.05 s"):
        list(job)
    assert scheduler.busy and scheduler.waiting == 0  # while the other one still runs
    gate.opened.set()
    assert list(scheduler.submit(says("next"))) == ["next"]
    assert not late.began.is_set()


def test_what_comes_too_late_is_never_begun_for_asyncio(scheduler: Scheduler, gate: Gate) -> None:
    async def read() -> None:
        async for _ in scheduler.submit(says("late"), deadline=SHORT):
            pass

    with pytest.raises(DeadlineError):
        asyncio.run(read())


def test_what_nobody_reads_is_not_begun_late_either(scheduler: Scheduler, gate: Gate) -> None:
    late = Gate()
    job = scheduler.submit(late, deadline=SHORT)
    until(lambda: job.expired)
    gate.opened.set()
    assert list(scheduler.submit(says("next"))) == ["next"]
    assert not late.began.is_set()
    with pytest.raises(DeadlineError):
        list(job)


def test_jobs_past_their_deadline_make_room(scheduler: Scheduler, gate: Gate) -> None:
    late = [scheduler.submit(says(), deadline=SHORT) for _ in range(4)]
    until(lambda: late[-1].expired)
    scheduler.submit(says())
    assert scheduler.waiting == 1


def test_what_was_said_before_the_deadline_is_kept(scheduler: Scheduler) -> None:
    job = scheduler.submit(Gate(), deadline=SHORT)
    assert list(job) == ["begun", "cancelled"]
    assert job.expired


def test_a_job_in_time_has_not_expired(scheduler: Scheduler) -> None:
    job = scheduler.submit(says("a"), deadline=0.2)
    assert list(job) == ["a"]
    time.sleep(0.25)
    assert not job.expired


def test_cancelling_ends_what_runs(scheduler: Scheduler) -> None:
    work = Gate()
    job = scheduler.submit(work)
    assert work.began.wait(LONG)
    job.cancel()
    assert list(job) == ["begun", "cancelled"]


def test_cancelling_takes_a_job_out_of_the_queue(scheduler: Scheduler, gate: Gate) -> None:
    waiting = Gate()
    job = scheduler.submit(waiting)
    job.cancel()
    assert scheduler.waiting == 0
    assert list(job) == []
    gate.opened.set()
    list(scheduler.submit(says()))
    assert not waiting.began.is_set()


def test_leaving_the_loop_cancels(scheduler: Scheduler) -> None:
    work = Gate()
    for _ in scheduler.submit(work):
        break
    assert work.told.wait(SOON)
    assert list(scheduler.submit(says("next"))) == ["next"]


def test_leaving_an_asynchronous_loop_cancels(scheduler: Scheduler) -> None:
    work = Gate()

    async def leave() -> bool:
        async for _ in scheduler.submit(work):
            break
        return await asyncio.to_thread(work.told.wait, SOON)

    assert asyncio.run(leave())


def test_cancelling_a_task_cancels_its_job(scheduler: Scheduler) -> None:
    async def read(job: Job[str]) -> None:
        async for _ in job:
            pass

    async def cancel() -> bool:
        work = Gate()
        task = asyncio.create_task(read(scheduler.submit(work)))
        await asyncio.to_thread(work.began.wait, LONG)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return work.told.wait(SOON)

    assert asyncio.run(cancel())


def test_a_generator_is_closed_behind_an_error(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keeps it alive: the model must be free for the next one."""
    monkeypatch.setattr(scheduler_module, "BUFFER", 2)
    monkeypatch.setattr(scheduler_module, "PATIENCE", 0)
    closed: list[str] = []

    def work(model: Any, cancel: Event) -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            closed.append(threading.current_thread().name)

    job = scheduler.submit(work)
    until(lambda: job.ended is not None)
    assert closed == ["edge-gemma-scheduler"]
    with pytest.raises(DeadlineError):
        list(job)


def test_work_that_does_not_listen_ends_when_nobody_reads(scheduler: Scheduler) -> None:
    for _ in scheduler.submit(lambda model, cancel: iter(range(10**9))):
        break
    until(lambda: not scheduler.busy, SOON)


class Tap:
    """Work that counts what it made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, model: Any, cancel: Event) -> Iterator[int]:
        while not cancel.is_set():
            self.made += 1
            yield self.made


def test_a_slow_reader_stops_the_work(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "BUFFER", 8)
    tap = Tap()
    items = iter(scheduler.submit(tap))
    assert next(items) == 1
    until(lambda: tap.made >= 10)  # one was read, eight lie there, one is held
    time.sleep(SHORT)
    assert tap.made == 10
    assert [next(items) for _ in range(5)] == [2, 3, 4, 5, 6]
    until(lambda: tap.made == 15)
    items.close()


def test_a_reader_that_is_too_slow_loses_the_rest(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not keep others waiting for ever, not even by reading now and then."""
    monkeypatch.setattr(scheduler_module, "BUFFER", 8)
    monkeypatch.setattr(scheduler_module, "PATIENCE", 0.2)
    slow = iter(scheduler.submit(Tap()))
    next(slow)
    behind = scheduler.submit(says("next"), client="b", deadline=LONG)
    found = []

    def read_slowly() -> None:
        with pytest.raises(DeadlineError, match="8 pieces lay unread while the model waited 0.2 s"):
            while True:
                time.sleep(0.1)
                found.append(next(slow))

    reader = threading.Thread(target=read_slowly)
    reader.start()
    assert list(behind) == ["next"]
    reader.join()
    assert found == list(range(2, 2 + len(found)))  # nothing is missing in between


def test_cancelling_frees_a_model_that_waits_for_room(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "BUFFER", 2)
    tap = Tap()
    job = scheduler.submit(tap)
    until(lambda: tap.made == 3)
    job.cancel()
    until(lambda: not scheduler.busy, SOON)
    assert list(job) == [1, 2, 3]


def test_closing_refuses_what_waits_and_waits_for_what_runs(scheduler: Scheduler) -> None:
    work = Gate()
    running = scheduler.submit(work)
    assert work.began.wait(LONG)
    waiting = scheduler.submit(says("never"))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    with pytest.raises(ClosedError, match="before this ended"):
        list(waiting)
    with pytest.raises(ClosedError, match="no more work is taken"):
        scheduler.submit(says())
    assert closing.is_alive()
    work.opened.set()
    closing.join(LONG)
    assert not closing.is_alive()
    assert list(running) == ["begun", "done"]


def test_closing_cancels_what_takes_longer_than_the_grace(scheduler: Scheduler) -> None:
    work = Gate()
    running = scheduler.submit(work)
    assert work.began.wait(LONG)
    scheduler.close(grace=0.01)
    assert list(running) == ["begun", "cancelled"]
    scheduler.close()  # again does no harm


def test_an_event_loop_that_is_gone_does_not_stop_the_others(scheduler: Scheduler, gate: Gate) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    job = scheduler.submit(says("a"))
    job._wake = lambda: loop.call_soon_threadsafe(print)  # of a reader that never ended
    gate.opened.set()
    assert list(scheduler.submit(says("next"), deadline=SOON)) == ["next"]


def test_it_wants_room_for_one() -> None:
    with pytest.raises(PromptError, match="max_waiting is 0"):
        Scheduler(NO_MODEL, max_waiting=0)


def test_waited_is_the_time_before_the_turn(scheduler: Scheduler, gate: Gate) -> None:
    job = scheduler.submit(says("a"))
    time.sleep(SHORT)
    gate.opened.set()
    list(job)
    before = job.waited
    assert before >= SHORT
    time.sleep(0.01)
    assert job.waited == before


def test_closing_the_iterator_of_asyncio_cancels(scheduler: Scheduler) -> None:
    work = Gate()

    async def leave() -> bool:
        async with aclosing(aiter(scheduler.submit(work))) as items:
            await anext(items)
        return work.told.wait(SOON)

    assert asyncio.run(leave())


def test_nothing_of_a_job_lies_here_until_the_next_one(scheduler: Scheduler) -> None:
    class Clip:
        pass

    clip = Clip()
    alive = weakref.ref(clip)
    job = scheduler.submit(says(clip))
    assert list(job) == [clip]
    del job, clip
    until(lambda: alive() is None)
