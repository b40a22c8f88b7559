"""How an actor sees that it is to end: how often it asks, and that no end goes unseen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safe_refs.anchoring.delaying import DELAY_S, LOOKS_S, Watch


class Calls:
    """Open calls, by when they end; `fails` is how many can't be opened."""

    def __init__(self, clock: Callable[[], float], fails: int = 0) -> None:
        self.clock = clock
        self.fails = fails
        self.ends: list[float] = []

    def open(self, seconds: float) -> bool:
        if self.fails:
            self.fails -= 1
            return False
        self.ends.append(self.clock() + seconds)
        return True

    def close(self) -> None:
        self.ends.clear()


class Actor:
    """An actor that is marked dead at a moment; a look-up takes some time of its own."""

    def __init__(self, dies_at: float = float("inf"), look_up_s: float = 0.0) -> None:
        self.now = 100.0
        self.dies_at = dies_at
        self.look_up_s = look_up_s
        self.look_ups: list[float] = []

    def is_marked_dead(self) -> bool:
        self.look_ups.append(self.now)
        found = self.now >= self.dies_at
        self.now += self.look_up_s
        return found


def test_the_control_store_is_asked_once_a_second_at_most() -> None:
    """It is the one of the whole cluster, and a thousand actors may look."""
    actor = Actor()
    watch = Watch(lambda: False, actor.is_marked_dead, Calls(lambda: actor.now))
    for _ in range(600):
        assert not watch.tick(actor.now)
        actor.now += LOOKS_S
    assert 55 <= len(actor.look_ups) <= 61
    assert min(later - sooner for sooner, later in zip(actor.look_ups, actor.look_ups[1:], strict=False)) > 0.999


@pytest.mark.parametrize("dies_at", [100 + 0.07 * number for number in range(60)])
@pytest.mark.parametrize("look_up_s", [0.001, 0.3])
def test_an_end_is_seen_before_the_last_call_is_answered(dies_at: float, look_up_s: float) -> None:
    """Ray lets the actor end when its calls are answered: those that were open at its death hold it until the look-up."""
    actor = Actor(dies_at, look_up_s)
    calls = Calls(lambda: actor.now)
    watch = Watch(lambda: False, actor.is_marked_dead, calls)
    watch.begin(actor.now)
    while not watch.tick(actor.now):
        actor.now += LOOKS_S
    ends = max(end for end in calls.ends if end - DELAY_S <= dies_at)
    assert dies_at <= actor.now < ends
    assert actor.now - dies_at < 1 + LOOKS_S + 2 * look_up_s
    assert max(calls.ends) - dies_at <= DELAY_S + 1.5
    watch.end()
    assert calls.ends == []


def test_exit_actor_is_seen_without_asking_anybody() -> None:
    """At the next look, whenever the last look-up was."""
    actor = Actor()
    called = [False]
    watch = Watch(lambda: called[0], actor.is_marked_dead, Calls(lambda: actor.now))
    assert not watch.tick(actor.now)
    called[0] = True
    actor.now += LOOKS_S
    asked = len(actor.look_ups)
    assert watch.tick(actor.now)
    assert len(actor.look_ups) == asked


def test_a_call_that_could_not_be_opened_is_tried_again() -> None:
    """The exit delay may just be starting."""
    actor = Actor()
    calls = Calls(lambda: actor.now, fails=3)
    watch = Watch(lambda: False, actor.is_marked_dead, calls)
    watch.begin(actor.now)
    while not calls.ends:
        actor.now += LOOKS_S
        watch.tick(actor.now)
    assert actor.now - 100 < 1.5
