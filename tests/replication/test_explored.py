"""Replication, explored whole: two shards, two leases, three clients, and whatever may go wrong between them, in every order.

See `explore` for the model and the properties. Each scope is searched to its end, and says how many states it has; the floors are
there so that a change can't make it smaller unnoticed. `make test` explores the quick scopes, `make test-long` the small ones, and
`make test-deep` the large ones.
Planted bugs show that the search would find them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from safe_refs.errors import SafeRefsError
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Origin
from safe_refs.registry.wire import NotNow, Silence
from safe_refs.replication.merging import Inquiry, Pinning
from safe_refs.replication.records import Record, Records
from safe_refs.replication.rules import Rules
from tests.replication.explore import NOT_FOUND, Explorer, Scope, ViolationError, explore

# Programs: a client's steps, and of each the choices. X may be used any number of times, Y once (or as the scope says).
PIN_X, PIN_Y = (("pin", 0),), (("pin", 1),)
RELEASE, RESOLVE, RENEW, EARLY = (("release", 0),), (("resolve", 0),), (("renew", 0),), (("early", 0),)
LENGTHEN = (("lengthen", 0),)
USE, TAKE, EARLY_TAKE = (("use", 1),), (("take", 1),), (("early take", 1),)
BACK, TAKE_BACK, END = (("back", 1),), (("back take", 1),), (("release", 1),)

PINS = ((PIN_X,), (RELEASE,), (RESOLVE,))
USES = ((PIN_Y,), (TAKE,), (USE,))
TAKES = ((PIN_Y,), (TAKE,), (TAKE,))
ONE_USE = ((PIN_Y,), (USE,), ())
TWO_RENEWALS = ((PIN_X,), (RENEW,), (RENEW,))
RENEWALS = ((PIN_X,), (RENEW,), (RENEW + RELEASE,))
KEEPALIVE = ((PIN_X,), (RENEW, RENEW), (LENGTHEN,))
TWO_USES = ((PIN_Y,), (USE,), (USE + TAKE,))
THREE_USES = ((PIN_Y,), (USE, USE), (USE,))
BOTH_LEASES = ((PIN_X,), (PIN_Y,), (RELEASE + TAKE,))
EVERYTHING = ((PIN_X, PIN_Y), (RELEASE + TAKE,), (RESOLVE + USE,))
EARLY_READS = ((PIN_X,), (RELEASE,), (EARLY,))
EARLY_TAKES = ((PIN_Y,), (TAKE,), (EARLY_TAKE,))
GIVEN_BACK = ((PIN_Y,), (USE, BACK), (USE,))
TAKEN_BACK = ((PIN_Y,), (TAKE, TAKE_BACK), (TAKE,))
BACK_AND_RELEASED = ((PIN_Y,), (TAKE, TAKE_BACK), (END,))
BACK_OF_TWO = ((PIN_Y,), (USE, BACK), (USE + TAKE,))
AGAIN = ((PIN_Y,), (USE, BACK, USE), (USE,))

QUICK = {
    "renewals; a crash": (Scope(RENEWALS, deaths=0), 56_000),
    "a use; two crashes": (Scope(ONE_USE, crashes=2, deaths=0), 11_500),
    "a use; a crash, two late answers": (Scope(ONE_USE, deaths=0, lates=2), 13_500),
    "early readers; a client's death, a late answer": (Scope(EARLY_READS, crashes=0, lates=1), 2_150),
    "early takes; a client's death, a late answer": (Scope(EARLY_TAKES, crashes=0, lates=1), 5_000),
    "resolves of what depends on a process; its death": (Scope(PINS, crashes=0, borrowed=True), 26_000),
    "uses of what depends on a process; its death": (Scope(USES, crashes=0, borrowed=True), 31_000),
    "a use given back; a double": (Scope(GIVEN_BACK, crashes=0, deaths=0, doubles=1), 9_200),
    "a use given back; a late answer": (Scope(GIVEN_BACK, crashes=0, deaths=0, lates=1), 6_000),
    "a take given back; a crash": (Scope(TAKEN_BACK, deaths=0), 44_000),
}

SMALL = {
    "pins and releases; a crash, a client's death, a double": (Scope(PINS, doubles=1), 285_000),
    "uses and takes; a crash, a client's death, a double": (Scope(USES, doubles=1), 450_000),
    "two uses; a crash, a double": (Scope(TWO_USES, deaths=0, doubles=1, uses=(None, 2)), 380_000),
    "both leases; a crash": (Scope(BOTH_LEASES, deaths=0), 74_000),
    "uses and takes; two crashes": (Scope(USES, crashes=2, deaths=0), 355_000),
    "early readers; a crash": (Scope(EARLY_READS, deaths=0), 37_500),
    "resolves of what depends on a process; its death, a late answer": (
        Scope(PINS, crashes=0, lates=1, borrowed=True),
        42_000,
    ),
    "uses of what depends on a process; its death, a late answer": (
        Scope(USES, crashes=0, lates=1, borrowed=True),
        65_000,
    ),
    "renewals, also of a keepalive; a crash": (Scope(KEEPALIVE, deaths=0), 94_000),
    "pins and releases; a crash, a late answer": (Scope(PINS, deaths=0, lates=1), 51_500),
    "uses and takes; a crash, a late answer": (Scope(USES, deaths=0, lates=1), 83_000),
    "a use given back; a crash": (Scope(GIVEN_BACK, deaths=0), 84_000),
    "a take given back, and a release; a crash": (Scope(BACK_AND_RELEASED, deaths=0), 126_000),
    "one of two uses given back; a crash": (Scope(BACK_OF_TWO, deaths=0, uses=(None, 2)), 198_000),
    "a use given back and had again; a crash": (Scope(AGAIN, deaths=0), 480_000),
}

LARGE = {
    "everything; a crash": (Scope(EVERYTHING, deaths=0), 604_000),
    "renewals; a crash, a client's death, a double": (Scope(RENEWALS, doubles=1), 1_215_000),
    "pins and releases; two crashes": (Scope(PINS, crashes=2, deaths=0, both=True), 1_240_000),
    "uses and takes; two crashes": (Scope(USES, crashes=2, deaths=0, both=True), 990_000),
    "three uses; two crashes": (Scope(THREE_USES, crashes=2, deaths=0, uses=(None, 2)), 1_430_000),
    "a use given back; two crashes": (Scope(GIVEN_BACK, crashes=2, deaths=0), 1_090_000),
    "a use given back; a crash, a client's death, a double": (Scope(GIVEN_BACK, doubles=1), 2_200_000),
    "a take given back; a crash, a client's death, a double": (Scope(TAKEN_BACK, doubles=1), 1_340_000),
    "a take given back, and a release; a crash, a double": (Scope(BACK_AND_RELEASED, deaths=0, doubles=1), 1_100_000),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_every_state_of_a_quick_scope_is_sound(name: str) -> None:
    """No early end, no resurrection, at most once, nothing "not found" in recovery; no leak and one opinion once all is quiet."""
    explore(name, *QUICK[name])


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SMALL)
def test_every_state_of_a_small_scope_is_sound(name: str) -> None:
    """The same, with more that may go wrong."""
    explore(name, *SMALL[name])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LARGE)
def test_every_state_of_a_large_scope_is_sound(name: str) -> None:
    """The same, with two crashes and with all kinds of calls at once."""
    explore(name, *LARGE[name])


class Hasty(Rules[str]):
    """Says "not found" before the other has answered shard."""

    @property
    def is_recovering(self) -> bool:
        return False


class Forgetful(Rules[str]):
    """News that could not be delivered are forgotten."""

    def give_back(self, shard: int, leases: Iterable[bytes]) -> None:
        pass


class Curt(Rules[str]):
    """Who came back is told what there was when it asked, and nothing of what was under way then."""

    def _owe_returned(self, leases: Iterable[bytes]) -> bool:
        return False


class Gullible(Rules[str]):
    """A record of a live lease beats its end."""

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        records = list(records)
        for record in records:
            self._table.tombstones._ended.pop(record.lease, None)
        return super()._merge(records)


class Amnesic(Rules[str]):
    """A record brings no uses along."""

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        return super()._merge([record._replace(used=frozenset()) for record in records])


class Undecided(Rules[str]):
    """Of two renewals with one number, each shard keeps its own."""

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        own = self._table.live
        return super()._merge(
            [
                record._replace(terms=held.terms, given_s=held.given_s)
                if (held := own.get(record.lease)) is not None and held.renewals == record.renewals
                else record
                for record in records
            ]
        )


class ByTtl(Rules[str]):
    """Of two renewals with one number, the one with the longer ttl counts, however much time they gave."""

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        own = self._table.live
        return super()._merge(
            [
                record._replace(given_s=held.given_s)
                if (held := own.get(record.lease)) is not None and held.renewals == record.renewals
                else record
                for record in records
            ]
        )


class Resigned(Rules[str]):
    """What is lost here, is not asked back from others."""

    def lost(self, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
        return {}


class Unforgiving(Rules[str]):
    """An end by a use that was given back is an end like any other."""

    def received(self, records: Records, identity: Identity | None = None) -> list[bytes]:
        return super().received(
            records._replace(ended=[end._replace(revocable=None) for end in records.ended]), identity
        )


class Ungrateful(Rules[str]):
    """A record does not say which uses were given back."""

    def _merge(self, records: Iterable[Record]) -> list[bytes]:
        return super()._merge([record._replace(returned=frozenset()) for record in records])


class Reviving(LeaseTable[str]):
    """Who releases a lease that was taken changes nothing, so that it lives again if the take is given back."""

    def release(self, lease: bytes, origin: Origin, rejected: str = "") -> int:
        return 0 if lease in self.tombstones else super().release(lease, origin, rejected)


class Doubling(LeaseTable[str]):
    """A use that was given back counts once more when its call arrives once more."""

    def resolve(
        self, lease: bytes, asked: Identity, *, slot: int | None, take: bool, origin: Origin, use: bytes = b""
    ) -> tuple[str, ...]:
        if (held := self.live.get(lease)) is not None:
            held.returned = frozenset()
        return super().resolve(lease, asked, slot=slot, take=take, origin=origin, use=use)


class Miscounting(LeaseTable[str]):
    """A use that reaches both shards counts twice."""

    def resolve(
        self, lease: bytes, asked: Identity, *, slot: int | None, take: bool, origin: Origin, use: bytes = b""
    ) -> tuple[str, ...]:
        held = self.live.get(lease)
        if held is not None and held.terms.uses is not None and len(held.used) + 1 < held.terms.uses:
            held.used |= {use + b"again"}
        return super().resolve(lease, asked, slot=slot, take=take, origin=origin, use=use)


class Trusting(Inquiry):
    """A client that takes the first shard's word for a use, and does not ask the second."""

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        inquiry, verdict = super().take(replies)
        return inquiry, inquiry.granted[0][1] if inquiry.granted else verdict


