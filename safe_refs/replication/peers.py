"""A shard's calls to the other shards of its registry: news, recovery after a restart, moves when the registry grows.

All of it runs in one thread of the shard's. What always holds: the rules (`replication`) are touched under the shard's lock only, and
no call is made under it; what could not be delivered is still owed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import _ray
from .leases import LeaseTable
from .replication import Parcel, Replica
from .topology import actor_name

logger = logging.getLogger("safe_refs.registry")

_MOST_AT_ONCE = 200  # leases in a parcel; a few milliseconds of the receiver's time
_CALL_TIMEOUT_S = 10.0
_RECOVERY_TIMEOUT_S = 30.0  # a peer that isn't back by then is not waited for
_PAUSE_S = 0.1


class Peers:
    """What the peers' thread of a shard does.

    Args:
        registry: name of the registry.
        replica: the shard's side of replication.
        table: what it holds.
        lock: guards both.
        using: held while this thread has references in its hands.
        pack: a parcel of some leases, for another shard. Called under both locks.
        unpack: take a parcel. Called under both locks.
        passed_on: another shard has got some leases from here.
    """

    def __init__(
        self,
        registry: str,
        replica: Replica[Any],
        table: LeaseTable[Any],
        lock: threading.Lock,
        using: threading.Lock,
        pack: Callable[[Sequence[bytes]], Parcel],
        unpack: Callable[[Parcel], None],
        passed_on: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._registry = registry
        self._replica = replica
        self._table = table
        self._lock = lock
        self._using = using
        self._pack = pack
        self._unpack = unpack
        self._passed_on = passed_on
        self._handles: dict[int, Any] = {}

    def recover(self) -> bool:
        """Get back from the others what this shard held; True if leases may be lost, as too few could tell."""
        deadline = time.monotonic() + _RECOVERY_TIMEOUT_S
        while self._replica.to_hear and time.monotonic() < deadline:
            for shard in sorted(self._replica.to_hear):
                begun, heard = time.monotonic(), self._hear(shard)
                if heard is not None:
                    logger.info("%d lease(s) from shard %d in %.2f s", heard, shard, time.monotonic() - begun)
            if self._replica.to_hear:
                time.sleep(_PAUSE_S)
        with self._lock:
            lossy = self._replica.settle()
        if lossy:
            logger.warning(
                "shard %d of registry %r has restarted, and the others could not tell all that it held: leases may be lost",
                self._replica.shard,
                self._registry,
            )
        return lossy

    def _hear(self, shard: int) -> int | None:
        """Take from one other shard what it shares with this one; None if it can't be asked now."""
        told = self._call(shard, "shared_with", self._replica.shard)
        if told is None:
            return None
        leases, complete = told
        for start in range(0, len(leases), _MOST_AT_ONCE):
            if not self._each(leases[start : start + _MOST_AT_ONCE], partial(self._fetch, shard)):
                return None
        if self._call(shard, "told", self._replica.shard, default=True) is None:
            return None
        with self._lock:
            self._replica.hear(shard, complete)
        return len(leases)

    def tell(self) -> bool:
        """Deliver news; whether some are owed still."""
        with self._lock:
            owing = self._replica.owing()
        for shard in owing:
            while True:
                with self._lock:
                    news = self._replica.take_news(shard, _MOST_AT_ONCE)
                if not news:
                    break
                if not self._deliver(shard, news):
                    with self._lock:
                        self._replica.give_back(shard, news)
                    break
        with self._lock:
            return bool(self._replica.owing())

    def move(self) -> None:
        """The registry has grown: give leases to the shards that hold them from now on, and let go of those that are theirs alone."""
        with self._lock:
            waiting = self._replica.misplaced()
        moved = 0
        while waiting:
            batch, waiting = waiting[:_MOST_AT_ONCE], waiting[_MOST_AT_ONCE:]
            by_shard: dict[int, list[bytes]] = {}
            for lease in batch:
                for shard in self._replica.newcomers(lease):
                    by_shard.setdefault(shard, []).append(lease)
            for shard, leases in by_shard.items():
                while not self._deliver(shard, leases):
                    time.sleep(_PAUSE_S)
            with self._lock:
                moved += self._replica.drop_moved(batch)
        logger.info("shard %d has moved %d lease(s) away", self._replica.shard, moved)

    def look_again(self) -> None:
        """Tell all others that the topology has changed."""
        for shard in self._replica.others():
            self._call(shard, "look_again")

    def _deliver(self, shard: int, leases: Sequence[bytes]) -> bool:
        """Tell a shard what there is to say of some leases now."""

        def tell(some: Sequence[bytes]) -> bool:
            def call(handle: Any) -> Any:
                with self._using, self._lock:
                    return handle.receive.remote(self._pack(some), self._table.epoch, self._table.generation)

            return bool(self._call(shard, call))

        try:
            return self._each(leases, tell)
        finally:
            self._passed_on(leases)

    def _fetch(self, shard: int, leases: Sequence[bytes]) -> bool:
        """Take what a shard says of some leases."""
        return bool(self._call(shard, "parcel", leases, take=self._unpack_reply))

    def _each(self, leases: Sequence[bytes], what: Callable[[Sequence[bytes]], bool]) -> bool:
        """Do something for leases together, and without those that hold what can't be opened any more; whether it was done."""
        try:
            return what(leases)
        except _ray.UnopenedActorError:
            if len(leases) == 1:
                logger.info(
                    "lease %s holds an actor of a job that has ended: it stays where it is", leases[0][:4].hex()
                )
                return True
        half = len(leases) // 2
        return self._each(leases[:half], what) and self._each(leases[half:], what)

    def _unpack_reply(self, reply: Any) -> bool:
        with self._using:
            parcel = Parcel(*_ray.get(reply, _CALL_TIMEOUT_S))
            with self._lock:
                self._unpack(parcel)
            del parcel
        return True

    def _call(
        self,
        shard: int,
        method: str | Callable[[Any], Any],
        *args: Any,
        default: Any = None,
        take: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Call another shard and wait for its answer; None if there is none now.

        Args:
            shard: which.
            method: its name; or what calls it, given the handle.
            args: its arguments.
            default: the answer where it is None.
            take: what fetches the answer, once it is there; otherwise it is fetched here.
        """
        import ray

        try:
            handle = self._handles.get(shard)
            if handle is None:
                name = actor_name(self._registry, shard)
                handle = self._handles[shard] = ray.get_actor(name, namespace=_ray.NAMESPACE)
            waiting = method(handle) if callable(method) else getattr(handle, method).remote(*args)
            if take is not None:
                ray.wait([waiting], timeout=_CALL_TIMEOUT_S, fetch_local=False)
            reply = _ray.get(waiting, _CALL_TIMEOUT_S) if take is None else take(waiting)
        except ray.exceptions.RayTaskError:
            raise
        except (ValueError, ray.exceptions.RayError):
            self._handles.pop(shard, None)
            return None
        return default if reply is None else reply
