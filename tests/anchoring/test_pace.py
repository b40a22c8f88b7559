"""When readers wait because a shard is behind with its anchoring: with a clock of its own, and no Ray."""

from __future__ import annotations

import pytest

from safe_refs.anchoring.pace import Pace


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def pace(clock: list[float]) -> Pace:
    return Pace(lambda: clock[0])


def test_a_few_never_wait(pace: Pace) -> None:
    """However slow the shard is."""
    assert not pace.is_behind(256, 10.0)


def test_more_than_a_quarter_of_a_second_waits(pace: Pace, clock: list[float]) -> None:
    """By the rate of the last full rounds, however they end one after the other: 256 in 50 ms are 5,000 a second."""
    for number in range(100):
        clock[0] += 0.001 if number % 2 else 0.099
        pace.anchored(256)
    assert not pace.is_behind(1_150, 0.3)
    assert pace.is_behind(1_350, 0.3)
    assert pace.is_behind(1_150, 0.6), "one waits for longer than it should: it has become slower"
    for _ in range(50):
        clock[0] += 0.4
        pace.anchored(256)
    assert pace.is_behind(300, 0.0)


def test_small_rounds_say_nothing_of_the_rate(pace: Pace, clock: list[float]) -> None:
    """There was no more to anchor; nor does the first after a pause."""
    for _ in range(50):
        clock[0] += 0.2
        pace.anchored(1)
    for _ in range(50):
        clock[0] += 30
        pace.anchored(256)
    assert not pace.is_behind(450, 0.0)
    assert pace.is_behind(550, 0.0)


def test_nobody_waits_for_what_does_not_go_on(pace: Pace, clock: list[float]) -> None:
    """No relay can be had: after 3 s readers get references all the same. When it goes on, they wait again."""
    assert pace.is_behind(10_000, 0.0)
    clock[0] += 2.9
    assert pace.is_behind(10_000, 2.9)
    clock[0] += 0.2
    assert not pace.is_behind(10_000, 3.1)
    pace.anchored(256)
    assert pace.is_behind(10_000, 3.1)
    clock[0] += 3.1
    assert not pace.is_behind(10_000, 6.2)
    assert not pace.is_behind(10, 6.2)
    assert pace.is_behind(10_000, 6.2), "it is behind anew"
