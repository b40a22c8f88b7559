"""The Ray actor that holds leases: a `LeaseTable` behind a lock, and one small thread for what happens by time.

A plain actor, one call at a time (an async one costs a fifth more per call). References come and go inside lists, so that Ray tracks
them as borrowed and never fetches a value here; the actor never deserializes users' data. Refusals are returned, not raised: an
exception that crosses a task's border is wrapped and costs ten times the call.

It restarts when it crashes (`max_restarts=-1`), empty. With replicas it gets what it held from the other shards before it says "not
found"; without, or if they can't tell, the registry has a new epoch: leases from before may be lost, and it says so.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray
from .._ray import Told
from ..config import Limits
from ..errors import LeaseLostError, LeaseNotFoundError, SafeRefsError
from . import book, couriers
from .adoption import adopter
from .boxes import BOXED, Box, box
from .copying import Unfit, Why, mortal_actor
from .leases import LeaseTable, Page
from .peers import Peers
from .records import LeaseInfo, Origin, Query, RegistryStats, Terms, is_by_client
from .replication import Parcel, Replica
from .settling import Settler, Unsettled
from .topology import Topology, actor_name
from .wards import Wards
from .wire import unpacked

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_PROBE_TIMEOUT_S = 1.0  # for questions to owners; what is asked about is held as long as the question takes
_EXPIRED_AT_ONCE = 100  # leases; about a millisecond
_BREATH_S = 0.001
_LONGEST_PAUSE_S = 3600.0  # far longer waits overflow
_AGAIN_TIMEOUT_S = 0.1
_CLOSE_TIMEOUT_S = 10.0
_CLOSE_PAUSE_S = 0.02
_PEERS_PAUSE_S = 0.2
_PEERS_BREATH_S = 0.05
_MOST_PASSED = 10_000
_ADOPTER_S = 5.0  # then it is looked up anew, in case it was another's, and has ended

# Answers that are no results; bytes, as Ray passes them quickest.
STALE = b"look the topology up again"
RECOVERING = b"ask again, or others: this shard does not yet know all that it should"
IN_TURN = b"ask the replicas one after the other"
DOUBTFUL = b"ask again: it hung on a process that is dead, and what it held may be gone"


def _bare(refusal: SafeRefsError) -> SafeRefsError:
    """An error to be answered: its traceback would keep the references of this call, until the next garbage collection."""
    return refusal.with_traceback(None)


class Yours(NamedTuple):
    """The lease has ended by the very use that is asked for: another replica granted it, and has told this one already.

    Attributes:
        refusal: what anybody else would hear.
    """

    refusal: SafeRefsError


class Shard:
    """The actor's class. `client` and other shards are the only callers.

    Each call names the version of the topology that its caller goes by; one that goes by an old one is sent to look again, before
    anything is done.

    Args:
        registry: name of the registry that it is a part of.
        limits: what the whole registry may hold at most.
        shard: which part it is, from 0.
        anchors: whether it makes owners know who holds their objects; see `couriers`.
    """

    def __init__(self, registry: str, limits: Limits, shard: int = 0, anchors: bool = True) -> None:
        self._registry = registry
        self._limits = limits
        import ray

        epoch, generation, restarted = book.join(registry, shard)
        topology = book.topology(registry) or Topology(0, shards=shard + 1)
        if restarted and topology.replicas == 1:
            epoch, generation = book.new_epoch(registry)  # nobody else holds what this shard held
            restarted = False
        self._lock = threading.Lock()
        # Held by threads other than the one for calls while they have references in their hands, so that `touch` may know that
        # nobody has. Taken before the other lock.
        self._using = threading.Lock()
        self._table: LeaseTable[Ref] = LeaseTable(
            registry=registry,
            epoch=epoch,
            generation=generation,
            clock=time.monotonic,
            wall=time.time,
            limits=limits.share(topology.shards, topology.replicas),
            alone=topology.replicas == 1,
        )
        self._replica = Replica(shard, topology, self._table, restarted, time.monotonic)
        self._identify()
        self._recovering = restarted
        self._closing = False
        self._hanging: set[bytes] = set()
        self._anchors = anchors and _ray.can_anchor()
        self._unsettled = Unsettled(time.monotonic)
        me = ray.get_runtime_context().current_actor
        self._settler = Settler(me, self._table, self._unsettled, self._lock, self._using)
        self._wards = Wards(time.monotonic)
        self._adopter: tuple[float, Any] = (-_ADOPTER_S, None)  # when it was looked up, and its handle
        self._own_copies: set[bytes] = set()  # durable leases of which this shard's own adopter has made the copies
        self._passed: set[bytes] = set()  # objects that were handed out since their last round
        self._wake = threading.Event()
        self._wake_owners = threading.Event()
        self._wake_peers = threading.Event()
        threading.Thread(target=self._keep_time, name="safe_refs-time", daemon=True).start()
        threading.Thread(target=self._watch_owners, name="safe_refs-owners", daemon=True).start()
        threading.Thread(target=self._talk_to_peers, name="safe_refs-peers", daemon=True).start()
        if self._anchors:
            threading.Thread(target=self._settler.run, name="safe_refs-settling", daemon=True).start()

    def hello(self) -> bytes:
        """Epoch and generation, 8 bytes each."""
        return self._identity

    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return _ray.node_and_process()

    def pin(
        self,
        call: tuple[bytes, Sequence[Ref]],
        box: Sequence[Ref] | None = None,
    ) -> bytes | SafeRefsError | None:
        """Begin a lease; answers with epoch and generation, 8 bytes each. None: this actor is closing, and holds nothing new.

        Args:
            call: packed: the lease, its terms, who makes it, the topology's version, and the address of the process that makes it, if
                it doesn't own all of the objects, and the `Wish` for copies; and the references.
            box: or the references, where they are many, as they come in a box.
        """
        if self._closing:
            return None
        told, refs = call
        lease, wanted, maker, version, borrower, wish = unpacked(told)
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        return self._pin(lease, refs if box is None else box, wanted, maker, borrower, wish)

    def pin_many(
        self,
        refs: Sequence[Ref],
        calls: Sequence[tuple[bytes, int, tuple[Any, ...], tuple[Any, ...], bytes, tuple[Any, ...] | None]],
        version: int,
    ) -> list[bytes | SafeRefsError] | bytes | None:
        """Begin several leases, each of so many of the references, in order; what `pin` answers for each."""
        if self._closing:
            return None
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        answers: list[bytes | SafeRefsError] = []
        at = 0
        for lease, count, wanted, maker, borrower, wish in calls:
            answers.append(self._pin(lease, refs[at : at + count], wanted, maker, borrower, wish))
            at += count
        return answers

    def _pin(
        self,
        lease: bytes,
        refs: Sequence[Ref],
        wanted: tuple[Any, ...],
        maker: tuple[Any, ...],
        borrower: bytes,
        wish: tuple[Any, ...] | None,
    ) -> bytes | SafeRefsError:
        refs = _ray.interned(refs)
        terms, owners = Terms(*wanted), [_ray.owner_of(ref) for ref in refs]
        if borrower and _ray.owns_all(borrower, owners):
            borrower = b""  # a Ray Client, which could not tell
        if borrower and self._passed:
            # The answer to this call hands what Ray knows here of who resolved these objects to the borrower: tell the owners first.
            waiting = [ref for ref in _ray.touchable(refs) if _ray.id_of(ref) in self._passed]
            if waiting:
                self._forget_passed(waiting, self._settler.settle_now(waiting))
        sizes = self._weigh(refs) if self._table.usage.limits.weighs else {}
        try:
            with self._lock:
                if sizes:
                    self._table.usage.learn(sizes)
                self._table.pin(lease, refs, owners, terms, Origin(*maker))
                if self._replica.owe_returned([lease]):
                    self._wake_peers.set()
                if borrower:
                    self._unsettled.note(lease, borrower)
        except SafeRefsError as refusal:
            return _bare(refusal)
        if terms.ttl is not None:
            self._wake.set()
        if borrower:
            self._settler.nudge()
        if wish is not None:
            env, ttl, told = wish
            self._wish(lease, env, ttl, is_told=self._replica.shard in told)
        return self._identity

    def repair(self, leases: Sequence[bytes], shards: Sequence[int]) -> bool:
        """These leases could not be given to those shards when they were made: this one passes them on as soon as it can."""
        with self._lock:
            for shard in shards:
                self._replica.give_back(shard, leases)
        self._wake_peers.set()
        return True

    def resolve(self, call: bytes) -> list[Ref] | Box | SafeRefsError | Yours | bytes:
        """What a lease holds. With an empty use id, one that counts its uses is not resolved, but to be asked for in turn.

        Args:
            call: packed: the topology's version, and the arguments of `_resolve`.
        """
        version, *how = unpacked(call)
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        found = self._resolve(*how)
        return box(found) if isinstance(found, list) and len(found) >= BOXED else found

    def resolve_many(
        self, calls: Sequence[tuple[bytes, bytes, int, int | None, bool, tuple[Any, ...], bytes]], version: int
    ) -> tuple[list[int | SafeRefsError | Yours | bytes], list[Ref] | Box] | bytes:
        """What several leases hold: what `resolve` answers for each, but how many references in place of them, and them all."""
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        refs: list[Ref] = []
        answers: list[int | SafeRefsError | Yours | bytes] = []
        for call in calls:
            lease, take = call[0], call[4]
            with self._lock:
                spends = take or self._table.ask_in_turn(lease)
                alone = spends and any(map(_ray.is_actor_handle, self._table.items_of(lease)))
            # An actor whose job has just ended spoils the whole answer: what can't be had twice isn't had in one with others.
            found = IN_TURN if alone else self._resolve(*call)
            if isinstance(found, list):
                refs += found
                answers.append(len(found))
            else:
                answers.append(found)
        return answers, box(refs) if len(refs) >= BOXED else refs

    def _resolve(
        self,
        lease: bytes,
        epoch: bytes,
        generation: int,
        slot: int | None,
        take: bool,
        asker: tuple[Any, ...],
        use: bytes,
    ) -> list[Ref] | SafeRefsError | Yours | bytes:
        borrower = self._unsettled.hangs_on(lease)
        if borrower and self._anchors and _ray.is_surely_dead(borrower):
            return DOUBTFUL
        if self._replica.topology.replicas > 1 and self._has_lost_copies(lease):
            return DOUBTFUL
        try:
            with self._lock:
                counts = self._table.ask_in_turn(lease)
                if counts and not use:
                    return IN_TURN
                items = self._table.resolve(
                    lease, epoch, generation, slot=slot, take=take, origin=Origin(*asker), use=use
                )
                if counts or take:
                    self._tell_peers([lease])
                if not take:
                    self._pass_on([lease])
                if self._anchors:
                    self._passed.update([_ray.id_of(item) for item in items])
                return list(items)
        except (LeaseNotFoundError, LeaseLostError) as refusal:
            return RECOVERING if self._recovering else _bare(refusal)
        except SafeRefsError as refusal:
            with self._lock:
                return Yours(_bare(refusal)) if self._table.ended_by(lease, use) else _bare(refusal)

    def _has_lost_copies(self, lease: bytes) -> bool:
        """Whether the owner of a durable lease's copies is dead, which the next sweep will see. Another replica has its own."""
        with self._lock:
            owners = self._table.owners_of(lease) if self._table.durability_of(lease) is not None else ()
        return any(_ray.is_surely_dead(owner) for owner in owners)

    def release(self, rows: Sequence[tuple[Sequence[bytes], Origin]], version: int) -> list[int] | bytes:
        """End leases, each row by whom it says; for each lease whether that ended it."""
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        with self._lock:
            ended = [self._table.release(lease, origin) for leases, origin in rows for lease in leases]
            for leases, _ in rows:
                self._tell_peers(leases)
        return ended

    def make_durable(
        self, rows: Sequence[tuple[bytes, bytes, int, float | None, bool]], env: str, version: int
    ) -> tuple[list[bool | Unfit | SafeRefsError | bytes], list[Ref | None]] | bytes:
        """Have leases hold copies of what they hold; of each whether it does, or why it can't. To be asked again till then.

        Also answers with what to wait for before that, for each that is being copied: it says whether the copies are held by then.

        Args:
            rows: of each lease its id, epoch and generation as its payload names them, seconds to live from then on (None for what
                it has), and whether the adopter was told in vain, so that it has to be told again.
            env: what the tasks need that copy; see `_ray.surroundings`.
            version: the topology's.
        """
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        answers: list[bool | Unfit | SafeRefsError | bytes] = []
        for lease, epoch, generation, ttl, in_vain in rows:
            try:
                with self._lock:
                    self._table.check(lease, epoch, generation)
                    if in_vain:
                        self._wards.again(lease)
            except (LeaseNotFoundError, LeaseLostError) as refusal:
                answers.append(RECOVERING if self._recovering else _bare(refusal))
            except SafeRefsError as refusal:
                answers.append(_bare(refusal))
            else:
                answer = self._wish(lease, env, ttl)
                if answer is True and in_vain and self._replica.topology.replicas == 1 and self._has_lost_copies(lease):
                    answer = Unfit(Why.GONE, "the process that owned the copies has died")
                answers.append(answer)
        with self._lock:
            bells = [self._wards.bell(row[0]) for row in rows]
        return answers, bells

    def _wish(self, lease: bytes, env: str, ttl: float | None, *, is_told: bool = False) -> bool | Unfit:
        """Somebody wants a lease to be durable: whether it is, or why it can't be. The adopter is told, unless it has been."""
        env = sys.intern(env)  # many leases have the same
        with self._lock:
            durable = self._table.durability_of(lease) is not None
            begins = False if durable else self._wards.ask(lease, env, ttl)
        if begins is True and not is_told:
            self._adopt(lease, env)
        return begins if isinstance(begins, Unfit) else durable

    def still_adopting(self, leases: Sequence[bytes]) -> list[bytes]:
        """The adopter is at these leases: which of them are still wanted."""
        with self._lock:
            for lease in leases:
                if not self._table.items_of(lease):
                    self._wards.forget(lease)
            return self._wards.still(leases)

    def adopted(self, lease: bytes, result: list[Ref] | Unfit) -> bytes:
        """The adopter has made copies of what a lease holds, or couldn't; what `pin` answers if they are taken, or nothing."""
        if isinstance(result, Unfit):
            with self._lock:
                self._wards.fail(lease, result)
            return b""
        owners = [_ray.owner_of(ref) for ref in result]
        sizes = self._weigh(result) if self._table.usage.limits.weighs else {}
        with self._lock:
            done = self._wards.done(lease)
            if done is None:
                return b""
            if sizes:
                self._table.usage.learn(sizes)
            # Nothing hangs on the maker any more: the owner itself has brought the copies.
            self._unsettled.forget(lease)
            taken = self._table.replace(lease, result, owners, *done)
            if taken:
                self._own_copies.add(lease)
                # Another holder may have got the lease from here before, with the originals.
                if self._replica.owe_returned([lease]):
                    self._wake_peers.set()
                if self._replica.topology.before:
                    self._tell_peers([lease])
        self._wake.set()
        return self._identity if taken else b""

    def _adopt(self, lease: bytes, env: str) -> None:
        """Have the adopter copy what a lease holds."""
        import ray

        with self._lock:
            refs = list(self._table.items_of(lease))
        mortal = mortal_actor(refs)
        if mortal is not None:
            with self._lock:
                self._wards.fail(lease, mortal)
            return
        at_home = self._replica.topology.replicas > 1
        try:
            found_at, handle = self._adopter
            if time.monotonic() - found_at > _ADOPTER_S:
                handle = adopter(self._registry, self._replica.shard)
                self._adopter = (time.monotonic(), handle)
            bell = handle.adopt.remote(lease, refs, env, at_home)
        except (ValueError, ray.exceptions.RayError):
            logger.warning("the adopter could not be told of a lease; it is told again", exc_info=True)
            self._adopter = (-_ADOPTER_S, None)
            with self._lock:
                self._wards.again(lease)
            return
        with self._lock:
            self._wards.begun(lease, bell)

    def renew(
        self, lease: bytes, epoch: bytes, generation: int, ttl: float | None, renewals: int, version: int
    ) -> int | SafeRefsError | bytes:
        """Give a lease a new time to live; which renewal that was."""
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        try:
            with self._lock:
                number = self._table.renew(lease, epoch, generation, ttl, renewals)
                self._tell_peers([lease])
        except (LeaseNotFoundError, LeaseLostError) as refusal:
            return RECOVERING if self._recovering else _bare(refusal)
        except SafeRefsError as refusal:
            return _bare(refusal)
        self._wake.set()
        return number

    def expires_in_s(
        self, lease: bytes, epoch: bytes, generation: int, version: int
    ) -> float | SafeRefsError | bytes | None:
        """Seconds until a lease's ttl runs out; None without one."""
        if version != self._replica.topology.version and self._is_old(version):
            return STALE
        try:
            with self._lock:
                return self._table.expires_in_s(lease, epoch, generation)
        except (LeaseNotFoundError, LeaseLostError) as refusal:
            return RECOVERING if self._recovering else _bare(refusal)
        except SafeRefsError as refusal:
            return _bare(refusal)

    def leases(
        self, query: tuple[Any, ...], with_sizes: bool
    ) -> tuple[list[LeaseInfo], list[bytes], tuple[float, int] | None, float]:
        """One page of live leases, their objects' sizes if asked for, their marks, where the next page begins, and when that was.

        A mark is the same on every replica of a lease, and resolves nothing. The time is seconds since the epoch.
        """
        asked = Query(*query)
        if asked.sort == "bytes" or asked.min_bytes is not None:
            # To choose by size one has to know them all.
            with self._lock:
                everything = list(set(self._table.items()))
            sizes = self._weigh(everything)
            del everything
            with self._lock:
                page, now = self._table.page(asked, sizes), time.time()
            return self._with_hanging(page), page.marks, page.after, now
        with self._lock:
            page, now = self._table.page(asked), time.time()
        infos = self._with_hanging(page)
        if not with_sizes:
            return infos, page.marks, page.after, now
        sizes = self._weigh(list({ref for refs in page.items for ref in refs}))
        infos = [
            dataclasses.replace(info, size_bytes=sum(sizes.get(ref, 0) for ref in set(refs)))
            for info, refs in zip(infos, page.items, strict=True)
        ]
        return infos, page.marks, page.after, now

    def stats(self) -> RegistryStats:
        """This shard's figures since its start."""
        topology = self._replica.topology
        with self._lock:
            figures = self._table.stats()
            copies, unsettled = self._unsettled.copies(), len(self._unsettled)
        return dataclasses.replace(
            figures,
            shards=topology.shards,
            replicas=topology.replicas,
            recovering=int(self._recovering or bool(topology.before) or copies > 0),
            unsettled=unsettled,
        )

    def look_again(self) -> None:
        """The topology has changed."""
        self._is_old(0)

    def shared_with(self, shard: int) -> tuple[list[bytes], bool]:
        """For another shard that came back: ids of what it should hold, and whether that is all that this one ever shared with it."""
        with self._lock:
            return self._replica.shared_with(shard), self._replica.knows_of(shard)

    def parcel(self, leases: Sequence[bytes]) -> Parcel:
        """What there is to say of some leases."""
        leases = self._openable(leases)
        with self._lock:
            parcel = self._pack(leases)
            self._pass_on(leases, soon=True)
        return parcel

    def _openable(self, leases: Sequence[bytes]) -> list[bytes]:
        """Those of these leases without an actor whose owner is dead: another shard could not open its handle, and the lease ends."""
        with self._lock:
            owners = {
                lease: self._table.owners_of(lease)
                for lease in leases
                if any(map(_ray.is_actor_handle, self._table.items_of(lease)))
            }
        dead = {owner for owner in set[bytes]().union(*owners.values()) if _ray.is_surely_dead(owner)}
        return [lease for lease in leases if dead.isdisjoint(owners.get(lease, ()))]

    def told(self, shard: int) -> None:
        """Another shard has taken all that it should hold."""
        with self._lock:
            self._replica.told(shard)

    def receive(self, parcel: Parcel, epoch: bytes, generation: int) -> bool:
        """Another shard's news."""
        with self._lock:
            self._unpack(Parcel(*parcel))
            if generation > self._table.generation:
                self._table.begin_anew(epoch, generation)
                self._identify()
        self._wake.set()
        self._wake_peers.set()
        return True

    def hurry(self, leases: Sequence[bytes]) -> list[bytes]:
        """Anchor who gave or resolved these leases now; which of them are unsettled still."""
        with self._lock:
            waiting = [lease for lease in leases if self._unsettled.has(lease)]
            for lease in waiting:
                self._unsettled.note(lease, soon=True)
        self._settler.nudge()
        return waiting

    def hand_back(self, ids: Sequence[bytes], courier: int) -> list[Ref]:
        """Objects that some live lease holds, for a process whose courier didn't anchor it; no use of the leases.

        The courier gets them, too, so that their owners ask it: what it still knows of them comes to its end.
        """
        wanted = set(ids)
        with self._lock:
            leases = {id_: lease for lease in self._table.ids()[0] for id_ in self._held_ids(lease) if id_ in wanted}
            found = {
                ref.binary(): ref for lease in leases.values() for ref in _ray.objects(self._table.items_of(lease))
            }
            self._pass_on(list(dict.fromkeys(leases.values())), soon=True)
        refs = [ref for id_, ref in found.items() if id_ in wanted]
        key = os.urandom(8)
        couriers.hold(courier, key, refs)
        couriers.give(courier, [key])
        return refs

    def _held_ids(self, lease: bytes) -> list[bytes]:
        return [_ray.id_of(ref) for ref in self._table.items_of(lease)]

    def touch(self) -> list[int]:
        """Take the counts of the settler's batch to zero and up again. No other call is carried out meanwhile."""
        refs, told = self._settler.touch_batch()
        self._forget_passed(refs, told)
        return [state.value for state in told]

    def set_limits(self, limits: tuple[Any, ...]) -> None:
        """Take other limits from now on; what is held stays."""
        self._limits = Limits(*limits)
        self._share_limits()
        self._wake_owners.set()

    def close(self, origin: Origin, patience_s: float = _CLOSE_TIMEOUT_S) -> int:
        """Let go of everything, and wait until Ray has seen it, no longer than told; how many leases that were.

        A process that resolved a reference from here is known to its owner only once this one has let go in order: killing the
        actor before that would take those live references along.
        """
        self._closing = True
        patience_s = min(patience_s, _CLOSE_TIMEOUT_S)
        deadline = time.monotonic() + patience_s
        with self._lock:
            owners = {_ray.id_of(ref): _ray.owner_of(ref) for ref in self._table.items()}
            ended = self._table.end_all(origin)
        if self._anchors:
            self._settler.let_go(patience_s)
        ids, looks_at = list(owners), time.monotonic() + _PROBE_TIMEOUT_S
        while (ids := _ray.counted(ids)) and time.monotonic() < deadline:
            time.sleep(_CLOSE_PAUSE_S)
            if time.monotonic() > looks_at:
                looks_at = deadline  # once: the dead don't ask who holds what they owned
                dead = {owner for owner in {owners[id_] for id_ in ids} if _ray.is_surely_dead(owner)}
                ids = [id_ for id_ in ids if owners[id_] not in dead]
        return ended

    def _pack(self, leases: Sequence[bytes]) -> Parcel:
        """A parcel for another shard."""
        return self._replica.parcel(leases)._replace(sender=_ray.own_address())

    def _unpack(self, parcel: Parcel) -> None:
        """Take another shard's parcel. What is new hangs on that shard, until its and our next rounds of anchoring."""
        copies = [copy._replace(items=tuple(_ray.interned(copy.items))) for copy in parcel.copies]
        new = self._replica.receive(parcel._replace(copies=copies))
        for copy in parcel.copies:
            env = self._table.durability_of(copy.lease)
            if env is not None and copy.lease not in self._own_copies:
                self._wards.want(copy.lease, env)
        for lease in new:
            if self._anchors:
                self._unsettled.note(lease, parcel.sender, copied=True)
                self._settler.nudge()

    def _forget_passed(self, refs: Sequence[Ref], told: Sequence[Told]) -> None:
        """The owners have been told who has got these objects."""
        self._passed.difference_update(
            _ray.id_of(ref) for ref, state in zip(refs, told, strict=True) if state is Told.YES
        )
        if len(self._passed) > _MOST_PASSED:
            with self._lock:  # of leases that ended before their round
                held = [lease for lease in self._table.ids()[0] if self._unsettled.has(lease)]
                self._passed.intersection_update(id_ for lease in held for id_ in self._held_ids(lease))

    def _pass_on(self, leases: Sequence[bytes], *, soon: bool = False) -> None:
        """Others have got what these leases hold, of which the owners are to hear."""
        if self._anchors:
            for lease in leases:
                self._unsettled.note(lease, soon=soon)
            self._settler.nudge()

    def _passed_to_peer(self, leases: Sequence[bytes]) -> None:
        with self._lock:
            self._pass_on(leases, soon=True)

    def _with_hanging(self, page: Page[Ref]) -> list[LeaseInfo]:
        """A page's rows, with whom they hang on."""
        infos = page.infos
        for row, lease in enumerate(page.leases):
            if self._unsettled.hangs_on(lease):
                info = infos[row]
                server = f"the Ray Client server of job {info.job}"
                process = server if is_by_client(info.source) else f"pid {info.pid}"
                infos[row] = dataclasses.replace(info, hangs_on=f"{process} on node {info.node[:8]}")
        return infos

    def _identify(self) -> None:
        self._identity = self._table.epoch + self._table.generation.to_bytes(8, "big")

    def _share_limits(self) -> None:
        topology = self._replica.topology
        with self._lock:
            self._table.set_limits(self._limits.share(topology.shards, topology.replicas))

    def _is_old(self, version: int) -> bool:
        """Whether a caller goes by an old topology. If it goes by a newer one than this shard, it is this shard that looks again."""
        known = self._replica.topology
        if version < known.version and version:
            return True
        found = book.topology(self._registry)
        if found is None or found.version <= known.version:
            return False
        with self._lock:
            self._replica.topology = found
        self._share_limits()
        self._wake_peers.set()
        return bool(version) and version < found.version

    def _tell_peers(self, leases: Iterable[bytes]) -> None:
        if self._replica.topology.shards > 1 and self._replica.owe(leases):
            self._wake_peers.set()

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
        silent, self._hanging = self._ask_owners()
        # Silence may be the network's, or that of a process that was stopped for a while. Death is what Ray's control service says.
        dead = [owner for owner in silent if _ray.is_surely_dead(owner)]
        for owner in dead:
            self._bury(owner)
        with self._using:
            with self._lock:
                due = self._wards.due()
            for lease, env in due:
                self._adopt(lease, env)
        with self._lock:
            self._own_copies = {lease for lease in self._own_copies if self._table.durability_of(lease) is not None}
            self._table.expire(0)  # forgets what was remembered long enough
            if not self._anchors:
                self._unsettled.keep_only(lambda lease: bool(self._table.items_of(lease)))
        with self._using:
            with self._lock:
                unweighed = self._table.usage.unweighed()
            if unweighed:  # tasks that were still at work when they were pinned
                sizes = self._weigh(unweighed)
                with self._lock:
                    self._table.usage.learn({ref: size for ref, size in sizes.items() if ref in self._table.usage})
                del sizes
            del unweighed

    def copies_lost(self, leases: Sequence[bytes]) -> None:
        """A node has died, and with it copies that these leases hold, or what is inside them."""
        with self._lock:
            durable = [lease for lease in leases if self._table.durability_of(lease) is not None]
            self._own_copies.difference_update(durable)
            for lease in durable:
                self._table.lose(lease, "the node that had its copies is dead")
        self._ask_back(durable)

    def _bury(self, owner: bytes) -> None:
        """An owner is dead. Where other shards have copies of their own, it is asked for those; other leases end."""
        with self._lock:
            durable = self._table.only_copies_of(owner) if self._replica.topology.replicas > 1 else []
            for lease in durable:
                self._table.lose(lease, "the process that owned its copies is dead")
            if ended := self._table.bury(owner):
                logger.info("%d lease(s) ended, as the process that owned their objects is dead", ended)
        self._ask_back(durable)

    def _ask_back(self, leases: Sequence[bytes]) -> None:
        """Have the other replicas of durable leases, which have copies of their own, pass them on to this one."""
        import ray

        holders: dict[int, list[bytes]] = {}
        for lease in leases:
            for shard in self._replica.topology.holders(lease):
                if shard != self._replica.shard:
                    holders.setdefault(shard, []).append(lease)
        for shard, leases in holders.items():
            try:
                peer = ray.get_actor(actor_name(self._registry, shard), namespace=_ray.NAMESPACE)
                peer.repair.remote(leases, [self._replica.shard])
            except (ValueError, ray.exceptions.RayError):
                logger.warning("shard %d can't be asked for its copies of %d lease(s)", shard, len(leases))

    def _ask_owners(self) -> tuple[set[bytes], set[bytes]]:
        """Ask owners about one of their objects each; those that can't be asked any more, and those that hang.

        One call an owner, not one for all: see `_ray.objects._locations`. One that hung before is given less time.
        """
        with self._lock:
            owners = self._table.owners()
        silent: set[bytes] = set()
        hanging: set[bytes] = set()
        for owner in owners:
            patience = _AGAIN_TIMEOUT_S if owner in self._hanging else _PROBE_TIMEOUT_S
            with self._using:
                with self._lock:
                    sample = self._table.sample(owner)
                try:
                    if sample is not None and not _ray.owner_answers(sample, patience):
                        silent.add(owner)
                except TimeoutError:
                    hanging.add(owner)
                del sample
        return silent, hanging

    def _talk_to_peers(self) -> None:
        """The peers' thread: gets back what this shard held, tells the others what is new, moves leases when the registry grows."""
        peers = Peers(
            self._registry,
            self._replica,
            self._table,
            self._lock,
            self._using,
            self._pack,
            self._unpack,
            self._passed_to_peer,
        )
        if self._recovering:
            if peers.recover():
                with self._lock:
                    self._table.begin_anew(*book.new_epoch(self._registry))
                self._identify()
            self._is_old(0)  # the registry may have grown meanwhile
            with self._lock:
                self._replica.drop_strays()
            self._recovering = False
            self._wake.set()
        moved = 0
        while not self._closing:
            topology = self._replica.topology
            try:
                behind = peers.tell()
                if topology.before > self._replica.shard and moved != topology.version:
                    peers.move()
                    moved = topology.version
                    if book.note_moved(self._registry, topology, self._replica.shard):
                        book.change(self._registry, topology._replace(before=0))
                        self._is_old(0)
                        peers.look_again()
            except Exception:
                logger.warning("talking to other shards failed; trying again", exc_info=True)
                behind = True
            self._wake_peers.wait(_PEERS_PAUSE_S if behind or topology.before else _LONGEST_PAUSE_S)
            self._wake_peers.clear()
            time.sleep(_PEERS_BREATH_S)  # so that news travel together
