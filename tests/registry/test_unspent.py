"""A use that is given back: what the rules make of it, on one table."""

from __future__ import annotations

import pytest

from safe_refs.errors import (
    LeaseExpiredError,
    LeaseNotFoundError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
)
from safe_refs.registry import tombstones, unspent
from safe_refs.registry.lease import MOST_RETURNED
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.listing import page
from safe_refs.registry.records import Query
from safe_refs.registry.wire import GiveBackRow
from tests.support.rules import ME, STARTED, A, B, Clock, make_table, pin


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> LeaseTable[str]:
    return make_table(clock)


def use(table: LeaseTable[str], name: bytes, *, take: bool = False, lease: bytes = A) -> tuple[str, ...]:
    return table.resolve(lease, STARTED, slot=None, take=take, origin=ME, use=name)


def back(
    table: LeaseTable[str], name: bytes, *items: str, take: bool = False, lease: bytes = A, owner: bytes = b"o"
) -> bool | None:
    row = GiveBackRow(lease, name, take, len(items), ME, b"")
    return unspent.give_back(table, row, items, [owner] * len(items))


def test_a_use_that_is_given_back_can_be_had_again(table: LeaseTable[str]) -> None:
    """While the lease lives: it counts one less."""
    pin(table, A, "x", uses=2)
    use(table, b"one")
    assert table.live[A].uses_left == 1
    assert back(table, b"one", "x") is False
    assert table.live[A].uses_left == 2
    assert [use(table, name) for name in (b"two", b"three")] == [("x",)] * 2
    with pytest.raises(LeaseUsedUpError):
        use(table, b"four")


@pytest.mark.parametrize("take", [False, True])
def test_a_lease_that_a_use_has_ended_lives_again(table: LeaseTable[str], clock: Clock, take: bool) -> None:
    """As it was: with its terms, its age, its maker, and its time; it holds what the reader hands back."""
    pin(table, A, "x", "y", uses=None if take else 1, ttl=60.0, label="mine")
    pin(table, B, "z")
    clock.now += 5
    use(table, b"one", take=take)
    assert list(table.items()) == ["z"]
    assert back(table, b"one", "x again", "y again", take=take) is True
    assert table.items_of(A) == ("x again", "y again")
    held = table.live[A]
    assert (held.terms.label, held.origin, held.since) == ("mine", ME, 1000.0)
    assert table.expires_in_s(A, STARTED) == 55.0
    assert [info.references for info in page(table, Query()).infos] == [
        1,
        2,
    ]  # it stands where it can be found by pages
    figures = table.stats()
    assert (figures.pinned, figures.live_leases, figures.live_references) == (2, 2, 3)
    assert (figures.released, figures.used_up, figures.tombstones) == (0, 0, 0)
    assert use(table, b"two", take=take) == ("x again", "y again")
    assert table.stats().live_leases == 1


def test_any_of_the_uses_lets_it_live_again(table: LeaseTable[str]) -> None:
    """Who was slow to fail, while another got the last use, has given back all the same."""
    pin(table, A, "x", uses=2)
    use(table, b"slow")
    use(table, b"last")
    assert back(table, b"slow", "x") is True
    assert table.live[A].uses_left == 1
    use(table, b"another")
    with pytest.raises(LeaseUsedUpError):
        use(table, b"too many")


def test_it_ends_as_expired_if_its_time_is_over_meanwhile(table: LeaseTable[str], clock: Clock) -> None:
    """Nothing is held then."""
    pin(table, A, "x", uses=1, ttl=10.0)
    use(table, b"one")
    clock.now += 10
    assert back(table, b"one", "x") is False
    with pytest.raises(LeaseExpiredError):
        use(table, b"two")
    assert not list(table.items())
    assert (table.stats().expired, table.stats().used_up) == (1, 0)


def test_another_end_stays(table: LeaseTable[str], clock: Clock) -> None:
    """Somebody released it meanwhile, another took it, its owners died, or nobody knows it: nothing happens."""
    pin(table, A, "x", uses=1)
    use(table, b"one")
    assert table.release(A, ME) == 0
    assert back(table, b"one", "x") is None
    with pytest.raises(LeaseUsedUpError):
        use(table, b"two")
    pin(table, B, "y", uses=3)
    use(table, b"one", lease=B)
    use(table, b"taken", lease=B, take=True)
    assert back(table, b"one", "y", lease=B) is False
    with pytest.raises(LeaseReleasedError):
        use(table, b"two", lease=B)
    assert back(table, b"taken", "y", lease=B, take=True) is True
    assert table.live[B].uses_left == 3, "the other one counts no more, either"
    table.bury(b"o")
    assert back(table, b"one", "y", lease=B) is None
    with pytest.raises(OwnerGoneError):
        use(table, b"two", lease=B)
    assert back(table, b"one", "z", lease=b"nobody's") is None


def test_calls_may_come_twice_and_late(table: LeaseTable[str]) -> None:
    """A use is given back once. Its own call, if it comes once more, or only now, gets nothing and counts nothing."""
    pin(table, A, "x", uses=1)
    use(table, b"one")
    assert back(table, b"one", "x") is True
    assert back(table, b"one", "x") is None
    with pytest.raises(LeaseNotFoundError):
        use(table, b"one")
    use(table, b"two")
    assert back(table, b"one", "x") is None
    with pytest.raises(LeaseUsedUpError):
        use(table, b"three")


def test_what_is_handed_back_has_to_be_all_of_it(table: LeaseTable[str]) -> None:
    """A handle resolves one of several references: a lease can't live again on that."""
    pin(table, A, "x", "y", uses=1)
    use(table, b"one")
    assert back(table, b"one", "x") is False
    with pytest.raises(LeaseUsedUpError):
        use(table, b"two")


def test_where_uses_do_not_count_nothing_is_noted(table: LeaseTable[str]) -> None:
    """A handle doesn't know whether they do, and gives back whatever it could not get."""
    pin(table, A, "x")
    use(table, b"one")
    assert back(table, b"one", "x") is None
    assert not table.live[A].returned


def test_a_lease_takes_back_so_many_uses(table: LeaseTable[str]) -> None:
    """Then a use that fails is spent, so that what is kept of a lease is bounded."""
    pin(table, A, "x", uses=1)
    for number in range(MOST_RETURNED):
        name = number.to_bytes(8, "big")
        use(table, name)
        assert back(table, name, "x") is True
    use(table, b"the last")
    assert back(table, b"the last", "x") is None
    with pytest.raises(LeaseUsedUpError):
        use(table, b"one more")


def test_what_is_kept_of_ended_leases_is_bounded(table: LeaseTable[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first: those ends are final. The tombstones stay."""
    monkeypatch.setattr(tombstones, "_MOST_REVOCABLE", 10)
    leases = [bytes([number]) * 16 for number in range(4)]
    for lease in leases:
        pin(table, lease, "x", uses=1)
        use(table, b"one", lease=lease)
    assert [table.tombstones.revocable(lease) is not None for lease in leases] == [False, False, True, True]
    assert back(table, b"one", "x", lease=leases[0]) is None
    assert back(table, b"one", "x", lease=leases[3]) is True
    assert len(table.tombstones) == 3
    table.tombstones.finish(leases[2])
    assert table.tombstones._weight == 0
