"""How a shard is shut down, in two steps: for as long as the caller has time it refuses new leases; then it ends all, for good.

A caller that is interrupted or dies, or that another shard has not answered, does not take the second step: then nothing has ended,
and the shards take leases again when the caller's time is over. If it has taken that step, but does not end the shard's process by
then, the shard does so itself. Nobody is refused for longer than that.

What always holds: a shard that has not been asked to refuse leases, or whose time for that is over, is not closed.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from ..bounds import Range
from .hooks import Parts
from .leases import LeaseTable
from .owners import Owners
from .wire import CloseCall, NotNow

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

MOST_S = 3600.0  # that a shard may be asked to refuse leases for; whoever has longer asks again
MayRefuse = Annotated[float, Range(0, MOST_S)]

logger = logging.getLogger("safe_refs.registry")


class Shard(Protocol):
    """What this needs of `shard.Shard`, which says what each is."""

    registry: str
    number: int
    table: LeaseTable[Ref]
    parts: Parts
    lock: threading.Lock
    owners: Owners
    is_closing: bool
    refuses_until: float


def hold_off(shard: Shard, for_s: float) -> bool:
    """Refuse new leases for so many seconds from now on; 0 takes them again. False if the shard is closing already."""
    if not shard.is_closing:
        shard.refuses_until = time.monotonic() + for_s
    return not shard.is_closing


def close(shard: Shard, call: CloseCall) -> int | NotNow:
    """Let go of everything, and wait until Ray has seen it, for so long at most; how many leases that were.

    An owner learns which processes resolved a reference from this shard only when this shard drops its own reference. If the
    actor were killed before that, those live references would be lost.
    """
    left_s = shard.refuses_until - time.monotonic()
    if not shard.is_closing:
        if left_s <= 0:
            return NotNow.CLOSING
        # Another `shutdown` may have asked for less time. Before its owners know who resolved from it, a shard is not to end.
        ends_in_s = max(left_s, call.patience_s)
        # First the thread: if none can be started, nothing has changed.
        threading.Thread(target=_end, args=(shard, ends_in_s), name="safe_refs-closing", daemon=True).start()
        shard.is_closing = True
    until = time.monotonic() + call.patience_s
    with shard.lock:
        owners = shard.owners.known_to()
        ended = shard.table.end_all(call.origin)
    shard.parts.closing(call.patience_s)
    shard.owners.wait_until_forgotten(owners, until - time.monotonic())
    return ended


def _end(shard: Shard, in_s: float) -> None:
    """End this process, unless whoever shuts the registry down has done so by then."""
    import ray

    time.sleep(in_s)
    logger.warning(
        "shard %d of registry %r was shut down by a process that did not end it: it ends itself",
        shard.number,
        shard.registry,
    )
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
