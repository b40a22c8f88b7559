"""The rules of leases, without Ray: what begins, ends and is told about them. The clock is the test's."""

from __future__ import annotations

import pytest

from safe_refs.config import Limits
from safe_refs.errors import (
    LeaseExpiredError,
    LeaseLostError,
    LeaseNotFoundError,
    LeaseRejectedError,
    LeaseReleasedError,
    LeaseUsedUpError,
    OwnerGoneError,
    RegistryFullError,
)
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.listing import page
from safe_refs.registry.records import Identity, Query, Renewal, Terms
from tests.support.rules import ME, STARTED, A, B, C, Clock, make_table, pin, resolve


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> LeaseTable[str]:
    return make_table(clock)


def test_a_lease_gives_what_it_holds_until_it_is_released(table: LeaseTable[str]) -> None:
    """All of it, or one slot; after the release, an error that names who and when."""
    pin(table, A, "x", "y")
    assert resolve(table, A) == ("x", "y")
    assert resolve(table, A, 1) == ("y",)
    assert table.release(A, ME) == 1
    with pytest.raises(LeaseReleasedError, match=r"01010101.*pid 4711.*app\.py:12") as caught:
        resolve(table, A)
    assert caught.value.ended_at == 1000.0 + 1e9
    assert caught.value.lease == "01010101"


def test_releasing_twice_is_nothing(table: LeaseTable[str]) -> None:
    """The second release ends nothing and raises nothing."""
    pin(table, A, "x")
    assert [table.release(A, ME) for _ in range(3)] == [1, 0, 0]
    assert table.stats().released == 1


def test_pinning_twice_is_once(table: LeaseTable[str]) -> None:
    """A pin that is repeated, because an answer was lost, changes nothing."""
    pin(table, A, "x")
    pin(table, A, "x")
    assert table.stats().live_references == 1
    assert table.release(A, ME) == 1
    assert table.stats().live_leases == 0


def test_a_pin_that_comes_after_its_release_is_refused(table: LeaseTable[str]) -> None:
    """A release that overtakes its pin wins: nothing is held, however late the pin is."""
    assert table.release(A, ME) == 0
    with pytest.raises(LeaseReleasedError):
        pin(table, A, "x")
    assert table.stats().live_leases == 0


def test_ttl_counts_by_the_clock_passed_in(table: LeaseTable[str], clock: Clock) -> None:
    """A lease lives until its ttl is over, to the tick, whether or not anybody swept."""
    pin(table, A, "x", ttl=10.0)
    assert table.next_deadline_in_s() == 10
    clock.now += 9.999
    assert resolve(table, A) == ("x",)
    clock.now += 0.001
    with pytest.raises(LeaseExpiredError, match=r"ttl of 10\.0 s") as caught:
        resolve(table, A)
    assert caught.value.ttl_s == 10
    assert table.stats().expired == 1


def test_expire_ends_what_is_over_and_nothing_else(table: LeaseTable[str], clock: Clock) -> None:
    """The time thread's step: ends leases at their deadline, and leaves the others."""
    pin(table, A, "x", ttl=5.0)
    pin(table, B, "y", ttl=7.0)
    pin(table, C, "z")
    assert table.expire() == 0
    clock.now += 5
    assert table.expire() == 1
    assert table.next_deadline_in_s() == 2
    assert resolve(table, B) == ("y",)
    assert resolve(table, C) == ("z",)
    with pytest.raises(LeaseExpiredError):
        resolve(table, A)


@pytest.mark.parametrize(("ttl", "alive"), [(100.0, True), (1.0, False)])
def test_renew_lengthens_and_shortens(table: LeaseTable[str], clock: Clock, ttl: float, alive: bool) -> None:
    """After `renew` only the new time counts, even where the old one was longer or shorter."""
    pin(table, A, "x", ttl=10.0)
    clock.now += 5
    table.renew(A, STARTED, ttl)
    clock.now += 6
    table.expire()
    assert (table.stats().live_leases == 1) is alive


