"""Replication, explored whole, while time passes: what was renewed in time is there afterwards, whatever goes wrong between shards.

As in `test_explored`, but each lease has a first ttl, which passes at each shard at any moment; what a renewal gives is for ever. A
call that arrives twice is left out where uses count: the second may spend a use that the first was refused as the lease was overdue,
and of which nobody gets the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity
from safe_refs.registry.wire import NotNow, Overdue
from safe_refs.replication.merging import Inquiry
from safe_refs.replication.records import Records
from safe_refs.replication.rules import Rules
from tests.replication.explore import Explorer, Scope, ViolationError, explore

# Programs: see `test_explored`. Time may pass in each of them.
PIN_X, PIN_Y, RENEW, RENEW_Y = (("pin", 0),), (("pin", 1),), (("renew", 0),), (("renew", 1),)
RELEASE, RESOLVE, LENGTHEN, SHORTEN = (("release", 0),), (("resolve", 0),), (("lengthen", 0),), (("shorten", 0),)
USE, TAKE, BACK, TAKE_BACK = (("use", 1),), (("take", 1),), (("back", 1),), (("back take", 1),)

RESOLVED = ((PIN_X,), (RENEW,), (RESOLVE,))
RENEWED_TWICE = ((PIN_X,), (RENEW,), (RENEW,))
RELEASED = ((PIN_X,), (RENEW,), (RELEASE,))
SHORTENED = ((PIN_X,), (RENEW,), (SHORTEN,))
USED = ((PIN_Y,), (RENEW_Y,), (USE + TAKE,))
TWO_USES = ((PIN_Y,), (RENEW_Y, USE), (USE,))
GIVEN_BACK = ((PIN_Y,), (RENEW_Y,), (USE, BACK))
TAKEN_BACK = ((PIN_Y,), (RENEW_Y,), (TAKE, TAKE_BACK))
KEEPALIVE = ((PIN_X,), (RENEW, RENEW), (LENGTHEN,))

QUICK = {
    "a ttl, renewed in time": (Scope(RESOLVED, crashes=0, deaths=0, ttl=True), 550),
    "a ttl, renewed in time; a crash": (Scope(RESOLVED, deaths=0, ttl=True), 69_000),
}

SMALL = {
    "a ttl, renewed in time; a crash, a late answer": (Scope(RESOLVED, deaths=0, lates=1, ttl=True), 230_000),
    "a ttl, renewed in time; a crash, a client's death": (Scope(RESOLVED, ttl=True), 185_000),
    "a ttl, renewed in time, and a release; a crash": (Scope(RELEASED, deaths=0, ttl=True), 205_000),
    "a ttl of what depends on a process; its death": (Scope(RESOLVED, crashes=0, borrowed=True, ttl=True), 200_000),
}

LARGE = {
    "a ttl, renewed in time; a crash, a double": (Scope(RESOLVED, deaths=0, doubles=1, ttl=True), 800_000),
    "a ttl, renewed in time; two crashes": (Scope(RESOLVED, crashes=2, deaths=0, ttl=True), 1_400_000),
    "a ttl of what depends on a process; its death, a late answer": (
        Scope(RESOLVED, crashes=0, lates=1, borrowed=True, ttl=True),
        340_000,
    ),
    "a ttl, two renewals; a crash": (Scope(RENEWED_TWICE, deaths=0, ttl=True), 510_000),
    "a ttl, renewals, also of a keepalive; a crash": (Scope(KEEPALIVE, deaths=0, ttl=True), 600_000),
    "a ttl, renewed and shortened; a crash": (Scope(SHORTENED, deaths=0, ttl=True), 1_700_000),
    "a ttl, renewed, and a use or take; a crash": (Scope(USED, deaths=0, ttl=True), 500_000),
    "a ttl, renewed, one of two uses; a crash": (Scope(USED, deaths=0, uses=(None, 2), ttl=True), 700_000),
    "a ttl, renewed, two uses; a crash": (Scope(TWO_USES, deaths=0, uses=(None, 2), ttl=True), 1_700_000),
    "a ttl, renewed, a use given back; a crash": (Scope(GIVEN_BACK, deaths=0, ttl=True), 590_000),
    "a ttl, renewed, a take given back; a crash": (Scope(TAKEN_BACK, deaths=0, ttl=True), 540_000),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_every_state_of_a_quick_scope_is_sound(name: str) -> None:
    """What was renewed in time is there, for who asks; what was released stays so; both shards agree once all is quiet."""
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
    """The same, with two crashes, with uses, and with renewals that give less."""
    explore(name, *LARGE[name])


class Punctual(Rules[str]):
    """An end by time is an end like any other, also where the lease was renewed elsewhere."""

    def received(self, records: Records, identity: Identity | None = None) -> list[bytes]:
        ended = [end._replace(revocable=None) if end.how == "expired" else end for end in records.ended]
        return super().received(records._replace(ended=ended), identity)


class Final(LeaseTable[str]):
    """Whose time is over here, never lives again here."""

    def end(self, lease: bytes, how: str, by: str, use: bytes = b"") -> None:
        super().end(lease, how, by, use)
        if how == "expired":
            self.tombstones.finish(lease)


class Strict(Inquiry):
    """A client for which a lease whose time is over at one shard has ended, also where the other has renewed it."""

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        return super().take(
            {shard: each.refusal if isinstance(each, Overdue) else each for shard, each in replies.items()}
        )


class Satisfied(Inquiry):
    """A client for which a lease is renewed when one shard has renewed it, and its time is over at the other."""

    def take(self, replies: Mapping[int, Any]) -> tuple[Inquiry, Any]:
        inquiry, verdict = super().take(replies)
        return inquiry, inquiry.won if verdict is NotNow.RECOVERING and inquiry.won is not None else verdict


BUGS = {
    "Punctual": Scope(RESOLVED, deaths=0, ttl=True, rules=Punctual),
    "Final": Scope(RESOLVED, deaths=0, ttl=True, table=Final),
    "Strict": Scope(RESOLVED, deaths=0, ttl=True, inquiry=Strict),
    "Satisfied": Scope(RESOLVED, deaths=0, ttl=True, inquiry=Satisfied),
    "Punctual and Strict": Scope(RESOLVED, deaths=0, ttl=True, rules=Punctual, table=Final, inquiry=Strict),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """As an early end, with a shortest way there. The last is what the rules were before."""
    BUGS[bug].only = "early end"
    with pytest.raises(ViolationError, match=r"^early end: .*, after \d+ steps:\n") as found:
        Explorer(BUGS[bug]).run()
    print(f"\n{bug}: {found.value}")
