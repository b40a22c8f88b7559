"""What is held until its owners answer: with owners and references of their own, and no Ray."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from safe_refs._ray import actors, workers
from safe_refs.anchoring import parting
from safe_refs.anchoring.answering import Answering
from safe_refs.anchoring.parting import Parting
from tests.anchoring import by_hand


@pytest.fixture
def silent() -> by_hand.Answering:
    return by_hand.Answering()


@pytest.fixture
def parted() -> list[Any]:
    return []


class Forgotten:
    """Writes down what was waited for."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []

    def __call__(self, owners: dict[bytes, bytes], timeout_s: float) -> None:
        self.ids += owners


@pytest.fixture
def forgotten() -> Forgotten:
    return Forgotten()


@pytest.fixture
def held(
    silent: by_hand.Answering, parted: list[Any], forgotten: Forgotten, monkeypatch: pytest.MonkeyPatch
) -> Parting:
    monkeypatch.setattr(workers, "owner_of", lambda ref: ref[:1].strip())
    monkeypatch.setattr(parting, "_STAYS_S", 0.02)
    monkeypatch.setattr(parting, "_AGAIN_S", 0.02)
    monkeypatch.setattr(actors, "id_of", lambda ref: ref)
    return Parting(threading.Lock(), threading.Lock(), cast(Answering, silent), parted.extend, forgotten)


def test_it_stays_for_a_moment_and_as_long_as_its_owner_is_silent(
    held: Parting, silent: by_hand.Answering, parted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not for ever."""
    assert held.next_in_s() is None
    held.add(cast(Any, [b"a1", b"b1"]))
    held.add(cast(Any, [b"b2", b" of nobody"]))
    held.let_go()
    assert (len(held), parted) == (2, [])
    assert sorted(cast(Any, held.items())) == [b" of nobody", b"a1", b"b1", b"b2"]
    silent.names = {b"a"}
    time.sleep(0.03)
    assert held.next_in_s() == 0
    held.let_go()
    assert (len(held), parted) == (1, [b"b2", b" of nobody"])
    monkeypatch.setattr(parting, "_LONGEST_S", 0.01)
    time.sleep(0.03)
    held.let_go()
    assert (len(held), parted) == (0, [b"b2", b" of nobody", b"a1", b"b1"])


def test_it_goes_while_nobody_touches_counts(held: Parting) -> None:
    """The last reference goes in a thread that has `using`, not where some variable of it ends."""
    had_using: list[bool] = []
    held._parted = lambda items: None

    class Reference:
        def __getitem__(self, _: Any) -> bytes:
            return b"a"

        def __del__(self) -> None:
            had_using.append(held._using.locked())

    held.add(cast(Any, [Reference()]))
    time.sleep(0.03)
    held.let_go()
    assert had_using == [True]


def test_of_too_many_the_oldest_go(
    held: Parting, silent: by_hand.Answering, parted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if their owner is silent."""
    monkeypatch.setattr(parting, "_MOST", 3)
    silent.names = {b"a"}
    for number in range(5):
        held.add(cast(Any, [f"a{number}".encode()]))
    assert held.references == 5
    held.let_go()
    assert (parted, held.references, len(held)) == ([b"a0", b"a1"], 3, 3)


def test_what_is_being_asked_about_is_still_here(
    held: Parting, silent: by_hand.Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For whoever has to know what the shard holds."""
    seen: list[Any] = []

    def look(samples: dict[bytes, Any]) -> set[bytes]:
        seen.extend(held.items())
        return set()

    monkeypatch.setattr(silent, "silent", look)
    held.add(cast(Any, [b"a1"]))
    time.sleep(0.03)
    held.let_go()
    assert seen == [b"a1"]
    assert (len(held), held.references) == (0, 0)


def test_many_go_in_no_time(held: Parting, parted: list[Any]) -> None:
    """Each with one look, also if no lease is left."""
    for number in range(20_000):
        held.add(cast(Any, [number.to_bytes(4, "big")]))
    time.sleep(0.03)
    with by_hand.within(2):
        held.let_go(within_s=10)
    assert (len(held), len(parted)) == (0, 20_000)


def test_the_end_of_the_shard_lets_go_of_all(
    held: Parting, silent: by_hand.Answering, parted: list[Any], forgotten: Forgotten
) -> None:
    """Of what answering owners own as ever, and of the rest when its time is over. It waits until Ray has forgotten it."""
    silent.names = {b"a"}
    held.add(cast(Any, [b"a1"]))
    held.add(cast(Any, [b"b1", b" of nobody"]))
    with by_hand.within(0.5):
        held.close(0.2)
    assert (len(held), held.next_in_s()) == (0, None)
    assert parted == [b"b1", b" of nobody"]
    assert sorted(forgotten.ids) == [b"a1", b"b1"]
    assert silent.hurried > 0
    with by_hand.within(0.1):
        held.close(10.0)
