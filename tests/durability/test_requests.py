"""The copy requests of a shard, without Ray: who is served or given up, what is sent to the copy owner, and when."""

from __future__ import annotations

import pytest

from safe_refs.durability.requests import CopyRequests
from safe_refs.durability.wire import NotCopyable, Why

A, B = b"a" * 16, b"b" * 16
ENV = "{}"
PROBLEM = NotCopyable(Why.FAILED, "the store is full")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def requests(clock: Clock) -> CopyRequests:
    return CopyRequests(clock)


def test_the_first_who_asks_sends_it_and_nobody_else(requests: CopyRequests) -> None:
    """Many may wait for one lease: the copy owner gets one request, and all get its completion."""
    assert requests.ask(A, ENV) is True
    assert requests.completion(A) is None, "not sent yet"
    assert requests.ask(A, ENV) is False
    requests.sent(A, "completion")
    assert requests.ask(A, ENV) is False
    assert requests.completion(A) == "completion"
    assert requests.due() == []


def test_a_pin_brings_a_request_that_is_sent_in_the_background(requests: CopyRequests) -> None:
    """Unless the maker has sent it to the copy owner itself."""
    requests.note(A, ENV, 60.0, is_sent=False)
    requests.note(B, ENV, None, is_sent=True)
    assert requests.due() == [(A, ENV)]
    assert requests.due() == []
    assert requests.ask(A, ENV) is False
    assert requests.ask(B, ENV) is False
    assert requests.done(A) == (ENV, 60.0)
    assert requests.done(B) == (ENV, None)


def test_done_is_done_once(requests: CopyRequests) -> None:
    """Copies that come a second time, or that nobody wants, are not taken."""
    requests.ask(A, ENV, 3.0)
    assert requests.done(A) == (ENV, 3.0)
    assert requests.done(A) is None
    assert requests.done(B) is None
    assert len(requests) == 0


def test_nobody_asks_any_more(requests: CopyRequests, clock: Clock) -> None:
    """Its process has died: after 15 s the copy owner is told so, and its copies aren't taken."""
    requests.ask(A, ENV)
    clock.now += 14
    assert requests.still([A]) == [A]
    requests.ask(A, ENV)
    clock.now += 14
    assert requests.still([A]) == [A]
    clock.now += 2
    assert requests.still([A]) == []
    assert requests.done(A) is None
    assert len(requests) == 0


def test_in_the_background_nobody_needs_to_ask(requests: CopyRequests, clock: Clock) -> None:
    """Copies in place of another shard's are wanted as long as the lease lives."""
    requests.want(A, ENV)
    requests.want(A, ENV)
    assert requests.due() == [(A, ENV)]
    for _ in range(10):
        clock.now += 9
        assert requests.still([A]) == [A]
    assert requests.due() == []
    requests.forget(A)
    assert requests.still([A]) == []


def test_a_copy_owner_that_is_silent_gets_it_again(requests: CopyRequests, clock: Clock) -> None:
    """It has died, and another one runs by then. One that says that it is at it does not."""
    requests.want(A, ENV)
    requests.due()
    clock.now += 9
    requests.still([A])
    clock.now += 9
    assert requests.due() == []
    clock.now += 2
    assert requests.due() == [(A, ENV)]


def test_a_request_that_could_not_be_sent_is_sent_by_the_next_who_asks(requests: CopyRequests) -> None:
    """Likewise one whose completion came without copies; that completion is given to nobody any more."""
    requests.ask(A, ENV)
    requests.sent(A, "the first")
    requests.unsent(A)
    assert requests.completion(A) is None
    assert requests.ask(A, ENV) is True
    assert requests.ask(A, ENV) is False


def test_a_failure_is_reported_once_and_ends_the_request(requests: CopyRequests) -> None:
    """Whoever asks after that begins anew."""
    requests.ask(A, ENV)
    requests.sent(A, "completion")
    requests.fail(A, PROBLEM)
    assert requests.due() == []
    assert requests.still([A]) == []
    assert requests.done(A) is None, "copies that come all the same aren't taken"
    assert requests.ask(A, ENV) == PROBLEM
    assert requests.ask(A, ENV) is True


def test_a_repeated_pin_does_not_hide_a_failure(requests: CopyRequests) -> None:
    """The pin is repeated when its answer got lost. The maker still learns why there are no copies."""
    requests.note(A, ENV, None, is_sent=True)
    requests.fail(A, PROBLEM)
    requests.note(A, ENV, None, is_sent=True)
    assert requests.ask(A, ENV) == PROBLEM


def test_a_failure_in_the_background_is_tried_again_after_a_pause(requests: CopyRequests, clock: Clock) -> None:
    """Nobody waits, and it may go well next time."""
    requests.want(A, ENV)
    requests.due()
    requests.fail(A, PROBLEM)
    assert requests.due() == []
    clock.now += 10
    assert requests.due() == [(A, ENV)]


def test_what_is_said_of_unknown_leases_is_nothing(requests: CopyRequests) -> None:
    """They have ended meanwhile."""
    requests.sent(A, "completion")
    requests.unsent(A)
    requests.fail(A, PROBLEM)
    requests.forget(A)
    assert requests.completion(A) is None
    assert requests.still([A]) == []
    assert len(requests) == 0


def test_copies_of_another_shard_take_the_place_of_what_was_asked_for(requests: CopyRequests, clock: Clock) -> None:
    """The lease became durable elsewhere while a process asked for it here. That process is content, and asks no more.

    Our own copies are wanted nevertheless, and leave the ttl alone, which began with the other shard's.
    """
    requests.ask(A, ENV, 60.0)
    requests.sent(A, "completion")
    requests.want(A, ENV)
    clock.now += 60
    assert requests.due() == [(A, ENV)]
    assert requests.done(A) == (ENV, None)
    requests.ask(B, ENV)
    requests.fail(B, PROBLEM)
    requests.want(B, ENV)
    assert requests.due() == [(B, ENV)], "what failed were copies of the originals"
