"""Which owners answer: with a clock and owners of their own, and no Ray."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any

import pytest

from safe_refs.anchoring.answering import Answering


class Owners:
    """Answers, or not, and says how often it was asked."""

    def __init__(self) -> None:
        self.now = 100.0
        self.takes_s: deque[float] = deque()
        self.asked = 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, sample: Any, timeout_s: float) -> bool:
        self.asked += 1
        takes_s = self.takes_s.popleft() if self.takes_s else 0.001
        self.now += min(takes_s, timeout_s)
        if takes_s > timeout_s:
            raise TimeoutError
        return True


@pytest.fixture
def owners() -> Owners:
    return Owners()


@pytest.fixture
def answering(owners: Owners) -> Answering:
    return Answering(threading.Lock(), owners.ask, lambda: owners.now, owners.sleep)


def test_who_answers_at_once_is_asked_once_and_who_takes_long_twice(owners: Owners, answering: Answering) -> None:
    """An owner that was stopped may give its first answer before it has read what else had come, or was to come."""
    assert answering.silent({b"one": 1, b"other": 2}) == set()
    assert owners.asked == 2
    owners.takes_s.extend([0.06, 0.1])
    begun = owners.now
    assert answering.silent({b"one": 1}) == set()
    assert owners.asked == 4
    assert owners.now - begun == pytest.approx(0.06 + 0.1 + 0.1)
    owners.takes_s.extend([0.1, 9.0])
    assert answering.silent({b"one": 1}) == {b"one"}


def test_who_is_silent_is_asked_ever_more_seldom(owners: Owners, answering: Answering) -> None:
    """After a tenth of a second, then after two tenths, … two seconds at most. When it answers, all is as before."""
    asked_at: list[float] = []
    owners.takes_s.extend([9.0] * 8)
    while answering.silent({b"one": 1}):
        if owners.asked > len(asked_at):
            asked_at.append(owners.now)
        owners.now += 0.01
    asked_at.append(owners.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert pauses == pytest.approx(
        [0.5, 1.0, 1.2, 1.6, 2.4, 2.8, 2.8, 2.3], abs=0.05
    )  # the question takes 0.4 to 0.8 s of that
    owners.takes_s.append(9.0)
    assert answering.silent({b"one": 1}) == {b"one"}
    owners.now += 0.1
    assert answering.silent({b"one": 1}) == set()


def test_who_is_slow_is_given_more_time(owners: Owners, answering: Answering) -> None:
    """On a machine that is very busy an answer takes longer than a fifth of a second."""
    owners.takes_s.append(0.3)
    assert answering.silent({b"one": 1}) == {b"one"}
    owners.now += 0.1
    owners.takes_s.extend([0.3, 0.01])
    assert answering.silent({b"one": 1}) == set()


@pytest.mark.parametrize("then", [0.001, 9.0])
def test_who_answers_after_a_silence_is_asked_again_a_little_later(
    owners: Owners, answering: Answering, then: float
) -> None:
    """Of what readers have let go of meanwhile, it has the first, and hears of the rest when it has asked for more."""
    owners.takes_s.append(9.0)
    assert answering.silent({b"one": 1}) == {b"one"}
    answering.hurry()
    begun, asked = owners.now, owners.asked
    owners.takes_s.extend([0.001, then])
    assert answering.silent({b"one": 1}) == ({b"one"} if then > 1 else set())
    assert owners.asked == asked + 2
    assert owners.now - begun > 0.3
    answering.hurry()
    asked = owners.asked
    assert answering.silent({b"one": 1}) == set()
    assert owners.asked == asked + (2 if then > 1 else 1)


def test_who_seems_silent_is_asked_twice(owners: Owners, answering: Answering) -> None:
    """It may be there again by now, and the thread that asks has come late."""
    answering.doubt([b"one"])
    begun = owners.now
    assert answering.silent({b"one": 1, b"other": 2}) == set()
    assert owners.asked == 3
    assert owners.now - begun > 0.3
    assert answering.silent({b"one": 1}) == set()
    assert owners.asked == 4
    answering.doubt([b"one"])
    owners.takes_s.append(0.19)  # it has as much time as others
    assert answering.silent({b"one": 1}) == set()


def test_many_that_are_there_again_and_then_not_hold_up_the_others_for_a_moment(
    owners: Owners, answering: Answering
) -> None:
    names = {number.to_bytes(4, "big"): number for number in range(50)}
    owners.takes_s.extend([9.0] * 100)
    answering.silent(names)
    answering.hurry()
    owners.takes_s.clear()
    owners.takes_s.extend([0.001] * len(answering._silent) + [9.0] * 50)
    begun = owners.now
    assert answering.silent(names)
    assert owners.now - begun < 1.5


def test_who_is_there_is_heard_behind_those_that_are_not(owners: Owners, answering: Answering) -> None:
    """When the shard closes, say, and all are asked at once: ten that stay silent don't take all the time."""
    names = {number.to_bytes(4, "big"): number for number in range(11)}
    owners.takes_s.extend([9.0] * 11)
    assert answering.silent(names) == set(names)
    answering.hurry()
    owners.takes_s.clear()
    owners.takes_s.extend([9.0] * 10)
    assert answering.silent(names) == set(list(names)[:10])


