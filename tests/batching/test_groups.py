"""Group commit, without Ray: requests of many threads go out together, and each is answered once."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from safe_refs.batching import queues
from safe_refs.batching.groups import Group
from safe_refs.batching.queues import GroupQueue
from safe_refs.config import Deadline
from safe_refs.threads import Background
from tests.support.groups import Answer, Echo, Outcomes, gone, late, within
from tests.support.waiting import wait_until


def test_a_lone_request_goes_out_at_once(echo: Echo) -> None:
    """By the thread that asks, by itself; nothing else is begun."""
    echo.open = True
    assert [echo.group.ask(number, within(5)) for number in range(3)] == [("echo", number) for number in range(3)]
    assert echo.batches == [[0], [1], [2]]
    assert echo.group._sending.thread is None


def test_those_who_come_meanwhile_go_together(echo: Echo) -> None:
    """The first of them at once, by the group's thread; while that call is under way all others queue, and make one more."""
    with ThreadPoolExecutor(20) as pool:
        begun = echo.busy(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 16)]
        echo.queued(15)
        assert echo.let_go(*begun) == [("echo", 0), ("echo", 100)]
        assert [other.result(10) for other in others] == [("echo", number) for number in range(1, 16)]
    assert [len(batch) for batch in echo.batches] == [1, 1, 15]


def test_one_call_has_a_bound(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than that go in several, one after the other."""
    monkeypatch.setattr(queues, "AT_ONCE", 4)
    with ThreadPoolExecutor(20) as pool:
        begun = echo.busy(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 11)]
        echo.queued(10)
        echo.let_go(*begun)
        assert [each.result(10) for each in others] == [("echo", number) for number in range(1, 11)]
    assert [len(batch) for batch in echo.batches] == [1, 1, 4, 4, 2]


def test_posted_requests_are_sent_by_the_same_thread(echo: Echo) -> None:
    """Together with what threads ask meanwhile."""
    done = Outcomes()
    with ThreadPoolExecutor(3) as pool:
        begun = echo.busy(pool)
        for number in range(1, 6):
            echo.group.post(number, within(20), done)
        asked = pool.submit(echo.group.ask, 9, within(20))
        echo.queued(6)
        echo.let_go(*begun)
        assert asked.result(10) == ("echo", 9)
    wait_until(lambda: len(done.answers) == 5)
    assert sorted(echo.batches[2]) == [1, 2, 3, 4, 5, 9]
    ours = [thread.name for thread in threading.enumerate() if thread is echo.group._sending.thread]
    assert ours == ["safe_refs-sending"]


def test_what_is_undecided_is_sent_again_by_itself(echo: Echo) -> None:
    """By the thread that asked, or in the background if nobody waits."""
    echo.undecided, done = {2, 3}, Outcomes()
    with ThreadPoolExecutor(4) as pool:
        begun = echo.busy(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in (1, 2)]
        echo.group.post(3, within(20), done)
        echo.queued(3)
        echo.let_go(*begun)
        assert [each.result(10) for each in others] == [("echo", 1), ("echo", 2)]
    wait_until(lambda: done.answers == [("echo", 3)])
    assert [2] in echo.batches
    assert [3] in echo.batches


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_call_that_fails_is_made_again_for_each(echo: Echo, failure: type[BaseException]) -> None:
    """So each gets its own error, and none gets the error of another one. Also if it was to end the thread."""
    done, together = Outcomes(), echo.group._together

    def fail(numbers: Sequence[int], deadline: Deadline) -> Sequence[Answer | Exception | None]:
        if len(numbers) == 3:
            raise failure
        return together(numbers, deadline)

    with ThreadPoolExecutor(4) as pool:
        begun = echo.busy(pool)
        echo.group._together = fail
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 3)]
        echo.group.post(3, within(20), done)
        echo.queued(3)
        assert echo.let_go(*begun, *others) == [("echo", 0), ("echo", 100), ("echo", 1), ("echo", 2)]
    wait_until(lambda: done.answers == [("echo", 3)])
    assert not done.errors
    assert sorted(echo.batches) == [[0], [1], [2], [3], [100]]


def test_whatever_ends_the_thread_each_gets_an_answer() -> None:
    """At any line of what the group's thread does, and whatever it does next: the others are sent by the next one."""
    ways = (GroupQueue._send.__code__, GroupQueue._answer.__code__)
    for line in itertools.count():
        left, echo, done = [line], Echo(is_open=True), Outcomes()

        def trace(frame: FrameType, event: str, _: object, left: list[int] = left) -> Any:
            if frame.f_code not in ways:
                return None
            if event == "line" and left:
                left[0] -= 1
                if left[0] < 0:
                    left.clear()
                    raise SystemExit
            return trace

        threading.settrace(trace)
        try:
            for number in range(3):
                echo.group.post(number, within(20), done)
        finally:
            threading.settrace(None)
        wait_until(lambda done=done: len(done.answers) + len(done.errors) == 3)  # type: ignore[misc] # mypy can't infer it
        echo.group.close(gone)
        if left:
            break  # there is no such line
    assert line > 15


def test_an_error_of_its_own_is_raised(echo: Echo) -> None:
    """And the next request is not concerned."""
    echo.open, echo.fail = True, ConnectionError("gone")
    with pytest.raises(ConnectionError):
        echo.group.ask(7, within(5))
    assert echo.group.ask(8, within(5)) == ("echo", 8)


def test_an_error_keeps_nothing_alive(echo: Echo) -> None:
    """Neither by the queued request nor by the frames that it has passed: there is no cycle that only the collector would find."""

    class Pinned:
        pass

    failing: Group[Pinned, int] = Group(
        lambda what, deadline: 1,
        lambda whats, deadline: [ZeroDivisionError() for _ in whats],
        late,
        Background(),
    )
    failing._caller = -1  # another thread's call is under way
    alive: list[Any] = []

    def ask(what: Pinned) -> None:
        alive.append(weakref.ref(what))
        with pytest.raises(ZeroDivisionError):
            failing.ask(what, within(20))

    gc.collect()
    gc.disable()
    try:
        threads = [threading.Thread(target=lambda: ask(Pinned())) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join(10)
            failing._caller = -1
        del threads, thread
        assert [each() for each in alive] == [None, None]
    finally:
        gc.enable()
        failing.close(gone)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_hits_only_whose_it_is(echo: Echo, interruption: type[BaseException]) -> None:
    """The thread that is interrupted gets it; the requests of the others go on."""
    with ThreadPoolExecutor(4) as pool:
        first, second = echo.busy(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 3)]
        echo.queued(2)
        echo.fail = interruption()
        echo.gate.release()
        wait_until(lambda: first.done() or second.done())
        echo.let_go()
        results = [future.exception(10) or future.result() for future in (first, second, *others)]
    assert [each for each in results if isinstance(each, tuple)][-2:] == [("echo", 1), ("echo", 2)]
    assert [type(each) for each in results].count(interruption) <= 1
    wait_until(echo.is_at_rest)


def test_a_callback_that_fails_keeps_no_other_from_its_call(echo: Echo) -> None:
    """Whatever it raises."""

    def fail(answer: Answer | None, error: Exception | None) -> None:
        raise SystemExit

    done = Outcomes()
    with ThreadPoolExecutor(2) as pool:
        begun = echo.busy(pool)
        for callback in (fail, done, fail, done):
            echo.group.post(1, within(20), callback)
        echo.let_go(*begun)
    wait_until(lambda: len(done.answers) == 2)
    echo.group.post(2, within(20), done)
    wait_until(lambda: len(done.answers) == 3)
