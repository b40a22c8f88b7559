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
from .leases import LeaseTable
from .records import LeaseInfo, Origin, Query, RegistryStats, Terms

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_TIMEOUT_S = 1.0  # for questions to owners; what is asked about is held as long as the question takes
_EXPIRED_AT_ONCE = 100  # leases; about a millisecond
_BREATH_S = 0.001
_LONGEST_PAUSE_S = 3600.0  # far longer waits overflow
_AGAIN_TIMEOUT_S = 0.1
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
        self._identity = self._table.epoch + self._table.generation.to_bytes(8, "big")
        self._closing = False
        self._hanging: set[bytes] = set()
        self._wake = threading.Event()
        self._wake_owners = threading.Event()
        threading.Thread(target=self._keep_time, name="safe_refs-time", daemon=True).start()
        threading.Thread(target=self._watch_owners, name="safe_refs-owners", daemon=True).start()

    def hello(self) -> bytes:
        """Epoch and generation, 8 bytes each."""
        return self._identity

    def pin(self, call: tuple[bytes, Sequence[Ref], tuple[Any, ...], tuple[Any, ...]]) -> bytes | SafeRefsError | None:
        """Begin a lease; answers with epoch and generation, 8 bytes each. None: this actor is closing, and holds nothing new."""
        if self._closing:
            return None
        lease, refs, wanted, maker = call
        terms, owners = Terms(*wanted), [_ray.owner_of(ref) for ref in refs]
        sizes = self._weigh(refs) if self._table.usage.limits.weighs else {}
        try:
            with self._lock:
                if sizes:
                    self._table.usage.learn(sizes)
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

    def renew(self, lease: bytes, epoch: bytes, generation: int, ttl: float | None) -> SafeRefsError | None:
        """Give a lease a new time to live."""
        try:
            with self._lock:
                self._table.renew(lease, epoch, generation, ttl)
        except SafeRefsError as refusal:
            return refusal
        self._wake.set()
        return None

    def expires_in_s(self, lease: bytes, epoch: bytes, generation: int) -> float | SafeRefsError | None:
        """Seconds until a lease's ttl runs out; None without one."""
        try:
            with self._lock:
                return self._table.expires_in_s(lease, epoch, generation)
        except SafeRefsError as refusal:
            return refusal

    def leases(self, query: tuple[Any, ...], with_sizes: bool) -> tuple[list[LeaseInfo], tuple[float, int] | None]:
        """One page of live leases, with their objects' sizes if asked for, and where the next page begins."""
        asked = Query(*query)
        if asked.sort == "bytes" or asked.min_bytes is not None:
            # To choose by size one has to know them all.
            with self._lock:
                everything = list(set(self._table.items()))
            sizes = self._weigh(everything)
            del everything
            with self._lock:
                page = self._table.page(asked, sizes)
            return page.infos, page.after
        with self._lock:
            page = self._table.page(asked)
        if not with_sizes:
            return page.infos, page.after
        sizes = self._weigh(list({ref for refs in page.items for ref in refs}))
        infos = [
            dataclasses.replace(info, size_bytes=sum(sizes.get(ref, 0) for ref in set(refs)))
            for info, refs in zip(page.infos, page.items, strict=True)
        ]
        return infos, page.after

    def stats(self) -> RegistryStats:
        """Figures since the start."""
        with self._lock:
            return self._table.stats()

    def set_limits(self, limits: tuple[Any, ...]) -> None:
        """Take other limits from now on; what is held stays."""
        with self._lock:
            self._table.set_limits(Limits(*limits))
        self._wake_owners.set()

    def close(self, origin: Origin) -> int:
        """Let go of everything, and wait until Ray has seen it; how many leases that were.

        A process that resolved a reference from here is known to its owner only once this one has let go in order: killing the
        actor before that would take those live references along.
        """
        self._closing = True
        with self._lock:
            ids = {ref.hex() for ref in self._table.items()}
            ended = self._table.end_all(origin)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while ids and time.monotonic() < deadline and _ray.any_counted(ids):
            time.sleep(0.02)
        return ended

    def _weigh(self, refs: Sequence[Ref]) -> dict[Ref, int]:
        """Sizes of objects, as far as their owners tell them in time. An owner that is known to hang is not asked."""
        asked = [ref for ref in refs if not self._hanging or _ray.owner_of(ref) not in self._hanging]
        return _ray.sizes(asked, _PROBE_TIMEOUT_S)

    def _keep_time(self) -> None:
        """The time thread: ends leases when their ttl runs out. A few at a time, so that calls come in between."""
        while True:
            with self._lock:
                self._table.expire(_EXPIRED_AT_ONCE)
                pause = self._table.next_deadline_in_s()
            if pause == 0:
                time.sleep(_BREATH_S)
            else:
                self._wake.wait(_LONGEST_PAUSE_S if pause is None else min(pause, _LONGEST_PAUSE_S))
                self._wake.clear()

    def _watch_owners(self) -> None:
        """The owners' thread: ends leases of which every owner is dead, and weighs what could not be weighed before."""
        while True:
            self._wake_owners.wait(min(self._table.usage.limits.sweep_s, _LONGEST_PAUSE_S))
            self._wake_owners.clear()
            try:
                self._sweep()
            except Exception:
                # A sweep that fails (Ray is shutting down, an owner answers oddly) must not end all later ones.
                logger.warning("a sweep for dead owners failed; the next one tries again", exc_info=True)

    def _sweep(self) -> None:
        with self._lock:
            samples = self._table.owners()
        silent, self._hanging = _ask_owners(samples, self._hanging)
        # Silence may be the network's, or that of a process that was stopped for a while. Death is what Ray's control service says.
        dead = [owner for owner in silent if _ray.is_surely_dead(owner)]
        with self._lock:
            for owner in dead:
                if ended := self._table.bury(owner):
                    logger.info("%d lease(s) ended, as the process that owned their objects is dead", ended)
            self._table.expire(0)  # forgets what was remembered long enough
            unweighed = self._table.usage.unweighed()
        if unweighed:  # tasks that were still at work when they were pinned
            sizes = self._weigh(unweighed)
            with self._lock:
                self._table.usage.learn({ref: size for ref, size in sizes.items() if ref in self._table.usage})


def _ask_owners(samples: dict[bytes, Ref], hanging_before: set[bytes]) -> tuple[set[bytes], set[bytes]]:
    """Ask owners about one of their objects each; those that can't be asked any more, and those that hang.

    One call an owner, not one for all: see `_ray._locations`. One that hung before is given less time.
    """
    silent: set[bytes] = set()
    hanging: set[bytes] = set()
    while samples:
        owner, ref = samples.popitem()  # a sample is kept no longer than the question about it takes
        try:
            if not _ray.owner_answers(ref, _AGAIN_TIMEOUT_S if owner in hanging_before else _PROBE_TIMEOUT_S):
                silent.add(owner)
        except TimeoutError:
            hanging.add(owner)
    return silent, hanging
