"""What a shard does with a call about a lease: the table's step, the events for the parts, and the answer. Pure.

All of it runs under the shard's lock. The explorer of the tests drives these very functions, with a part that is as pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..errors import LeaseNotFoundError, SafeRefsError
from . import unspent
from .hooks import Began, Parts
from .leases import LeaseTable
from .listing import page, revocable
from .records import Renewal
from .wire import (
    UNSURE,
    ExpiresCall,
    GiveBackRow,
    NotNow,
    PinRow,
    Refused,
    ReleaseCall,
    ReleaseWhereCall,
    RenewCall,
    ResolveRow,
)

T = TypeVar("T")


def pin(
    table: LeaseTable[T], parts: Parts, row: PinRow, items: Sequence[T], owners: Sequence[bytes]
) -> bytes | SafeRefsError:
    """Begin a lease that holds these items, each with its owner: the registry's identity, or why it isn't held.

    The identity has UNSURE behind it if whoever pins has to make sure that the owners know this shard.
    """
    try:
        table.pin(row.lease, items, owners, row.terms, row.maker)
    except SafeRefsError as refusal:
        return refusal.with_traceback(None)  # which would keep the references of this call
    parts.pinned(row.lease, Began(row.borrower, extras=row.extras))
    return table.identity.to_bytes() + (UNSURE if parts.is_unsure(row.lease) else b"")


def resolve(table: LeaseTable[T], parts: Parts, row: ResolveRow) -> list[T] | Refused:
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
    ended = [table.release(lease, origin, call.reason) for leases, origin in call.rows for lease in leases]
    parts.changed([lease for leases, _ in call.rows for lease in leases])
    return ended


def give_back(
    table: LeaseTable[T], parts: Parts, row: GiveBackRow, items: Sequence[T], owners: Sequence[bytes]
) -> bool | NotNow:
    """A reader gives a use back, with what it got by it: whether the lease lives again by that."""
    if row.lease not in table.live and row.lease not in table.tombstones:
        unknown = LeaseNotFoundError.of(row.lease[:4].hex(), table.registry)
        answer = parts.excuse(row.lease, row.use, unknown)
        return answer if isinstance(answer, NotNow) else False
    lives = unspent.give_back(table, row, items, owners)
    if lives:
        parts.pinned(row.lease, Began(row.borrower, again=True))
    if lives is not None:
        parts.changed([row.lease])
    return bool(lives)


def release_where(
    table: LeaseTable[Any], parts: Parts, call: ReleaseWhereCall
) -> tuple[list[bytes], tuple[float, int] | None]:
    """End a page of the leases that a query chooses: the marks of those that this ended, and where the next page begins.

    With the last page, those that a use has ended are not to live again if it is given back. They had ended, and count nothing.
    """
    found = page(table, call.query)
    if call.dry_run:
        return [info._mark for info in found.infos], found.after
    ended = [table.release(lease, call.origin) for lease in found.leases]
    finished = revocable(table, call.query) if found.after is None else []
    for lease in finished:
        table.release(lease, call.origin)
    parts.changed(found.leases + finished)
    return [info._mark for info, flag in zip(found.infos, ended, strict=True) if flag], found.after


def renew(table: LeaseTable[Any], parts: Parts, call: RenewCall) -> Renewal | Refused:
    """Give a lease a new time to live: the renewal, for the other holders."""
    try:
        renewal = table.renew(call.lease, call.asked, call.ttl, call.decided, call.lengthens)
    except SafeRefsError as refusal:
        return parts.excuse(call.lease, b"", refusal)
    parts.changed([call.lease])
    return renewal


def expires_in_s(table: LeaseTable[Any], parts: Parts, call: ExpiresCall) -> tuple[float | None] | Refused:
    """Seconds until a lease's ttl runs out; (None,) without one."""
    try:
        return (table.expires_in_s(call.lease, call.asked),)
    except SafeRefsError as refusal:
        return parts.excuse(call.lease, b"", refusal)
