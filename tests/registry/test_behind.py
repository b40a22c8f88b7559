"""What a process does when a shard hands out nothing for a moment: with shards by hand, and no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from safe_refs.config import Deadline
from safe_refs.registry import behind, late
from safe_refs.registry.calls import Call, Registry
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import NotNow, ResolveCall, Silence

BEHIND, SILENT = NotNow.BEHIND, Silence.LATE
PATIENCE_S = 0.2


class Shards:
    """Answers as given, by shard one after the other; an exception is raised, and for a silent one it waits.

    Attributes:
        asked: the shards of each call.
    """

    def __init__(self, **answers: list[Any]) -> None:
        self._answers = {int(shard[1:]): theirs for shard, theirs in answers.items()}
        self.asked: list[list[int]] = []

    def ask(self, calls: Mapping[int, Any], deadline: Deadline, *, patience_s: float) -> dict[int, Any]:
        self.asked.append(list(calls))
        found = {shard: self._answers[shard].pop(0) for shard in calls}
        for error in found.values():
            if isinstance(error, BaseException):
                raise error
        if SILENT in found.values():
            time.sleep(deadline.left_s() if set(found.values()) == {SILENT} else min(patience_s, deadline.left_s()))
        return found


def ask(shards: Shards, calls: Callable[[], Mapping[int, Call[Any]]], timeout_s: float = 5.0) -> dict[int, Any]:
    return behind.ask(
        cast("Registry", shards), calls, Deadline(time.monotonic() + timeout_s, timeout_s), patience_s=PATIENCE_S
    )


def both() -> dict[int, Call[Any]]:
    return {shard: Call(Shard.resolve, ResolveCall(0, [], True)) for shard in (0, 1)}


def test_only_those_that_are_behind_are_asked_again() -> None:
    """What the other has granted is granted once."""
    shards = Shards(_0=["taken"], _1=[BEHIND, BEHIND, "taken"])
    assert ask(shards, both) == {0: "taken", 1: "taken"}
    assert shards.asked == [[0, 1], [1], [1]]


def test_one_that_falls_silent_is_waited_for_no_longer_than_when_all_are_asked() -> None:
    """The other has answered long ago."""
    begun = time.monotonic()
    assert ask(Shards(_0=["taken"], _1=[BEHIND, SILENT]), both) == {0: "taken", 1: SILENT}
    assert time.monotonic() - begun < PATIENCE_S + 1.0


def test_it_ends_in_time_and_insists_before() -> None:
    """From half of the time on the calls say so; a shard that knows no such thing, of another release, is behind to the end."""
    said: list[bool] = []

    def calls() -> dict[int, Call[Any]]:
        said.append(behind.insists(Deadline(until, 1.0)))
        return both()

    until = time.monotonic() + 1.0
    assert ask(Shards(_0=["taken"], _1=[BEHIND] * 50), calls, 1.0) == {0: "taken", 1: BEHIND}
    assert time.monotonic() < until + 0.5
    assert (said[0], said[-1]) == (False, True)
    assert said == sorted(said)
    assert not behind.insists(Deadline(time.monotonic() + 51.0, 60.0))
    assert behind.insists(Deadline(time.monotonic() + 49.0, 60.0))


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError("wrong")])
def test_an_error_of_the_second_call_costs_nothing(error: Exception) -> None:
    """Who was not answered asks alone, and learns why; an error of the first is everybody's."""
    assert ask(Shards(_0=["taken"], _1=[BEHIND, error]), both) == {0: "taken", 1: BEHIND}
    with pytest.raises(type(error)):
        ask(Shards(_0=["taken"], _1=[error]), both)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemError("Ray makes one of it")])
def test_a_signal_handlers_exception_ends_it(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """And whoever waits for a late answer gets what the other has granted."""
    came: list[dict[int, Any]] = []
    monkeypatch.setattr(late, "after", lambda *args: came.append(dict(args[3])))
    with pytest.raises(type(error)):
        ask(Shards(_0=["taken"], _1=[BEHIND, error]), both)
    assert came == [{0: "taken", 1: BEHIND}]
