"""Group commit, without Ray: nothing waits for good, whoever is interrupted, vanishes, or comes in between."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from safe_refs.batching.groups import Group
from safe_refs.config import Deadline
from safe_refs.errors import RegistryUnavailableError
from safe_refs.threads import Background
from tests.support.groups import Answer, Echo, Outcomes, gone, late, within
from tests.support.waiting import comes, stays, wait_until


def test_nobody_waits_longer_than_the_timeout(echo: Echo) -> None:
    """A call that is not answered holds up those who queue no longer than their own time."""
    with ThreadPoolExecutor(4) as pool:
        begun = echo.busy(pool)
        started = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.1 s"):
            echo.group.ask(1, within(0.1))
        assert time.monotonic() - started < 2
        assert echo.let_go(*begun) == [("echo", 0), ("echo", 100)]
    wait_until(echo.is_at_rest)
    assert echo.batches == [[0], [100]], "nobody waits for it any more"


def test_a_waiter_in_anothers_call_ends_by_its_own_deadline(echo: Echo) -> None:
    """Its request is in a call that goes by the longest deadline of all in it."""
    with ThreadPoolExecutor(4) as pool:
        begun = echo.busy(pool)
        patient = pool.submit(echo.group.ask, 1, asked := within(20))
        hasty = pool.submit(echo.group.ask, 2, within(0.5))
        echo.queued(2)
        echo.gate.release(2)
        assert [each.result(10) for each in begun] == [("echo", 0), ("echo", 100)]
        wait_until(lambda: len(echo.batches) == 3)
        assert (sorted(echo.batches[2]), echo.deadlines[2]) == ([1, 2], asked)
        started = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match=r"within 0\.5 s"):
            hasty.result(10)
        assert time.monotonic() - started < 5
        assert not patient.done()
        assert echo.let_go(patient) == [("echo", 1)]


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


def test_a_call_that_an_interrupted_thread_left_noted_costs_nothing_but_a_detour(echo: Echo) -> None:
    """A signal's exception may come in the very line that would take the note back. Its thread, and others, go on; and it heals."""
    echo.open = True
    echo.group._caller = threading.get_ident()
    assert echo.group.ask(1, within(5)) == ("echo", 1)
    assert echo.is_at_rest(), "the thread's own next call has taken it back"
    echo.group._caller = -1  # a thread's that has ended
    assert echo.group.ask(2, within(5)) == ("echo", 2)
    wait_until(echo.is_at_rest)
    assert echo.batches == [[1], [2]]


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


def test_a_thread_of_ours_waits_for_no_thread_of_ours(echo: Echo) -> None:
    """A destructor may run in the thread that sends: what it asks goes by itself, though another call is under way."""
    found: list[Answer] = []
    together = echo.group._together

    def collect(numbers: Sequence[int], deadline: Deadline) -> Sequence[Answer | Exception | None]:
        found.append(echo.group.ask(5, within(20)))
        return together(numbers, deadline)

    with ThreadPoolExecutor(1) as pool:
        first = echo.first(pool)
        echo.group._together = collect
        echo.open = True  # for all but the first
        assert echo.group.ask(1, within(20)) == ("echo", 1)
        assert found == [("echo", 5)]
        assert echo.let_go(first) == [("echo", 0)]


def test_a_signal_handler_may_ask_while_its_thread_queues(echo: Echo) -> None:
    """It waits for the thread that sends, which waits for nobody."""
    found: list[Answer] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(echo.group.ask(5, within(20))))
    try:
        with ThreadPoolExecutor(2) as pool:
            begun = echo.busy(pool)

            def interrupt() -> None:
                echo.queued(1)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                echo.queued(2)
                echo.let_go()

            helper = threading.Thread(target=interrupt)
            helper.start()
            assert echo.group.ask(1, within(20)) == ("echo", 1)
            helper.join(10)
            assert [each.result(10) for each in begun] == [("echo", 0), ("echo", 100)]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [("echo", 5)]


def test_closing_answers_all(echo: Echo) -> None:
    """Those who queue, those in a call under way, and those that are posted; and who comes later. The thread ends."""
    done = Outcomes()
    echo.group.post(1, within(20), done)
    wait_until(lambda: len(echo.batches) == 1)
    echo.group._caller = -1  # another thread's call is under way
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
    wait_until(lambda: echo.group._sending.thread is None)
    assert (done.answers, len(done.errors)) == ([], 2)
    assert echo.batches == [[1]]


def test_the_thread_for_posted_requests_ends_when_idle(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another one comes when there is something to send again."""
    monkeypatch.setattr(echo.group._sending, "_idle_s", 0.05)
    echo.open, done = True, Outcomes()
    for number in range(3):
        echo.group.post(number, within(5), done)
        wait_until(lambda: len(done.answers) == number + 1 and echo.group._sending.thread is None)  # noqa: B023 # it is done by then
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
        echo.group._caller = -1  # another thread's call is under way
        assert echo.group.ask(2, within(5)) == ("echo", 2), "it goes by itself"
    assert echo.group.ask(3, within(5)) == ("echo", 3)
    wait_until(echo.is_at_rest)
    assert echo.batches == [[2], [3]]


def test_many_threads_for_long() -> None:
    """Nothing is lost, doubled or left waiting, with short deadlines and posts in between."""
    sent: list[int] = []

    def together(numbers: Sequence[int], deadline: Deadline) -> list[int]:
        time.sleep(0.0005)
        sent.extend(numbers)
        return list(numbers)

    def alone(number: int, deadline: Deadline) -> int:
        return together([number], deadline)[0]

    group: Group[int, int] = Group(alone, together, late, Background())
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
    group.close(gone)


def test_who_waits_is_not_kept_by_what_is_posted(echo: Echo) -> None:
    """A callback should not take long. While one does, a thread that comes first goes by itself."""
    held, begun = threading.Event(), threading.Event()

    def take_long(answer: Answer | None, error: Exception | None) -> None:
        begun.set()
        held.wait(20)

    echo.open = True
    try:
        echo.group.post(2, within(20), take_long)
        assert begun.wait(10)
        echo.group.post(4, within(20), take_long)  # which waits for the thread
        assert echo.group.ask(5, within(10)) == ("echo", 5)
        stays(lambda: [4] not in echo.batches, 0.1)
    finally:
        held.set()
    assert comes(lambda: [4] in echo.batches)
