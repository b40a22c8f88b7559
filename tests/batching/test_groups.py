"""Group commit, without Ray: requests of many threads go out together, and each is answered once."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from safe_refs.batching import queues
from safe_refs.batching.groups import Group
from safe_refs.threads import Background
from tests.support.groups import Answer, Echo, Outcomes, late, within
from tests.support.waiting import wait_until


def test_a_lone_request_goes_out_at_once(echo: Echo) -> None:
    """By the thread that asks, by itself; nothing else is begun."""
    echo.open = True
    assert [echo.group.ask(number, within(5)) for number in range(3)] == [("echo", number) for number in range(3)]
    assert echo.batches == [[0], [1], [2]]
    assert echo.group._thread is None


def test_those_who_come_meanwhile_go_together(echo: Echo) -> None:
    """While one call is under way all others queue, and make one more."""
    with ThreadPoolExecutor(20) as pool:
        first = echo.first(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 16)]
        echo.queued(15)
        echo.open = True
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        assert [other.result(10) for other in others] == [("echo", number) for number in range(1, 16)]
    assert [len(batch) for batch in echo.batches] == [1, 15]


def test_one_call_has_a_bound(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than that go in several, one after the other."""
    monkeypatch.setattr(queues, "AT_ONCE", 4)
    with ThreadPoolExecutor(20) as pool:
        first = echo.first(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 11)]
        echo.queued(10)
        echo.open = True
        echo.gate.release()
        assert [each.result(10) for each in (first, *others)] == [("echo", number) for number in range(11)]
    assert [len(batch) for batch in echo.batches] == [1, 4, 4, 2]


def test_posted_requests_are_sent_by_a_thread(echo: Echo) -> None:
    """Which also sends what threads ask meanwhile."""
    done = Outcomes()
    for number in range(5):
        echo.group.post(number, within(20), done)
    wait_until(lambda: len(echo.batches) == 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(echo.group.ask, 9, within(20))
        echo.queued(1)
        echo.open = True
        echo.gate.release()
        assert asked.result(10) == ("echo", 9)
    wait_until(lambda: len(done.answers) == 5)
    assert sorted(number for batch in echo.batches for number in batch) == [0, 1, 2, 3, 4, 9]
    assert [thread.name for thread in threading.enumerate() if thread is echo.group._thread] == ["safe_refs-sending"]


def test_what_is_undecided_is_sent_again_by_itself(echo: Echo) -> None:
    """By the thread that asked, or in the background if nobody waits."""
    echo.undecided, done = {2, 3}, Outcomes()
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in (1, 2)]
        echo.queued(2)
        echo.group.post(3, within(20), done)
        echo.open = True
        echo.gate.release()
        assert [each.result(10) for each in (first, *others)] == [("echo", 0), ("echo", 1), ("echo", 2)]
    wait_until(lambda: done.answers == [("echo", 3)])
    assert [2] in echo.batches
    assert [3] in echo.batches


def test_a_call_that_fails_is_made_again_for_each(echo: Echo) -> None:
    """So each gets its own error, and none gets the error of another one."""
    done = Outcomes()
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in range(1, 4)]
        echo.queued(3)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        wait_until(lambda: len(echo.batches) == 2)
        echo.fail = ZeroDivisionError()
        echo.open = True
        echo.gate.release()
        assert [other.result(10) for other in others] == [("echo", number) for number in range(1, 4)]
    echo.fail = ZeroDivisionError()
    echo.group.post(7, within(20), done)
    wait_until(lambda: done.answers == [("echo", 7)])
    assert not done.errors


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
        set(),
    )
    failing._leader, failing._leads_until = failing, within(20).at  # a call is under way
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
        wait_until(lambda: len(failing._waiting) == 2)
        failing._pass_on(failing._leader)
        for thread in threads:
            thread.join(10)
        del threads, thread
        assert [each() for each in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_hits_only_whose_it_is(echo: Echo, interruption: type[BaseException]) -> None:
    """The thread that sends is interrupted: the next one sends the requests of the others again."""
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool)
        second = pool.submit(echo.group.ask, 1, within(20))
        third = pool.submit(echo.group.ask, 2, within(20))
        echo.queued(2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        wait_until(lambda: len(echo.batches) == 2)
        echo.fail = interruption()
        echo.open = True
        echo.gate.release()
        results = [future.exception(10) or future.result() for future in (second, third)]
    assert {type(each) for each in results} == {tuple, interruption}
    assert echo.is_at_rest()


def test_an_interruption_of_the_thread_for_posted_requests_loses_none(echo: Echo) -> None:
    """What ends a thread is no end for what it was to send, nor for those who queued."""
    done = Outcomes()
    echo.fail = SystemExit()
    echo.group.post(1, within(20), done)
    wait_until(lambda: len(echo.batches) == 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(echo.group.ask, 2, within(20))
        echo.queued(1)
        echo.open = True
        echo.gate.release()
        assert asked.result(10) == ("echo", 2)
    wait_until(lambda: done.answers == [("echo", 1)])
    echo.group.post(3, within(20), done)
    wait_until(lambda: done.answers == [("echo", 1), ("echo", 3)])


def test_a_callback_that_fails_keeps_no_other_from_its_call(echo: Echo) -> None:
    """Whatever it raises."""

    def fail(answer: Answer | None, error: Exception | None) -> None:
        raise SystemExit

    done = Outcomes()
    with ThreadPoolExecutor(1) as pool:
        first = echo.first(pool)
        for callback in (fail, done, fail, done):
            echo.group.post(1, within(20), callback)
        echo.open = True
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
    wait_until(lambda: len(done.answers) == 2)
    echo.group.post(2, within(20), done)
    wait_until(lambda: len(done.answers) == 3)
