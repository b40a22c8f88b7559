"""What a reader waits for once it has resolved payloads, so that what it got outlives the registry.

Within a second the owners know it, without any wait: a registry that is behind with telling them lets nobody resolve (see
`anchoring.pace`). One payload may hold more references than that takes. So whoever resolves a large one waits until the registry is
no longer behind; with `anchored=True` until it is done.

What always holds: without `anchored`, a wait that fails or takes too long is no error: what was resolved is good as long as the
registry is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial

from . import _settings, asks, callers
from ._ray import serializing
from .config import Deadline
from .envelope import Header, LeaseAddress
from .errors import RegistryUnavailableError
from .registry.wire import MOST_TOGETHER

LARGE = MOST_TOGETHER  # references of a payload


def await_pace(headers: Sequence[Header], anchored: bool, timeout: float | timedelta | None, since: float) -> None:
    """What a reader waits for between resolving payloads and opening them; nothing, unless one of them is large.

    Args:
        headers: of the payloads.
        anchored: wait for all of them, until their references no longer depend on the registry.
        timeout: of the whole call.
        since: when that has begun, in monotonic seconds.

    Raises:
        RegistryUnavailableError: with `anchored`, as for `await_anchored`.
    """
    if anchored:
        await_anchored([header.address for header in headers], timeout, since)
    elif large := _large(headers):
        _keep_pace(large, timeout, since)


def _large(headers: Sequence[Header]) -> list[LeaseAddress]:
    return [header.address for header in headers if len(header.kinds) > LARGE]


@serializing.outside
def _keep_pace(addresses: Sequence[LeaseAddress], timeout: float | timedelta | None, since: float) -> None:
    from .registry import behind, calls

    with suppress(RegistryUnavailableError, calls.NoRegistryError):
        here, timeout_s = asks.session(), _settings.deadline(timeout).timeout_s
        for registry, leases in _by_registry(addresses).items():
            behind.keep_pace(here.registry(registry), leases, Deadline(since + timeout_s, timeout_s))


def _by_registry(addresses: Iterable[LeaseAddress]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for address in addresses:
        found.setdefault(address.registry, []).append(address.lease)
    return found


@serializing.outside
def await_anchored(addresses: Sequence[LeaseAddress], timeout: float | timedelta | None, since: float) -> None:
    """Wait until the owners of what this process has just resolved know it, so that it no longer depends on the registry.

    Args:
        addresses: of the leases.
        timeout: of the whole call.
        since: when that has begun, in monotonic seconds.

    Raises:
        RegistryUnavailableError: the registry does not anchor, or not in time.
    """
    here, timeout_s = asks.session(), _settings.deadline(timeout).timeout_s
    deadline = Deadline(since + timeout_s, timeout_s)
    for registry, leases in _by_registry(addresses).items():
        for part in here.parts:
            part.await_anchored(registry, leases, deadline)


async def await_anchored_async(
    addresses: Sequence[LeaseAddress], timeout: float | timedelta | None, since: float
) -> None:
    """`await_anchored`, awaited."""
    await callers.to_thread(partial(await_anchored, addresses, timeout, since), await _left_s(timeout, since))


async def await_pace_async(
    headers: Sequence[Header], anchored: bool, timeout: float | timedelta | None, since: float
) -> None:
    """`await_pace`, awaited."""
    if anchored:
        await await_anchored_async([header.address for header in headers], timeout, since)
    elif large := _large(headers):
        with suppress(RegistryUnavailableError):
            await callers.to_thread(partial(_keep_pace, large, timeout, since), await _left_s(timeout, since))


async def _left_s(timeout: float | timedelta | None, since: float) -> float:
    return max(0.0, since + await asks.waits_s(timeout) - time.monotonic())
