"""What a process keeps for a second: it brings it to the registry once more, and lets go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from safe_refs.anchoring import keeping
from safe_refs.anchoring.keeping import TICKS, Keeping
from tests.support.waiting import wait_until


class Holders:
    """Writes down what was brought."""

    def __init__(self) -> None:
        self.brought: list[tuple[str, dict[bytes, Sequence[Any]]]] = []

    def bring(self, registry: str, refs: Mapping[bytes, Sequence[Any]]) -> None:
        self.brought.append((registry, dict(refs)))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Holders]:
    monkeypatch.setattr(keeping, "_TICK_S", 0.02)
    monkeypatch.setattr(keeping, "is_current", lambda session: True)
    holders = Holders()
    return Keeping(cast(Any, None), cast(Any, holders)), holders


def test_it_brings_what_it_has_kept_and_lets_go(kept: tuple[Any, Holders]) -> None:
    keeper, holders = kept
    begun = time.monotonic()
    keeper.keep("one", b"a", [1, 2])
    keeper.keep("one", b"b", [3])
    keeper.keep("other", b"c", [4])
    wait_until(lambda: not len(keeper), 10)
    assert time.monotonic() - begun >= (TICKS - 1) * 0.02
    everything = {lease: (registry, refs) for registry, each in holders.brought for lease, refs in each.items()}
    assert everything == {b"a": ("one", [1, 2]), b"b": ("one", [3]), b"c": ("other", [4])}


def test_nothing_is_dropped_while_counts_are_touched(
    kept: tuple[Any, Holders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last reference goes in a thread that has `still`, not where some variable of it ends."""
    keeper, holders = kept
    monkeypatch.setattr(holders, "bring", lambda registry, refs: None)
    had_still: list[bool] = []

    class Reference:
        def __del__(self) -> None:
            had_still.append(keeper.still._is_owned())

    keeper.keep("one", b"a", [Reference()])
    with keeper.still:
        time.sleep(3 * TICKS * 0.02)
        assert had_still == []
    keeper.keep("other", b"b", [Reference()])
    wait_until(lambda: len(had_still) == 2, 10)
    assert had_still == [True, True]


def test_what_is_closed_keeps_nothing_more(kept: tuple[Any, Holders]) -> None:
    """The connection is about to go: nothing is brought, and all is let go of at once."""
    keeper, holders = kept
    keeper.keep("one", b"a", [1])
    keeper.close()
    keeper.keep("one", b"b", [1])
    assert len(keeper) == 0
    time.sleep(2 * TICKS * 0.02)
    assert holders.brought == []