@pytest.mark.parametrize(("ttl", "left"), [(100.0, 100.0), (6.0, 6.0), (5.0, 5.0), (1.0, 5.0)])
def test_a_keepalives_renewal_only_lengthens(table: LeaseTable[str], clock: Clock, ttl: float, left: float) -> None:
    """It gives a lease time, or nothing; the ttl in its terms stays, and a lease without a limit has none afterwards."""
    pin(table, A, "x", ttl=10.0)
    pin(table, B, "y")
    clock.now += 5
    for lease in (A, B):
        table.renew(lease, STARTED, ttl, lengthens=True)
    assert table.expires_in_s(A, STARTED) == left
    assert (table.live[A].terms.ttl, table.live[A].renewals) == (10.0, int(ttl > 5))
    assert (table.expires_in_s(B, STARTED), table.live[B].renewals) == (None, 0)
    clock.now += left
    assert table.expire() == 1


def test_other_holders_go_by_what_the_first_one_has_decided(table: LeaseTable[str], clock: Clock) -> None:
    """A renewal that one of them has missed is made up for, also by a keepalive's; an older one changes nothing."""
    pin(table, A, "x", ttl=10.0)
    decided = Renewal(2, 5.0, 30.0)  # after a first renewal, to 5 s, that this one has not got yet
    assert table.renew(A, STARTED, 30.0, decided, lengthens=True) == decided
    assert table.renew(A, STARTED, 5.0, Renewal(1, 5.0, 5.0)).number == 1
    assert (table.expires_in_s(A, STARTED), table.live[A].terms.ttl) == (30.0, 5.0)


def test_renew_of_an_ended_lease_says_how_it_ended(table: LeaseTable[str], clock: Clock) -> None:
    """A renewal that comes too late fails with the lease's end, and brings nothing back."""
    pin(table, A, "x", ttl=1.0)
    clock.now += 2
    with pytest.raises(LeaseExpiredError):
        table.renew(A, STARTED, 10.0)
    assert table.stats().live_leases == 0


def test_uses_count_down(table: LeaseTable[str]) -> None:
    """`uses=2` allows two loads; the third says so."""
    pin(table, A, "x", "y", uses=2)
    assert resolve(table, A) == ("x", "y")
    assert resolve(table, A, 0) == ("x",)
    with pytest.raises(LeaseUsedUpError, match="2 use") as caught:
        resolve(table, A)
    assert caught.value.uses == 2
    assert table.stats().used_up == 1


def test_take_ends_the_lease_as_it_resolves(table: LeaseTable[str]) -> None:
    """Who takes gets the items, and nobody after."""
    pin(table, A, "x")
    assert resolve(table, A, take=True) == ("x",)
    with pytest.raises(LeaseReleasedError, match="took it"):
        resolve(table, A)


def test_unknown_leases_are_lost_or_not_found_by_their_epoch(table: LeaseTable[str]) -> None:
    """An unknown lease of this start of the registry was never here; one of another start was lost with it."""
    with pytest.raises(LeaseNotFoundError):
        table.resolve(A, STARTED, slot=None, take=False, origin=ME)
    with pytest.raises(LeaseLostError, match=r"generation 2 of .*generation 3 runs now") as caught:
        table.resolve(A, Identity(b"epoch..0", 2), slot=None, take=False, origin=ME)
    assert (caught.value.generation, caught.value.current_generation) == (2, 3)


def test_a_lease_of_a_later_start_never_came(table: LeaseTable[str]) -> None:
    """Another shard has crashed, and a maker that doesn't wait has heard of that: it is no start of this one that has ended."""
    for generation in (4, 7):
        with pytest.raises(LeaseNotFoundError):
            table.resolve(A, Identity(b"epoch..9", generation), slot=None, take=False, origin=ME)


