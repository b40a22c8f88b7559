"""What a shard does with a call about a lease: the table's step, the events for the parts, and the answer. Pure.

All of it runs under the shard's lock. The explorer of the tests drives these very functions, with a part that is as pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..errors import SafeRefsError
from .hooks import Began, Parts
from .leases import LeaseTable
from .wire import ExpiresCall, Granted, NotNow, PinRow, ReleaseCall, RenewCall, ResolveRow

T = TypeVar("T")


def pin(
    table: LeaseTable[T], parts: Parts, row: PinRow, items: Sequence[T], owners: Sequence[bytes]
) -> bytes | SafeRefsError:
    """Begin a lease that holds these items, each with its owner: the registry's identity, or why it isn't held."""
    try:
        table.pin(row.lease, items, owners, row.terms, row.maker)
    except SafeRefsError as refusal:
        return refusal.with_traceback(None)  # which would keep the references of this call
    parts.pinned(row.lease, Began(row.borrower, extras=row.extras))
    return table.identity.to_bytes()


def resolve(table: LeaseTable[T], parts: Parts, row: ResolveRow) -> list[T] | SafeRefsError | Granted | NotNow:
    """What a lease holds, as one use of it. Without the id of a use it is only a look, that spends none."""
    counts_uses = table.counts_uses(row.lease)
    if counts_uses and not row.use:
        return NotNow.IN_TURN
    try:
        items = table.resolve(row.lease, row.asked, slot=row.slot, take=row.take, origin=row.asker, use=row.use)
    except SafeRefsError as refusal:
        return parts.excuse(row.lease, row.use, refusal)
    if counts_uses or row.take:
        parts.changed([row.lease])
    parts.resolved(row.lease, items)  # type: ignore[arg-type] # outside tests they are references
    return list(items)


def release(table: LeaseTable[Any], parts: Parts, call: ReleaseCall) -> list[int]:
    """End leases; for each whether that ended it."""
    ended = [table.release(lease, origin) for leases, origin in call.rows for lease in leases]
    parts.changed([lease for leases, _ in call.rows for lease in leases])
    return ended


def renew(table: LeaseTable[Any], parts: Parts, call: RenewCall) -> int | SafeRefsError | Granted | NotNow:
    """Give a lease a new time to live; which renewal that was."""
    try:
        number = table.renew(call.lease, call.asked, call.ttl, call.renewals)
    except SafeRefsError as refusal:
        return parts.excuse(call.lease, b"", refusal)
    parts.changed([call.lease])
    return number


def expires_in_s(
    table: LeaseTable[Any], parts: Parts, call: ExpiresCall
) -> tuple[float | None] | SafeRefsError | Granted | NotNow:
    """Seconds until a lease's ttl runs out; (None,) without one."""
    try:
        return (table.expires_in_s(call.lease, call.asked),)
    except SafeRefsError as refusal:
        return parts.excuse(call.lease, b"", refusal)
