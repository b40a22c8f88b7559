"""What several shards answer of one lease that is to become durable, put together; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from safe_refs.durability.waiting import _is_durable
from safe_refs.durability.wire import NotCopyable, Why
from safe_refs.envelope import LeaseAddress
from safe_refs.errors import (
    LeaseLostError,
    LeaseNotFoundError,
    LeaseReleasedError,
    OwnerGoneError,
    RegistryUnavailableError,
    UnsupportedReferenceError,
)
from safe_refs.registry.calls import Silence
from safe_refs.registry.wire import NotNow

ADDRESS = LeaseAddress("default", b"c" * 28, b"epoch..1", 1, b"a" * 16)
NOT_FOUND = LeaseNotFoundError("never here", lease="61616161", registry="default")


@pytest.mark.parametrize(
    ("answers", "is_durable"),
    [
        ([True], True),
        ([True, True], True),
        ([True, False], False),
        ([True, Silence.LATE], False),
        ([True, Silence.DEAD], True),
        ([True, NOT_FOUND], True),
        ([True, NotNow.RECOVERING], True),
        ([NotNow.RECOVERING, NOT_FOUND], False),
        ([Silence.DEAD], False),
        ([Silence.ABSENT, Silence.DEAD], False),
        ([NotNow.CLOSING], False),
    ],
)
def test_durable_is_what_all_that_answer_hold_copies_of(answers: list[Any], is_durable: bool) -> None:
    """A shard that is down gets the lease from the others, and copies then; one that is slow is waited for."""
    assert _is_durable(ADDRESS, answers, comes=False) is is_durable


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([False, NotCopyable(Why.GONE, "dead")], OwnerGoneError),
        ([True, NotCopyable(Why.UNSUPPORTED, "an actor")], UnsupportedReferenceError),
        ([NotCopyable(Why.FAILED, "the store is full")], RegistryUnavailableError),
        ([True, LeaseReleasedError.of("61616161", "default", 0.0, "somebody")], LeaseReleasedError),
        ([NOT_FOUND, NOT_FOUND], LeaseNotFoundError),
        ([Silence.ABSENT, Silence.ABSENT], LeaseLostError),
    ],
)
def test_what_can_never_be_durable_is_an_error(answers: list[Any], error: type[Exception]) -> None:
    """As soon as one shard says so."""
    with pytest.raises(error):
        _is_durable(ADDRESS, answers, comes=False)


def test_a_pin_that_may_still_come_is_waited_for() -> None:
    """Its maker didn't wait for it."""
    assert _is_durable(ADDRESS, [NOT_FOUND], comes=True) is False
    assert _is_durable(ADDRESS, [Silence.ABSENT], comes=True) is False
