"""What a shard answers to a pin of several leases, without Ray."""

from __future__ import annotations

import pytest

from safe_refs._ray import workers
from safe_refs.config import Limits
from safe_refs.errors import RegistryFullError
from safe_refs.registry.records import Identity, Terms
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import PinCall, PinRow
from tests.support import stand_ins
from tests.support.rules import ME

HELD = Identity(b"epoch..1", 1)


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    """One that may hold three leases, and that has no part."""
    stand_ins.allow(monkeypatch)
    monkeypatch.setattr(workers, "owner_of", lambda ref: b"owner")
    return Shard("any", HELD, Limits(max_leases=3))


def pin(shard: Shard, *leases: bytes) -> object:
    rows = [PinRow(lease.ljust(16), 1, Terms(), ME, b"", {}) for lease in leases]
    return shard.pin(PinCall(0, rows), [f"object of {lease!r}" for lease in leases])  # type: ignore[misc] # it never looks into one


def test_the_identity_alone_says_that_all_are_held(shard: Shard) -> None:
    """Ray passes bytes quicker than a list. The same pin once more is answered as the first."""
    assert pin(shard, b"a", b"b") == pin(shard, b"a", b"b") == HELD.to_bytes()
    assert shard.table.stats().live_leases == 2


def test_where_one_is_refused_each_has_its_answer(shard: Shard) -> None:
    """So that the caller knows which."""
    pin(shard, b"a", b"b")
    answers = pin(shard, b"c", b"d")
    assert isinstance(answers, list)
    assert answers[0] == HELD.to_bytes()
    assert isinstance(answers[1], RegistryFullError)
    assert pin(shard) == []
    assert isinstance(pin(shard, b"d"), list)
