"""The Ray actor that holds leases: a `LeaseTable` behind a lock, and one small thread for what happens by time.

A plain actor, one call at a time (an async one costs a fifth more per call). References come and go inside lists, so that Ray tracks
them as borrowed and never fetches a value here; the actor never deserializes users' data. Refusals are returned, not raised: an
exception that crosses a task's border is wrapped and costs ten times the call.

It restarts when it crashes (`max_restarts=-1`), empty, with a new epoch: leases from before are then lost, and it says so.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import _ray
from ..config import Limits
from ..errors import SafeRefsError
from .leases import LeaseInfo, LeaseTable, Origin, RegistryStats, Terms

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_TIMEOUT_S = 1.0  # for questions to owners; what is asked about is held as long as the question takes
_MISSES_UNTIL_DEAD = 2  # sweeps in a row in which an owner didn't answer
_CLOSE_TIMEOUT_S = 2.0


class Shard:
    """The actor's class. `client` is the only caller.

    Args:
        registry: name of the registry that it is (a part of).
        limits: what it may hold at most.
    """

    def __init__(self, registry: str, limits: Limits) -> None:
        self._lock = threading.Lock()
        self._table: LeaseTable[Ref] = LeaseTable(
            registry=registry,
            epoch=os.urandom(8),
            generation=_ray.next_generation(registry),
            clock=time.monotonic,
            wall=time.time,
            limits=limits,
        )
        self._identity = (self._table.epoch, self._table.generation)
        self._misses: dict[bytes, int] = {}
        self._wake = threading.Event()
        threading.Thread(target=self._keep_time, name="safe_refs-time", daemon=True).start()
        threading.Thread(target=self._watch_owners, name="safe_refs-owners", daemon=True).start()

    def hello(self) -> tuple[bytes, int]:
        """Epoch and generation."""
        return self._identity

    def pin(
        self, call: tuple[bytes, Sequence[Ref], tuple[Any, ...], tuple[Any, ...]]
    ) -> tuple[bytes, int] | SafeRefsError:
        """Begin a lease; answers with epoch and generation."""
        lease, refs, wanted, maker = call
        terms, owners = Terms(*wanted), [_ray.owner_of(ref) for ref in refs]
        try:
            with self._lock:
                self._table.pin(lease, refs, owners, terms, Origin(*maker))
        except SafeRefsError as refusal:
            return refusal
        if terms.ttl is not None:
            self._wake.set()
        return self._identity

    def resolve(self, call: tuple[bytes, bytes, int, int | None, bool, tuple[Any, ...]]) -> list[Ref] | SafeRefsError:
        """What a lease holds."""
        lease, epoch, generation, slot, take, asker = call
        try:
            with self._lock:
                return list(self._table.resolve(lease, epoch, generation, slot=slot, take=take, origin=Origin(*asker)))
        except SafeRefsError as refusal:
            return refusal

    def release(self, leases: Sequence[bytes], origin: Origin) -> int:
        """End leases; how many that ended."""
        with self._lock:
            return sum(self._table.release(lease, origin) for lease in leases)

    def renew(self, lease: bytes, epoch: bytes, generation: int, ttl: float) -> SafeRefsError | None:
        """Give a lease a new time to live."""
        try:
            with self._lock:
                self._table.renew(lease, epoch, generation, ttl)
        except SafeRefsError as refusal:
            return refusal
        self._wake.set()
        return None

    def leases(self, label: str | None, limit: int, with_sizes: bool) -> list[LeaseInfo]:
        """The oldest `limit` live leases, with their objects' sizes if asked for."""
        with self._lock:
            rows = self._table.listing(label)[:limit]
        if not with_sizes:
            return [info for info, _ in rows]
        sizes = _ray.sizes(list({ref for _, refs in rows for ref in refs}), _PROBE_TIMEOUT_S) if rows else {}
        return [
            dataclasses.replace(info, size_bytes=sum(sizes.get(ref, 0) for ref in set(refs))) for info, refs in rows
        ]

    def stats(self) -> RegistryStats:
        """Figures since the start."""
        with self._lock:
            return self._table.stats()

    def set_limits(self, limits: Limits) -> None:
        """Take other limits from now on; what is held stays."""
        with self._lock:
            self._table.limits = limits

    def close(self, origin: Origin) -> int:
        """Let go of everything, and wait until Ray has seen it; how many leases that were.

        A process that resolved a reference from here is known to its owner only once this one has let go in order: killing the
        actor before that would take those live references along.
        """
        with self._lock:
            ids = {ref.hex() for ref in self._table.items()}
            ended = self._table.end_all(origin)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while ids and time.monotonic() < deadline and _ray.any_counted(ids):
            time.sleep(0.02)
        return ended

    def _keep_time(self) -> None:
        """The time thread: ends leases when their ttl runs out."""
        while True:
            with self._lock:
                self._table.expire()
                pause = self._table.next_deadline_in_s()
            self._wake.wait(pause)
            self._wake.clear()

    def _watch_owners(self) -> None:
        """The owners' thread: ends leases of which every owner is dead."""
        while True:
            time.sleep(self._table.limits.sweep_s)
            try:
                self._sweep()
            except Exception:
                # A sweep that fails (Ray is shutting down, an owner answers oddly) must not end all later ones.
                logger.warning("a sweep for dead owners failed; the next one tries again", exc_info=True)

    def _sweep(self) -> None:
        with self._lock:
            samples = self._table.owners()
        silent = _silent_owners(samples)
        # One silence may be the network's; a dead owner is silent for good.
        self._misses = {owner: self._misses.get(owner, 0) + 1 for owner in silent}
        with self._lock:
            for owner, misses in self._misses.items():
                if misses >= _MISSES_UNTIL_DEAD and (ended := self._table.bury(owner)):
                    logger.info("%d lease(s) ended, as the process that owned their objects is dead", ended)


def _silent_owners(samples: dict[bytes, Ref]) -> set[bytes]:
    """Those of the owners that can't be asked about their sample any more.

    All are asked in one call. If one of them hangs the whole call runs into its timeout; then halves are asked, until the one that
    hangs is alone. One that hangs isn't dead.
    """
    if not samples:
        return set()
    try:
        answered = _ray.with_living_owner(list(samples.values()), _PROBE_TIMEOUT_S)
    except TimeoutError:
        if len(samples) == 1:
            return set()
        rows = list(samples.items())
        half = len(rows) // 2
        return _silent_owners(dict(rows[:half])) | _silent_owners(dict(rows[half:]))
    return {owner for owner, ref in samples.items() if ref not in answered}
