"""Mistakes of a user who is connected: each is told at once, by its own type, with what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import safe_refs
from tests.support import (
    mistakes,
    wrong_amounts,
    wrong_arguments,
    wrong_ends,
    wrong_orders,
    wrong_targets,
    wrong_values,
)
from tests.support.wrong_arguments import Public


def judge(rows: list[mistakes.Mistake]) -> None:
    """Make the mistakes, one after the other, and fail with all that is wrong."""
    given = mistakes.given()
    found = []
    try:
        for row in rows:
            found.append(mistakes.verdict(row, given))
            live = len(safe_refs.leases(sizes=False))
            if live != 2:
                found.append(f"{row.name}: {live} leases live, not 2")
                break
    finally:
        ended = mistakes.end(given)
    assert not list(filter(None, found))
    assert ended == 2


@pytest.mark.parametrize("function", wrong_arguments.public(), ids=lambda function: function.name)
def test_wrong_arguments(cluster: str, function: Public) -> None:
    """Every public parameter, with all wrong types and values of its kind; nothing is held, and nothing ended."""
    judge(list(wrong_arguments.mistakes(function)))


@pytest.mark.parametrize("end", wrong_ends.ENDS, ids=lambda end: end.__name__)
def test_what_has_ended_is_used(cluster: str, end: Callable[[mistakes.Given], bytes]) -> None:
    """Each use of a payload says how its lease has ended, and what to do."""
    given = mistakes.given()
    payload = end(given)
    mistakes.end(given)
    try:
        judge(wrong_ends.after(end, payload))
    finally:
        safe_refs.shutdown("mistakes")


def test_wrong_orders(cluster: str) -> None:
    """Scopes, files and settings that are used in the wrong order."""
    judge(wrong_orders.ORDERS)


def test_wrong_values(cluster: str) -> None:
    """What can't be passed, or not there, or not together."""
    judge(wrong_values.VALUES)


def test_wrong_targets(cluster: str) -> None:
    """What names no lease, or not the one that is meant."""
    judge(wrong_targets.TARGETS)


def test_wrong_amounts(registry: str) -> None:
    """More than a registry is to hold: the limit is named, and who fills it, whichever call it is."""
    judge(wrong_amounts.AMOUNTS)