class Doubtless(Inquiry):
    """A client for which a shard that doubts has not got the lease."""

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        return super().take({shard: NOT_FOUND if each is NotNow.DOUBTFUL else each for shard, each in replies.items()})


class Hopeful(Pinning):
    """A client for which a shard that doesn't answer in time holds the lease."""

    def take(self, holders: Sequence[int], replies: Mapping[int, Any]) -> tuple[Pinning, Any]:
        held = Identity(bytes(7) + b"\1", 1).to_bytes()
        return super().take(holders, {shard: held if each is Silence.LATE else each for shard, each in replies.items()})


def never(refusal: SafeRefsError) -> bool:
    """An early reader that does not wait."""
    return False


BUGS = {
    "Hasty": (Scope(PINS, deaths=0, rules=Hasty), "not found while recovering"),
    "Forgetful": (Scope(PINS, deaths=0, rules=Forgetful), "leak"),
    "Curt": (Scope(PINS, deaths=0, rules=Curt), "convergence"),
    "Gullible": (Scope(PINS, deaths=0, rules=Gullible), "resurrection"),
    "Miscounting": (Scope(TWO_USES, deaths=0, uses=(None, 2), table=Miscounting), "early end"),
    "Amnesic": (Scope(TWO_USES, deaths=0, uses=(None, 2), rules=Amnesic), "convergence"),
    "Undecided": (Scope(TWO_RENEWALS, deaths=0, rules=Undecided), "convergence"),
    "ByTtl": (Scope(KEEPALIVE, deaths=0, rules=ByTtl), "convergence"),
    "Unforgiving": (Scope(GIVEN_BACK, deaths=0, rules=Unforgiving), "early end"),
    "Ungrateful": (Scope(GIVEN_BACK, deaths=0, rules=Ungrateful), "early end"),
    "Reviving": (Scope(BACK_AND_RELEASED, crashes=0, deaths=0, table=Reviving), "leak"),
    "Doubling": (Scope(GIVEN_BACK, crashes=0, deaths=0, doubles=1, table=Doubling), "early end"),
    "Trusting": (Scope(USES, deaths=0, inquiry=Trusting), "at most once"),
    "Doubtless": (Scope(PINS, crashes=0, borrowed=True, inquiry=Doubtless), "early end"),
    "Resigned": (Scope(PINS, crashes=0, borrowed=True, rules=Resigned), "convergence"),
    "Hopeful": (Scope(PINS, crashes=0, deaths=0, lates=1, pinning=Hopeful), "early end"),
    "never": (Scope(EARLY_READS, crashes=0, deaths=0, waits_for=never), "early end"),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """By the property that it breaks, with a shortest way there."""
    scope, broken = BUGS[bug]
    scope.only = broken
    with pytest.raises(ViolationError, match=rf"^{broken}: .*, after \d+ steps:\n") as found:
        Explorer(scope).run()
    print(f"\n{bug}: {found.value}")


@pytest.mark.parametrize(("programs", "broken"), [(PINS, "early end"), (PINS, "resurrection"), (TAKES, "at most once")])
def test_what_replicas_do_not_promise_is_what_is_left_out(programs: tuple[Any, ...], broken: str) -> None:
    """Two shards that crash both around one call may forget it. If the opposite were promised, the search would object."""
    with pytest.raises(ViolationError, match=f"^{broken}: ") as found:
        Explorer(Scope(programs, crashes=2, deaths=0, strict=True, only=broken)).run()
    print(f"\n{found.value}")
