"""A borrower's loans, explored whole: one object, its owner, one or two borrowers, a registry and the clients' relay, in every order.

See `explore` for the model and the properties. Each scope is searched to its end, and says how many states it has at least, so that a
change can't make it smaller unnoticed. Planted bugs show that the search would find them: among them the rules of before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from tests.anchoring.explore import Explorer, Scope, ViolationError
from tests.anchoring.explore.reading import Reading, explore

KNOWN, LOADED, TASK = ("known",), ("loaded",), ("task",)
EACH = tuple(itertools.product((KNOWN, LOADED, TASK), (False, True)))

QUICK = {
    f"{begins[0]}{', in a call' if busy else ''}; a death": (Scope(begins, busy=busy, kills=1), 500)
    for begins, busy in EACH
} | {
    "known; the relay dies": (Scope(KNOWN, relay_dies=True), 500),
    "loaded; the relay dies": (Scope(LOADED, relay_dies=True), 5_000),
    "known; a silent owner": (Scope(KNOWN, silent=True), 6_000),
    "loaded; a silent owner": (Scope(LOADED, silent=True), 10_000),
    "loaded; a slow borrower": (Scope(LOADED, slow=True), 2_000),
}

LONG = {
    f"{begins[0]}{', in a call' if busy else ''}; a slow borrower, a silent owner, the relay and a borrower die": (
        Scope(begins, busy=busy, kills=1, relay_dies=True, slow=True, silent=True),
        40_000,
    )
    for begins, busy in EACH
} | {
    "loaded; released meanwhile, a death": (Scope(LOADED, released=True, kills=1), 35_000),
    "loaded, in a call; released meanwhile": (Scope(LOADED, released=True, busy=True), 40_000),
    "two that are known": (Scope(KNOWN + KNOWN), 60_000),
    "two that are known; a death": (Scope(KNOWN + KNOWN, kills=1), 280_000),
    "two that are known; the relay dies": (Scope(KNOWN + KNOWN, relay_dies=True), 400_000),
    "one that is known, one in a task": (Scope(KNOWN + TASK), 350_000),
}

DEEP = {
    "loaded and known": (Scope(LOADED + KNOWN), 300_000),
    "two that loaded": (Scope(LOADED + LOADED), 1_500_000),
    "two that are known; two deaths": (Scope(KNOWN + KNOWN, kills=2), 200_000),
    "one that is known, one in a task; a death": (Scope(KNOWN + TASK, kills=1), 300_000),
}

# What the search finds where a rule is left out, by the words that it begins with.
PLANTED = {
    "nobody looks later what the relay remembers": (Scope(LOADED, looks=False), "left: the relay"),
    "nor after a call in flight": (Scope(LOADED, busy=True, looks=False), "left: the relay"),
    "the registry does not give back": (Scope(KNOWN, relay_dies=True, asks_back=False), "unknown"),
    "nobody makes sure that the registry is known": (Scope(LOADED, released=True, makes_sure=False), "unknown"),
    "nobody looks whether others have lent the same": (Scope(KNOWN + KNOWN, looks=False), "left: the relay"),
}


def check(scopes: Mapping[str, tuple[Scope, int]], name: str) -> None:
    scope, least = scopes[name]
    assert Explorer(scope).run() >= least


@pytest.mark.parametrize("name", QUICK)
def test_quick_scopes(name: str) -> None:
    check(QUICK, name)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_long_scopes(name: str) -> None:
    check(LONG, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_deep_scopes(name: str) -> None:
    check(DEEP, name)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str) -> None:
    scope, begins = PLANTED[name]
    with pytest.raises(ViolationError, match=f"^{begins}"):
        Explorer(scope).run()


@pytest.mark.parametrize(("scope", "least"), [(Reading(), 500), (Reading(loads=4), 3_000)])
def test_a_reader_may_load_again(scope: Reading, least: int) -> None:
    """However its reports and those of the shard overtake one another, its reference is good; and nothing is left."""
    assert explore(scope) >= least


@pytest.mark.parametrize("scope", [Reading(asks=False), Reading(parts=False)], ids=["rounds", "letting go"])
def test_without_an_answer_of_the_owner_a_reader_that_loads_again_loses(scope: Reading) -> None:
    """The rules of before. Who loads once was safe by these, too."""
    with pytest.raises(ViolationError, match=r"^freed: the reader has it"):
        explore(scope)
    explore(scope._replace(loads=1))
