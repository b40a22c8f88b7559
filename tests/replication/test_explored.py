"""Replication, explored whole: two shards, two leases, three clients, and whatever may go wrong between them, in every order.

See `explore` for the model and the properties. Each scope is searched to its end, and says how many states it has; the floors are
there so that a change can't make it smaller unnoticed. `make test` explores the small scopes, `make test-deep` the large ones.
Planted bugs show that the search would find them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest

from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Origin
from tests.replication.explore import Explorer, Scope, ViolationError

# Programs: a client's steps, and of each the choices. X may be used any number of times, Y once (or as the scope says).
PIN_X, PIN_Y = (("pin", 0),), (("pin", 1),)
RELEASE, RESOLVE, RENEW = (("release", 0),), (("resolve", 0),), (("renew", 0),)
USE, TAKE = (("use", 1),), (("take", 1),)

PINS = ((PIN_X,), (RELEASE,), (RESOLVE,))
USES = ((PIN_Y,), (TAKE,), (USE,))
RENEWALS = ((PIN_X,), (RENEW,), (RENEW + RELEASE,))
TWO_USES = ((PIN_Y,), (USE,), (USE + TAKE,))
THREE_USES = ((PIN_Y,), (USE, USE), (USE,))
BOTH_LEASES = ((PIN_X,), (PIN_Y,), (RELEASE + TAKE,))
EVERYTHING = ((PIN_X, PIN_Y), (RELEASE + TAKE,), (RESOLVE + USE,))

SMALL = {
    "pins and releases; a crash, a client's death, a double": (Scope(PINS, doubles=1), 151_000),
    "uses and takes; a crash, a client's death, a double": (Scope(USES, doubles=1), 103_000),
    "two uses; a crash, a double": (Scope(TWO_USES, deaths=0, doubles=1, uses=(None, 2)), 204_000),
    "renewals; a crash": (Scope(RENEWALS, deaths=0), 38_500),
    "both leases; a crash": (Scope(BOTH_LEASES, deaths=0), 53_000),
    "uses and takes; two crashes": (Scope(USES, crashes=2, deaths=0), 93_000),
}

LARGE = {
    "everything; a crash": (Scope(EVERYTHING, deaths=0), 450_000),
    "renewals; a crash, a client's death, a double": (Scope(RENEWALS, doubles=1), 1_000_000),
    "pins and releases; two crashes": (Scope(PINS, crashes=2, deaths=0, both=True), 1_150_000),
    "uses and takes; two crashes": (Scope(USES, crashes=2, deaths=0, both=True), 680_000),
    "three uses; two crashes": (Scope(THREE_USES, crashes=2, deaths=0, uses=(None, 2)), 750_000),
}


def explore(name: str, scope: Scope, floor: int) -> None:
    """Visit all states of a scope, and say how many they are."""
    begun = time.monotonic()
    explored = Explorer(scope).run()
    print(
        f"\n{name}: {explored.states:,} states, {explored.steps:,} steps, {explored.calls:,} calls carried out, "
        f"{explored.quiet} quiet states, at most {explored.depth} steps away, {time.monotonic() - begun:.0f} s"
    )
    assert explored.states >= floor
    assert explored.quiet > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if SMALL[name][1] > 100_000 else []) for name in SMALL]
)
def test_every_state_of_a_small_scope_is_sound(name: str) -> None:
    """No early end, no resurrection, at most once, nothing "not found" in recovery; no leak and one opinion once all is quiet."""
    explore(name, *SMALL[name])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LARGE)
def test_every_state_of_a_large_scope_is_sound(name: str) -> None:
    """The same, with two crashes and with all kinds of calls at once."""
    explore(name, *LARGE[name])


class Hasty(Replica[str]):
    """Says "not found" before it has heard from the other shard."""

    @property
    def to_hear(self) -> frozenset[int]:
        return frozenset()


class Forgetful(Replica[str]):
    """News that could not be delivered are forgotten."""

    def give_back(self, shard: int, leases: Iterable[bytes]) -> None:
        pass


class Curt(Replica[str]):
    """Who came back is told what there was when it asked, and nothing of what was under way then."""

    def owe_returned(self, leases: Iterable[bytes]) -> bool:
        return False


class Gullible(LeaseTable[str]):
    """A copy beats an ending."""

    def take_over(self, copy: Copy) -> bool:
        self._ended.pop(copy.lease, None)
        return super().take_over(copy)


class Miscounting(LeaseTable[str]):
    """A use that reaches both shards counts twice."""

    def resolve(
        self,
        lease: bytes,
        epoch: bytes,
        generation: int,
        *,
        slot: int | None,
        take: bool,
        origin: Origin,
        use: bytes = b"",
    ) -> tuple[str, ...]:
        held = self._live.get(lease)
        if held is not None and held.terms.uses is not None and len(held.used) + 1 < held.terms.uses:
            held.used |= {use + b"again"}
        return super().resolve(lease, epoch, generation, slot=slot, take=take, origin=origin, use=use)


class Amnesic(LeaseTable[str]):
    """A copy brings no uses along."""

    def take_over(self, copy: Copy) -> bool:
        return super().take_over(copy._replace(used=frozenset()))


class Undecided(LeaseTable[str]):
    """Of two renewals with one number, each shard keeps its own."""

    def take_over(self, copy: Copy) -> bool:
        held = self._live.get(copy.lease)
        if held is not None and held.renewals == copy.renewals:
            copy = copy._replace(terms=held.terms)
        return super().take_over(copy)


def trusting(op: Op, holders: tuple[int, ...]) -> tuple[Op, str]:
    """A client that takes the first shard's word for a use, and does not ask the second."""
    if op.kind in ("use", "take") and op.calls[holders[0]][0] in GRANTS:
        return op, "well"
    return as_the_client(op, holders)


BUGS = {
    "Hasty": (Scope(PINS, deaths=0, replica=Hasty), "not found while recovering"),
    "Forgetful": (Scope(PINS, deaths=0, replica=Forgetful), "leak"),
    "Curt": (Scope(PINS, deaths=0, replica=Curt), "convergence"),
    "Gullible": (Scope(PINS, deaths=0, table=Gullible), "resurrection"),
    "Miscounting": (Scope(TWO_USES, deaths=0, uses=(None, 2), table=Miscounting), "early end"),
    "Amnesic": (Scope(TWO_USES, deaths=0, uses=(None, 2), table=Amnesic), "convergence"),
    "Undecided": (Scope(RENEWALS, deaths=0, table=Undecided), "convergence"),
    "trusting": (Scope(USES, deaths=0, rules=trusting), "at most once"),
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


@pytest.mark.parametrize(("programs", "broken"), [(PINS, "early end"), (PINS, "resurrection"), (USES, "at most once")])
def test_what_replicas_do_not_promise_is_what_is_left_out(programs: tuple[Any, ...], broken: str) -> None:
    """Two shards that crash both around one call may forget it. If the opposite were promised, the search would object."""
    with pytest.raises(ViolationError, match=f"^{broken}: ") as found:
        Explorer(Scope(programs, crashes=2, deaths=0, strict=True, only=broken)).run()
    print(f"\n{found.value}")
