"""Ray's object store: what may stay in it, and the watch that nothing else does."""

from __future__ import annotations

import gc
import os

import safe_refs
from safe_refs._ray import store

from .waiting import comes

# Bytes: Ray keeps a mark of a byte or two, for good, for an object that somebody looked for after its end. A test that looks for more
# of these says how many bytes that may be (`@pytest.mark.ray_marks(64)`).
RAYS_MARKS = 8
# How long it may take to free what nobody holds. Ray takes well under 1 s on an idle machine; what a shard that was killed had
# given to relays stays with them for 10 s.
SETTLE_S = 15.0

# Drivers that the tests start see the same store.
_ALLOWED = "SAFE_REFS_TESTS_ALLOW"
_allowed_bytes = int(os.environ.get(_ALLOWED, RAYS_MARKS))


def allow(size: int) -> None:
    """So many bytes more that nobody counts on may stay in the store from here on, for the rest of the session."""
    global _allowed_bytes
    _allowed_bytes += size
    os.environ[_ALLOWED] = str(_allowed_bytes)


def emptied(within_s: float) -> store.StoreUsage:
    """Wait for the store to be empty, but for what may stay; its figures then, or when the time is over."""
    return store.wait_for_store(_allowed_bytes, within_s)


def is_empty(within_s: float) -> bool:
    """Whether the store is empty within that time, but for marks of Ray's own."""
    return emptied(within_s).used_bytes <= _allowed_bytes


def left(within_s: float) -> str:
    """What is still in the store after that time, and who counts it; nothing if it is empty but for marks of Ray's own."""
    usage = emptied(within_s)
    return "" if usage.used_bytes <= _allowed_bytes else f"{usage}\n{store.who_holds_what()}"


def holds(least_bytes: int) -> bool:
    """Whether so many bytes are in the store. To ask this keeps nothing alive, unlike resolving a lease."""
    return store.store_usage().used_bytes >= least_bytes


def at_rest() -> store.StoreUsage:
    """The store's figures, once nothing of other tests goes away any more."""
    while True:
        usage = store.store_usage()
        if not comes(lambda usage=usage: store.store_usage() != usage, 1):  # type: ignore[misc] # mypy can't infer a lambda's default
            return usage


def live() -> list[str | None]:
    """The labels of live leases, oldest first."""
    return [info.label for info in safe_refs.leases(sizes=False)]


def check_nothing_left(before: store.StoreUsage, settle_s: float = SETTLE_S) -> None:
    """Fail if a lease is live, or the store holds more than before."""
    gc.collect()
    figures = safe_refs.stats()
    live = 0 if figures is None else figures.live_leases
    left = safe_refs.leases(sizes=False) if live else []
    if live:
        safe_refs.shutdown(force=True)
    usage = store.wait_for_store(before.used_bytes + _allowed_bytes, settle_s)
    assert not live, f"the test left {live} lease(s) behind: {left}"
    assert usage.used_bytes <= before.used_bytes + _allowed_bytes, (
        f"the test left {usage.used_bytes - before.used_bytes} bytes pinned:\n{store.who_holds_what()}"
    )
