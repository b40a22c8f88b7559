"""Group commit, without Ray: requests of many threads go out together, each is answered once, and nothing waits for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from safe_refs.registry.grouping import Group, Request

from safe_refs.registry import grouping
from tests.support.waiting import wait_until


def within(seconds: float) -> float:
    return time.monotonic() + seconds


class Echo:
    """Answers each request with what was asked, and keeps what went out together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.open = False
        self.fail: BaseException | None = None

    def __call__(self, batch: Sequence[Request]) -> None:
        self.batches.append([request.what for request in batch])
        if not self.open:
            assert self.gate.acquire(timeout=20)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        for request in batch:
            request.answer = ("echo", request.what)


def wait_for_line(group: Group, length: int) -> None:
    wait_until(lambda: len(group._line) >= length)


def send_first(pool: ThreadPoolExecutor, group: Group, echo: Echo) -> Future[Any]:
    """A request whose call is under way, until the gate opens."""
    first = pool.submit(group.ask, Request(0, within(20)))
    wait_until(lambda: bool(echo.batches))
    return first


def test_a_lone_request_goes_out_at_once() -> None:
    """By the thread that asks."""
    echo = Echo()
    echo.open = True
    group = Group(echo, 30)
    assert [group.ask(Request(number, within(5))) for number in range(3)] == [("echo", number) for number in range(3)]
    assert echo.batches == [[0], [1], [2]]
    assert group._thread is None


def test_those_who_come_meanwhile_go_together() -> None:
    """While one call is under way all others gather, and make one more."""
    echo = Echo()
    group = Group(echo, 30)
    with ThreadPoolExecutor(20) as pool:
        first = send_first(pool, group, echo)
        others = [pool.submit(group.ask, Request(number, within(20))) for number in range(1, 16)]
        wait_for_line(group, 15)
        echo.open = True
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        assert [other.result(10) for other in others] == [("echo", number) for number in range(1, 16)]
    assert [len(batch) for batch in echo.batches] == [1, 15]


def test_posted_requests_are_sent_by_a_thread() -> None:
    """Which takes along whoever asks meanwhile."""
    echo = Echo()
    group = Group(echo, 30)
    done: list[Request] = []
    for number in range(5):
        group.post(Request(number, within(20), done.append))
    echo.open = True
    echo.gate.release()
    assert group.ask(Request(9, within(20))) == ("echo", 9)
    wait_until(lambda: len(done) == 5, 10)
    assert sorted(request.answer[1] for request in done) == list(range(5))
    assert sorted(number for batch in echo.batches for number in batch) == [0, 1, 2, 3, 4, 9]


def test_an_error_is_everybodys() -> None:
    """Of those that it hit; the next call is a new one."""
    echo = Echo()
    group = Group(echo, 30)
    with ThreadPoolExecutor(4) as pool:
        first = send_first(pool, group, echo)
        others = [pool.submit(group.ask, Request(number, within(20))) for number in range(1, 3)]
        wait_for_line(group, 2)
        echo.open = True
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        [other.result(10) for other in others]
        echo.fail = ConnectionError("gone")
        with pytest.raises(ConnectionError):
            group.ask(Request(7, within(5)))
        assert group.ask(Request(8, within(5))) == ("echo", 8)