def test_a_slot_that_is_not_there_is_refused(table: LeaseTable[str]) -> None:
    """A forged handle with a slot beyond the lease's gets no other item, and spends no use."""
    pin(table, A, "x", uses=1)
    with pytest.raises(LeaseNotFoundError, match="slot 1"):
        resolve(table, A, 1)
    assert resolve(table, A) == ("x",)


def test_limits_refuse_before_anything_is_held(clock: Clock) -> None:
    """Past a limit a pin is refused with the figures and what uses most, and room made is room to use."""
    table = make_table(clock, Limits(max_leases=2, max_references=5))
    pin(table, A, "1", "2", label="big")
    pin(table, B, "3")
    with pytest.raises(RegistryFullError, match=r"max_leases is 2, 2 are in use and 1 more") as caught:
        pin(table, C, "4")
    assert dict(caught.value.largest) == {"big": 1, "app.py:12 in main": 1}
    table.release(B, ME)
    with pytest.raises(RegistryFullError) as caught:
        pin(table, C, *"4567")
    assert (caught.value.limit, caught.value.allowed, caught.value.used, caught.value.asked) == (
        "max_references",
        5,
        2,
        4,
    )
    assert caught.value.largest == (("big", 2),)
    pin(table, C, *"456")
    assert table.stats().live_references == 5


def test_tombstones_are_bounded(clock: Clock) -> None:
    """Only so many ends are remembered, the latest ones; older leases are then simply not found."""
    table = make_table(clock, Limits(max_tombstones=2))
    for lease in (A, B, C):
        pin(table, lease, "x")
        table.release(lease, ME)
    assert table.stats().tombstones == 2
    with pytest.raises(LeaseNotFoundError):
        resolve(table, A)
    with pytest.raises(LeaseReleasedError):
        resolve(table, B)


def test_leases_end_when_their_last_owner_dies(table: LeaseTable[str]) -> None:
    """A lease whose every owner is dead ends; one that still holds something of a living owner stays."""
    pin(table, A, "x", owner=b"one")
    table.pin(B, ["y", "z"], [b"one", b"two"], Terms(), ME)
    assert [(owner, table.sample(owner)) for owner in table.owners.living()] == [(b"one", "x"), (b"two", "z")]
    assert table.bury(b"one") == 1
    with pytest.raises(OwnerGoneError, match="died with the process"):
        resolve(table, A)
    assert resolve(table, B) == ("y", "z")
    assert table.owners.living() == [b"two"]
    assert table.bury(b"two") == 1
    assert table.bury(b"two") == 0
    assert table.owners.living() == []
    assert table.stats().owner_gone == 2


def test_end_all_releases_everything(table: LeaseTable[str]) -> None:
    """A registry that is shut down says so of each of its leases."""
    pin(table, A, "x")
    pin(table, B, "y")
    assert table.end_all(ME) == 2
    assert list(table.items()) == []
    with pytest.raises(LeaseReleasedError, match="shut the registry down"):
        resolve(table, B)


def test_a_listing_shows_terms_and_origin_but_nothing_that_resolves(table: LeaseTable[str], clock: Clock) -> None:
    """`leases()` shows age, expiry, uses, label and who made it, with a short id only."""
    pin(table, A, "x", "y", ttl=10.0, uses=3, label="train")
    pin(table, B, "z")
    clock.now += 4
    resolve(table, A)
    found = page(table, Query())
    info, items = found.infos[0], found.items[0]
    assert items == ("x", "y")
    assert (info.short_id, info.label, info.age_s, info.expires_in_s) == ("01010101", "train", 4, 6)
    assert (info.uses_left, info.references, info.pid, info.source) == (2, 2, 4711, "app.py:12 in main")
    assert A.hex() not in repr(info)
    assert [row.short_id for row in page(table, Query(label="train")).infos] == ["01010101"]


