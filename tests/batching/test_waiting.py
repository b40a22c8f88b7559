"""Group commit, without Ray: nothing waits for good, whoever leads, is interrupted, or vanishes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from safe_refs.batching import queues
from safe_refs.batching.groups import Group
from safe_refs.config import Deadline
from safe_refs.errors import RegistryUnavailableError
from safe_refs.threads import Background
from tests.support.groups import Answer, Echo, Outcomes, gone, late, within
from tests.support.waiting import comes, stays, wait_until


def test_nobody_waits_longer_than_the_timeout(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is not answered holds up those who queue no longer than their own time, whatever that of the leader."""
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool, 20)
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.1 s"):
            echo.group.ask(1, within(0.1))
        assert time.monotonic() - begun < 2
        assert not echo.group._waiting
        echo.open = True
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
    assert echo.batches == [[0]]


def test_a_waiter_in_anothers_call_ends_by_its_own_deadline(echo: Echo) -> None:
    """Its request is in a call that goes by the longer deadline of the thread that leads."""
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool)
        leader = pool.submit(echo.group.ask, 1, within(20))
        echo.queued(1)
        follower = pool.submit(echo.group.ask, 2, within(0.5))
        echo.queued(2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        wait_until(lambda: len(echo.batches) == 2)
        assert echo.batches[1] == [1, 2]
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.5 s"):
            follower.result(10)
        assert time.monotonic() - begun < 5
        assert not leader.done()
        echo.open = True
        echo.gate.release()
        assert leader.result(10) == ("echo", 1)


def test_a_call_goes_by_the_deadline_of_the_thread_that_leads(echo: Echo) -> None:
    """However long that has queued: it begins no new time. The others, who have time left, queue again, and go together."""
    with ThreadPoolExecutor(5) as pool:
        first = echo.first(pool)
        hasty = pool.submit(echo.group.ask, 1, asked := within(0.8))
        echo.queued(1)
        others = [pool.submit(echo.group.ask, number, within(20)) for number in (2, 3)]
        echo.queued(3)
        time.sleep(0.3)  # of the time that the next leader has
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.8 s"):
            hasty.result(10)
        assert time.monotonic() - asked.at < 0.5
        assert echo.deadlines[1] is asked
        echo.open = True
        echo.gate.release(2)
        assert [each.result(10) for each in others] == [("echo", 2), ("echo", 3)]
    assert echo.batches == [[0], [1, 2, 3], [2, 3]]


def test_deadlines_of_all_lengths_share_one_thread(echo: Echo) -> None:
    """The deadline travels with each request. There was an idle thread for each distinct timeout."""
    before = {thread.ident for thread in threading.enumerate()}
    echo.open, done = True, Outcomes()
    for number in range(20):
        echo.group.post(number, within(10 + number), done)
    wait_until(lambda: len(done.answers) == 20)
    assert len([thread for thread in threading.enumerate() if thread.ident not in before]) == 1


def test_a_posted_request_whose_time_is_over_is_not_tried_again(echo: Echo) -> None:
    """Its callback gets the error; a thousand of them would make a thousand calls in vain."""
    done = Outcomes()
    echo.group.post(1, within(0.3), done)
    wait_until(lambda: bool(done.errors))
    assert isinstance(done.errors[0], RegistryUnavailableError)
    assert echo.batches == [[1]]


def test_who_has_gone_is_not_given_the_lead(echo: Echo) -> None:
    """Its request was in a call that Ctrl-C ended, when nobody waited for it any more."""
    with ThreadPoolExecutor(4) as pool:
        first = echo.first(pool)
        second = pool.submit(echo.group.ask, 1, within(20))
        echo.queued(1)
        third = pool.submit(echo.group.ask, 2, within(0.5))
        echo.queued(2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        with pytest.raises(RegistryUnavailableError):
            third.result(10)
        echo.fail = KeyboardInterrupt()
        echo.gate.release()
        with pytest.raises(KeyboardInterrupt):
            second.result(10)
    assert echo.is_at_rest()
    echo.open = True
    assert echo.group.ask(3, within(5)) == ("echo", 3)


def test_a_leader_that_vanished_is_replaced(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come in the very line that would have passed the lead on. What was in its call is sent again."""
    monkeypatch.setattr(queues, "_MARGIN_S", 0.1)
    vanished, left = queues.Request[int, Answer](0, within(0.1)), queues.Request[int, Answer](1, within(20))
    left.waiter = threading.Lock()
    left.waiter.acquire()
    echo.group._leader, echo.group._leads_until, echo.open = vanished, vanished.deadline.at, True
    echo.group._under_way = [vanished, left]
    wait_until(echo.group._is_free)
    assert echo.group.ask(2, within(20)) == ("echo", 2)
    assert left.waiter.acquire(timeout=10)
    assert (left.answer, echo.batches) == (("echo", 1), [[2, 1]])


def test_a_destructor_may_ask_in_the_middle_of_another_request(echo: Echo) -> None:
    """It runs in the thread that asks, which can't wait for itself: its request goes out by itself, posted or not."""
    echo.open, done, found = True, Outcomes(), list[Answer]()

    class Mortal:
        def __del__(self) -> None:
            found.append(echo.group.ask(5, within(20)))
            echo.group.post(6, within(20), done)

    alone = echo.group._alone

    def collect(number: int, deadline: Deadline) -> Answer:
        if number == 1:
            Mortal()
        return alone(number, deadline)

    echo.group._alone = collect
    begun = time.monotonic()
    assert echo.group.ask(1, within(20)) == ("echo", 1)
    assert found == [("echo", 5)]
    wait_until(lambda: done.answers == [("echo", 6)])
    assert time.monotonic() - begun < 5


def test_a_signal_handler_may_ask_while_its_thread_queues(echo: Echo) -> None:
    """The call under way may be that of the thread that would then be given the lead: this one, which is in the handler."""
    found: list[Answer] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(echo.group.ask(5, within(20))))
    try:
        with ThreadPoolExecutor(1) as pool:
            first = echo.first(pool)

            def interrupt() -> None:
                echo.queued(1)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                wait_until(lambda: [5] in echo.batches)
                echo.open = True
                echo.gate.release(2)

            helper = threading.Thread(target=interrupt)
            helper.start()
            assert echo.group.ask(1, within(20)) == ("echo", 1)
            helper.join(10)
            assert first.result(10) == ("echo", 0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [("echo", 5)]


def test_closing_answers_all(echo: Echo) -> None:
    """Those who queue, those in a call under way, and those that are posted; and who comes later. The thread ends."""
    done = Outcomes()
    echo.group.post(1, within(20), done)
    wait_until(lambda: len(echo.batches) == 1)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(echo.group.ask, 2, within(20))
        echo.queued(1)
        echo.group.post(3, within(20), done)
        begun = time.monotonic()
        echo.group.close(gone)
        with pytest.raises(RegistryUnavailableError, match="the connection"):
            asked.result(10)
        wait_until(lambda: len(done.errors) == 2)  # the call itself is under way still
        assert time.monotonic() - begun < 2
        for ask in (lambda: echo.group.ask(4, within(5)), lambda: echo.group.post(4, within(5), done)):
            with pytest.raises(RegistryUnavailableError, match="the connection"):
                ask()
    echo.gate.release()
    wait_until(lambda: echo.group._thread is None)
    assert (done.answers, len(done.errors)) == ([], 2)
    assert echo.batches == [[1]]


def test_the_thread_for_posted_requests_ends_when_idle(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another one comes when there is something to send again."""
    monkeypatch.setattr(queues, "_IDLE_S", 0.05)
    echo.open, done = True, Outcomes()
    for number in range(3):
        echo.group.post(number, within(5), done)
        wait_until(lambda: len(done.answers) == number + 1 and echo.group._thread is None)  # noqa: B023 # it is done by then
    assert echo.batches == [[0], [1], [2]]


def test_where_no_thread_can_be_had_who_posts_gets_the_error(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left queued, and whoever waits goes on."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    echo.open = True
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            echo.group.post(1, within(5), Outcomes())
    assert echo.is_at_rest()
    assert echo.group.ask(2, within(5)) == ("echo", 2)


def test_many_threads_for_long() -> None:
    """Nothing is lost, doubled or left waiting, with short deadlines and posts in between."""
    sent: list[int] = []

    def together(numbers: Sequence[int], deadline: Deadline) -> list[int]:
        time.sleep(0.0005)
        sent.extend(numbers)
        return list(numbers)

    def alone(number: int, deadline: Deadline) -> int:
        return together([number], deadline)[0]

    group: Group[int, int] = Group(alone, together, late, Background(), set())
    done: list[int] = []

    def note(number: int) -> Callable[[int | None, Exception | None], None]:
        return lambda answer, error: done.append(number)

    def work(start: int) -> int:
        late = 0
        for number in range(start, start + 200):
            if number % 7 == 0:
                group.post(number, within(20), note(number))
                continue
            try:
                assert group.ask(number, within(0.001 if number % 5 == 0 else 20)) == number
            except RegistryUnavailableError:
                late += 1
        return late

    with ThreadPoolExecutor(16) as pool:
        late_ones = sum(pool.map(work, range(0, 16_000, 1000)))
    posted = sum(number % 7 == 0 for start in range(0, 16_000, 1000) for number in range(start, start + 200))
    wait_until(lambda: len(done) >= posted)
    assert len(sent) == len(set(sent))
    assert 3200 - late_ones <= len(sent) <= 3200
    wait_until(lambda: group.is_idle)


def test_who_waits_is_not_kept_by_what_is_posted(echo: Echo) -> None:
    """What is to be done when a posted request is answered may take long: that is the thread's, and threads lead meanwhile."""
    held, begun = threading.Event(), threading.Event()

    def take_long(answer: Answer | None, error: Exception | None) -> None:
        begun.set()
        held.wait(20)

    try:
        with ThreadPoolExecutor(4) as pool:
            first = echo.first(pool)
            second = pool.submit(echo.group.ask, 1, within(20))
            echo.queued(1)
            echo.group.post(2, within(20), take_long)
            third = pool.submit(echo.group.ask, 3, within(20))
            echo.queued(2)
            echo.open = True
            echo.gate.release()
            assert [each.result(10) for each in (first, second, third)] == [("echo", 0), ("echo", 1), ("echo", 3)]
            assert begun.wait(10)
            echo.group.post(4, within(20), take_long)  # which waits for the thread
            assert echo.group.ask(5, within(10)) == ("echo", 5)
            stays(lambda: [4] not in echo.batches, 0.1)
    finally:
        held.set()
    assert comes(lambda: [4] in echo.batches)