def test_ctrl_c_hits_only_whose_it_is() -> None:
    """The thread that sends is interrupted: the requests of others are sent again by the next."""
    echo = Echo()
    group = Group(echo, 30)
    with ThreadPoolExecutor(4) as pool:
        first = send_first(pool, group, echo)
        second = pool.submit(group.ask, Request(1, within(20)))
        third = pool.submit(group.ask, Request(2, within(20)))
        wait_for_line(group, 2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        wait_until(lambda: len(echo.batches) == 2)
        echo.fail = KeyboardInterrupt()
        echo.open = True
        echo.gate.release()
        results = [future.exception(10) or future.result() for future in (second, third)]
    assert sorted(map(repr, results)) in (
        ["('echo', 1)", "KeyboardInterrupt()"],
        ["('echo', 2)", "KeyboardInterrupt()"],
    )
    assert group._busy_until is None


def test_nobody_waits_longer_than_told() -> None:
    """A call that hangs holds up neither those in line, beyond their time, nor those that come later, for good."""
    echo = Echo()
    group = Group(echo, 0.1)
    group._longest_s = 0.3
    with ThreadPoolExecutor(4) as pool:
        first = send_first(pool, group, echo)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            group.ask(Request(1, within(0.1)))
        assert time.monotonic() - begun < 2
        assert not group._line
        wait_until(lambda: time.monotonic() > (group._busy_until or 0))  # who leads is taken for gone from then on
        echo.open = True
        assert group.ask(Request(2, within(5))) == ("echo", 2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)


def test_who_has_gone_is_not_given_the_lead() -> None:
    """Its request stood in a call that Ctrl-C ended, and in line again, when nobody waited for it any more."""
    echo = Echo()
    group = Group(echo, 30)
    with ThreadPoolExecutor(4) as pool:
        first = send_first(pool, group, echo)
        second = pool.submit(group.ask, Request(1, within(20)))
        wait_for_line(group, 1)
        third = pool.submit(group.ask, Request(2, within(0.5)))
        wait_for_line(group, 2)
        echo.gate.release()
        assert first.result(10) == ("echo", 0)
        with pytest.raises(TimeoutError):
            third.result(10)
        echo.fail = KeyboardInterrupt()
        echo.gate.release()
        with pytest.raises(KeyboardInterrupt):
            second.result(10)
    assert not group._line
    echo.open = True
    assert group.ask(Request(3, within(5))) == ("echo", 3)


def test_the_thread_for_posted_requests_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another one comes when there is something to send again."""
    monkeypatch.setattr(grouping, "_IDLE_S", 0.05)
    echo = Echo()
    echo.open = True
    group = Group(echo, 30)
    for number in range(3):
        done = threading.Event()
        group.post(Request(number, within(5), lambda _, done=done: done.set()))  # type: ignore[misc]
        assert done.wait(5)
        wait_until(lambda: group._thread is None)
    assert echo.batches == [[0], [1], [2]]


def test_many_threads_for_long() -> None:
    """Nothing is lost, doubled or left waiting, with timeouts and posts in between."""
    sent: list[int] = []

    def send(batch: Sequence[Request]) -> None:
        time.sleep(0.0005)  # a call takes its time
        sent.extend(request.what for request in batch)
        for request in batch:
            request.answer = request.what

    group = Group(send, 30)
    done: list[int] = []

    def work(start: int) -> int:
        late = 0
        for number in range(start, start + 200):
            if number % 7 == 0:
                group.post(Request(number, within(20), lambda request: done.append(request.what)))
                continue
            try:
                assert group.ask(Request(number, within(0.001 if number % 5 == 0 else 20))) == number
            except TimeoutError:
                late += 1
        return late

    with ThreadPoolExecutor(16) as pool:
        late = sum(pool.map(work, range(0, 16_000, 1000)))
    posted = sum(number % 7 == 0 for start in range(0, 16_000, 1000) for number in range(start, start + 200))
    wait_until(lambda: len(done) >= posted)
    assert len(sent) == len(set(sent))
    assert 3200 - late <= len(sent) <= 3200
    assert group._busy_until is None


def test_who_waits_is_not_kept_by_what_is_posted() -> None:
    """What is to be done when a posted request is answered may take long: that is the thread's, and waiters go first."""
    echo = Echo()
    group = Group(echo, 30)
    held = threading.Event()

    def take_long(_: Request) -> None:
        held.wait(20)

    with ThreadPoolExecutor(4) as pool:
        first = send_first(pool, group, echo)
        second = pool.submit(group.ask, Request(1, within(20)))
        wait_for_line(group, 1)
        group.post(Request(2, within(20), take_long))
        third = pool.submit(group.ask, Request(3, within(20)))
        wait_for_line(group, 3)
        echo.open = True
        echo.gate.release()
        try:
            assert [each.result(10) for each in (first, second, third)] == [("echo", 0), ("echo", 1), ("echo", 3)]
        finally:
            held.set()