def test_bytes_are_counted_once_for_all_and_once_for_each_job(clock: Clock) -> None:
    """An object in several leases weighs once; two jobs that hold it are each charged; what is released is free again."""
    table = make_table(clock, Limits(max_bytes=100, max_bytes_per_job=60))
    other = ME._replace(job="02000000")
    table.usage.learn({"big": 50, "small": 10, "mid": 40})
    pin(table, A, "big")
    pin(table, B, "big", "small")
    assert table.usage.known_bytes == 60
    with pytest.raises(RegistryFullError, match="max_bytes_per_job is 60, 60 are in use and 40 more"):
        pin(table, C, "mid")
    table.usage.learn({"mid": 40})  # a refusal forgets what it weighed for nothing
    table.pin(C, ["mid"], [b"o"], Terms(), other)
    assert table.usage.known_bytes == 100
    table.usage.learn({"more": 5})
    with pytest.raises(RegistryFullError, match="max_bytes is 100"):
        table.pin(b"d" * 16, ["more"], [b"o"], Terms(), other)
    assert table.release(B, ME) == 1
    assert table.usage.known_bytes == 90
    table.release(A, ME)
    table.release(C, ME)
    assert (table.usage.known_bytes, table.usage.leases, table.usage.references) == (0, 0, 0)


def test_a_refused_or_repeated_pin_leaves_no_sizes_behind(clock: Clock) -> None:
    """What is weighed for a pin that its release has overtaken, or for one that holds copies by now, is not kept."""
    table = make_table(clock, Limits(max_bytes=100))
    table.release(A, ME)
    table.usage.learn({"overtaken": 5})
    with pytest.raises(LeaseReleasedError):
        pin(table, A, "overtaken")
    table.usage.learn({"copy": 5})
    pin(table, B, "copy")
    table.usage.learn({"original": 5})
    pin(table, B, "original")
    assert table.release(B, ME) == 1
    assert table.usage.unweighed() == []
    assert not table.usage._sizes


def test_limits_in_bytes_can_begin_and_end_while_leases_live(clock: Clock) -> None:
    """Switched on, they count what is held already, once it is weighed; switched off, nothing is kept for them."""
    table = make_table(clock)
    pin(table, A, "x", "y")
    assert table.usage.unweighed() == []
    table.set_limits(Limits(max_bytes=10))
    assert sorted(table.usage.unweighed()) == ["x", "y"]
    table.usage.learn({"x": 4, "y": 5})
    assert (table.usage.known_bytes, table.usage.unweighed()) == (9, [])
    table.set_limits(Limits())
    assert table.usage.known_bytes == 0
    assert table.release(A, ME) == 1


def test_an_end_is_reported_as_such_in_a_later_epoch_too(table: LeaseTable[str]) -> None:
    """A reader who hears "lost" goes on to the other replica, which may not have heard of the end."""
    pin(table, A, "x")
    table.release(A, ME)
    table.identity = Identity(b"epoch..2", 4)
    with pytest.raises(LeaseReleasedError):
        resolve(table, A)
    with pytest.raises(LeaseLostError):
        resolve(table, B)


@pytest.mark.parametrize("is_held", [True, False], ids=["held late", "never held"])
def test_a_lease_whose_pin_has_failed_says_why(table: LeaseTable[str], is_held: bool) -> None:
    """Its maker has passed it on and then given it up: a reader hears that, in a later epoch too; a later release says no other."""
    if is_held:
        pin(table, A, "x")
    assert table.release(A, ME, "the registry is full") == int(is_held)
    with pytest.raises(LeaseRejectedError):
        pin(table, A, "x")
    assert table.release(A, ME) == 0
    table.identity = Identity(b"epoch..2", 4)
    with pytest.raises(LeaseRejectedError, match="the registry is full") as caught:
        resolve(table, A)
    assert caught.value.reason == "the registry is full"
    assert table.stats().released == int(is_held)
