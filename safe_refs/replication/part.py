"""What replication adds to a shard: it follows the topology, and agrees with the other holders of each lease.

What always holds: the rules (`rules.Rules`) are used under the shard's lock only; nothing here waits for another shard, which the
peers' thread does (`peers.Peers`); only shard 0 writes the topology of a registry that runs.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from .._ray import actors, cluster, requests, workers
from ..bounds import LeaseId, Name, Order, Range, ShardNumber
from ..config import MOST_SHARDS, Limits
from ..errors import RegistryUnavailableError, SafeRefsError
from ..registry.hooks import Began, Loop, ShardPart, remote
from ..registry.lease import Lease
from ..registry.records import Identity
from ..registry.shard import Shard, actor_name
from ..registry.wire import NotNow, Refused
from . import control_store
from .control_store import Joined
from .peers import Peers
from .records import Records, check_sizes
from .rules import Rules
from .topology import Topology

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_WRITES_WITHIN_S = 1.0  # another thread's write of the topology
_FOUND_S = 1.0  # for Ray's control service, when a shard is looked up


class Growth(enum.Enum):
    """How far a growth is that was asked for.

    DONE: there are so many shards, and every lease is in its place. UNDER_WAY: leases are moving. WAIT: shard 0 can't begin it yet,
    because another growth is under way, or because it has just restarted; ask again.
    """

    DONE = 1
    UNDER_WAY = 2
    WAIT = 3


class Replication(ShardPart):
    """The part of a shard whose registry has, or may get, several.

    Args:
        shard: of which.
        joined: what the control store said when it started.
    """

    def __init__(self, shard: Shard, joined: Joined) -> None:
        self._shard = shard
        self._rules: Rules[Ref] = Rules(shard.number, joined.topology, shard.table, joined.restarted, time.monotonic)
        self._peers = Peers(shard, self, self._rules)
        self._writing = threading.Lock()  # guards the decision that the topology is to change, and its writing
        self._unsure: Topology | None = None  # the last that was to be written, and may get into the store yet
        self.limits_changed()

    # What happens to leases here, under the shard's lock.

    def pinned(self, lease: bytes, began: Began) -> None:
        """See `ShardPart`, as for all below. Clients pin at all holders; one that came back may have missed it."""
        if self._rules.pinned(lease, from_shard=began.from_shard):
            self._peers.wake()

    def changed(self, leases: Sequence[bytes]) -> None:
        """The other holders are owed it."""
        if self._rules.changed(leases):
            self._peers.wake()

    def replaced(self, lease: bytes, former: Sequence[Ref]) -> None:
        """Other holders make copies of their own, except those that came back meanwhile."""
        if self._rules.replaced(lease):
            self._peers.wake()

    def lost(self, leases: Sequence[bytes]) -> None:
        """Other holders may still have it, and are asked for it."""
        for shard, theirs in self._rules.lost(leases).items():
            self._peers.want_back(shard, theirs)

    def limits_changed(self) -> None:
        """The table gets this shard's share."""
        topology = self._rules.topology
        self._shard.table.set_limits(self._shard.limits.share(topology.shards, topology.replicas))

    def excuse(self, lease: bytes, use: bytes, refusal: SafeRefsError) -> Refused | None:
        """A shard that recovers does not know what it doesn't have; and another holder may have granted this very use."""
        return self._rules.excuse(lease, use, refusal)

    def figures(self) -> Mapping[str, int]:
        """A shard that recovers, or whose registry grows, counts as recovering."""
        topology = self._rules.topology
        is_recovering = self._rules.is_recovering or bool(topology.before)
        return {"shards": topology.shards, "replicas": topology.replicas, "recovering": int(is_recovering)}

    # Without the lock.

    def admit(self, version: int) -> NotNow | None:
        """A process that goes by another topology has to look it up again. If it is a newer one, it is this shard that looks."""
        if version > self._rules.topology.version:
            self.look()
        return NotNow.STALE if self._rules.is_stale(version) else None

    def threads(self) -> Sequence[Loop]:
        """The peers' thread."""
        return (Loop("peers", self._peers.run),)

    def closing(self, patience_s: float) -> None:
        """Not in the middle of writing a topology: the process that closes the registry is about to delete it."""
        if self._writing.acquire(timeout=max(patience_s, 0.0)):
            self._writing.release()
        self._peers.wake()

    # Calls from processes.

    @remote
    def repair(self, leases: Sequence[LeaseId], shards: Sequence[ShardNumber]) -> bool:
        """Those shards don't have these leases, or have lost them: this one passes them on as soon as it can."""
        self._check_others(shards)
        living = self._with_living_copies(leases)
        with self._shard.lock:
            self._rules.missed(living, shards)
        self._peers.wake()
        return True

    @remote
    def grow(self, shards: Annotated[int, Range(1, MOST_SHARDS)]) -> Growth:
        """Let the registry grow to so many shards, which run already. Only shard 0 is asked, again and again until it is DONE."""
        if not self.look():
            return Growth.WAIT
        topology = self._rules.topology
        if topology.shards >= shards:
            return Growth.UNDER_WAY if topology.before else Growth.DONE
        if self._rules.is_recovering or not self._run(range(topology.shards, shards)):
            return Growth.WAIT
        with self._shard.lock:
            new = self._rules.grow(shards)
        return Growth.UNDER_WAY if new is not None and self._write(new) else Growth.WAIT

    # Calls from other shards.

    @remote
    def look_again(self) -> bool:
        """The topology has changed; whether it could be looked up."""
        return self.look()

    @remote
    def shared_with(self, shard: ShardNumber) -> tuple[list[bytes], bool]:
        """For a shard that came back: ids of what it should hold, and whether that is all that this one ever shared with it."""
        self._check_others([shard])
        with self._shard.lock:
            return self._rules.shared_with(shard)

    @remote
    def records(self, leases: Sequence[LeaseId]) -> Records:
        """What there is to say of some leases; nothing of those that the asking shard could not open."""
        openable = self._openable(leases)
        with self._shard.lock:
            found = self.packed(openable)
            self.passed_on(openable)
        return found

    @remote
    def peer_is_complete(self, shard: ShardNumber) -> bool:
        """A shard that came back has taken all that it should hold."""
        with self._shard.lock:
            self._rules.shared_all(shard)
        return True

    @remote
    def receive(self, records: Records, identity: Identity) -> bool:
        """News from another shard, and the registry's identity as it knows it: if that is a newer one, it is looked up."""
        if not self._rules.others():
            self._check_others([1])
        check_sizes(records)
        if identity.generation > self._shard.table.identity.generation:
            try:
                identity = control_store.identity(self._shard.registry) or self._shard.table.identity
            except RegistryUnavailableError:
                return False
        self._shard.parts.pinning(b"", [item for record in records.live for item in record.items])
        with self._shard.lock:
            self.unpack(records, identity)
        return True

    @remote
    def has_moved(self, shard: ShardNumber, version: int) -> int:
        """A shard has moved all leases for the growth of that version; the version that this shard, the first, goes by."""
        with self._shard.lock:
            new = self._rules.has_moved(shard, version)
        if new is not None:
            self._write(new)
        return self._rules.topology.version

    @remote
    def change_limits(self, changes: Mapping[Name, Order | None]) -> tuple[Limits, Limits] | NotNow:
        """The first shard changes the registry's limits: all of them, as they were and as they are then."""
        if not self._writing.acquire(timeout=_WRITES_WITHIN_S):
            return NotNow.RECOVERING
        try:
            found = None if self._shard.is_closing else control_store.change_limits(self._shard.registry, changes)
        except RegistryUnavailableError:
            return NotNow.RECOVERING
        finally:
            self._writing.release()
        if found is None:
            return NotNow.CLOSING
        self._shard.set_limits(found[1])
        return found

    # For the peers' thread.

    def look(self) -> bool:
        """Look the topology up. If Ray's control service doesn't answer, this shard goes by what it knows, and returns False."""
        try:
            found = control_store.topology(self._shard.registry)
        except RegistryUnavailableError:
            logger.warning("Ray's control service does not answer: the topology could not be looked up")
            return False
        with self._shard.lock:
            self._take(found)
        return True

    def packed(self, leases: Sequence[bytes]) -> Records:
        """What another shard is to be told of leases. Under the lock."""
        return self._rules.records(leases)._replace(sender=workers.own_address())

    def passed_on(self, leases: Sequence[bytes]) -> None:
        """Another shard has got these leases' records. Under the lock."""
        for lease in leases:
            if items := self._shard.table.items_of(lease):
                self._shard.parts.resolved(lease, items, soon=True)

    def unpack(self, records: Records, identity: Identity | None = None) -> None:
        """Merge another shard's records. Under the lock.

        What is new here, and copies that have taken the place of what was here, came from the sender's process: the leases depend on
        it until the owners know this one.
        """
        shard = self._shard
        live = [record._replace(items=tuple(actors.interned(record.items))) for record in records.live]
        undurable = {
            record.lease
            for record in live
            if record.terms.durable is not None
            and (held := shard.table.live.get(record.lease)) is not None
            and held.terms.durable is None
        }
        from_sender = undurable.union(self._rules.received(records._replace(live=live), identity))
        for record in live:
            if record.lease in shard.table.live:
                borrower = records.sender if record.lease in from_sender else b""
                shard.parts.pinned(record.lease, Began(borrower, from_shard=True))
        self._peers.wake()

    def _openable(self, leases: Sequence[bytes]) -> list[bytes]:
        """Those of these leases that hold no actor with a dead owner: another shard could not open its handle, and the lease ends."""
        owners, dead = self._owners(leases, lambda held: any(map(actors.is_actor_handle, held.items)))
        return [lease for lease in leases if dead.isdisjoint(owners.get(lease, ()))]

    def _with_living_copies(self, leases: Sequence[bytes]) -> list[bytes]:
        """Without durable leases whose copies died with their owner: two shards would give those to each other for ever."""
        owners, dead = self._owners(leases, lambda held: held.terms.durable is not None)
        return [lease for lease in leases if not owners.get(lease) or not owners[lease] <= dead]

    def _owners(
        self, leases: Sequence[bytes], matters: Callable[[Lease[Ref]], bool]
    ) -> tuple[dict[bytes, set[bytes]], set[bytes]]:
        """The owners of what those leases hold here that matter, and which of these owners are dead."""
        owners: dict[bytes, set[bytes]] = {}
        with self._shard.lock:
            for lease in leases:
                held = self._shard.table.find(lease)
                if held is not None and matters(held):
                    owners[lease] = set(filter(None, held.owners))
        return owners, {owner for owner in set[bytes]().union(*owners.values()) if workers.is_surely_dead(owner)}

    def _check_others(self, shards: Sequence[int]) -> None:
        """Whether these are other shards of this registry, by what the control store says if not by what this one knows.

        Raises:
            ValueError: one is not.
        """
        if not set(shards) <= set(self._rules.others()):
            self.look()
        if not set(shards) <= set(self._rules.others()):
            raise ValueError(
                f"shard {self._shard.number} has no such peer: its registry has {len(self._rules.others()) + 1}"
            )

    def _run(self, shards: Iterable[int]) -> bool:
        """Whether these shards run, as far as Ray's control service answers."""
        try:
            for number in shards:
                cluster.named_actor(actor_name(self._shard.registry, number), Shard, requests.soon(_FOUND_S))
        except (ValueError, RegistryUnavailableError):
            return False
        return True

    def _write(self, new: Topology) -> bool:
        """Write the next topology, and go by it; False if another is next, or the registry is being shut down."""
        if not self._writing.acquire(timeout=_WRITES_WITHIN_S):
            return False
        try:
            if self._unsure is not None and self._unsure.version == new.version:
                new = self._unsure  # it may be in the store by now, or get there yet, and a version is one topology's
            is_next = new.version == self._rules.topology.version + 1
            if not is_next or self._shard.is_closing:
                return False
            self._unsure = new
            if not control_store.change(self._shard.registry, new):
                return False
            with self._shard.lock:
                self._take(new)
        except RegistryUnavailableError:
            return False
        finally:
            self._writing.release()
        return True

    def _take(self, found: Topology | None) -> None:
        if self._rules.take_topology(found):
            self.limits_changed()
            self._peers.wake()
            if self._shard.number == 0:
                self._peers.announce()  # also one that it wrote without getting the answer