@pytest.mark.parametrize(("count", "takes_s"), [(1, 0.3), (4, 0.06), (200, 0.02)])
def test_who_is_slow_is_heard_in_the_end(owners: Owners, answering: Answering, count: int, takes_s: float) -> None:
    """Alone, or several at once, or all of a node that is back; and no call takes long."""
    names = {number.to_bytes(4, "big"): number for number in range(count)}
    answering.doubt(names)
    began = owners.now
    left = set(names)
    while left:
        owners.takes_s.extend([takes_s] * (2 * len(left)))
        begun = owners.now
        left &= answering.silent({owner: names[owner] for owner in left})
        owners.takes_s.clear()
        assert owners.now - begun < 2.5
        owners.now += 0.2
        assert owners.now - began < 15


def test_many_that_are_there_and_gone_again_are_not_all_asked(owners: Owners, answering: Answering) -> None:
    names = {number.to_bytes(4, "big"): number for number in range(256)}
    answering.doubt(names)
    owners.takes_s.extend([0.001] * 256 + [9.0] * 256)
    begun = owners.now
    assert answering.silent(names) == set(names)
    assert owners.now - begun < 2.5


def test_who_was_silent_is_asked_last(owners: Owners, answering: Answering) -> None:
    """The others have answered by then."""
    owners.takes_s.append(9.0)
    assert answering.silent({b"one": 1}) == {b"one"}
    owners.now += 0.1
    owners.takes_s.extend([0.001, 9.0])
    assert answering.silent({b"one": 1, b"other": 2}) == {b"one"}


def test_many_that_are_silent_hold_up_the_others_for_a_moment(owners: Owners, answering: Answering) -> None:
    """A node that can't be reached, say, with a hundred owners."""
    owners.takes_s.extend([9.0] * 100)
    begun = owners.now
    names = {number.to_bytes(4, "big"): number for number in range(101)}
    while len(found := answering.silent(names)) > 100:
        assert owners.asked < 105
    assert (100).to_bytes(4, "big") not in found
    assert owners.now - begun < 2


def test_many_that_are_slow_are_not_all_asked_at_once(owners: Owners, answering: Answering) -> None:
    """On a machine that is very busy, say. Who wasn't asked is asked the next time."""
    owners.takes_s.extend([0.19] * 200)
    begun = owners.now
    answering.silent({number.to_bytes(4, "big"): number for number in range(100)})
    assert owners.now - begun < 1.5


def test_who_cannot_be_asked_has_not_answered(
    owners: Owners, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its object is being touched, say: Ray doesn't know the owner then. It is asked again at once."""

    def fail(sample: Any, timeout_s: float) -> bool:
        raise ValueError("no owner")

    with monkeypatch.context() as patch:
        patch.setattr(answering, "_owner_answers", fail)
        assert answering.silent({b"one": 1}) == {b"one"}
    assert answering.silent({b"one": 1}) == set()


def test_of_many_that_are_silent_it_remembers_some(owners: Owners, answering: Answering) -> None:
    for number in range(2_500):
        owners.takes_s.append(9.0)
        assert answering.silent({number.to_bytes(4, "big"): number})
        assert len(answering._silent) <= 1_000
