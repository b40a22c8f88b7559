"""The copy owner: an actor that makes and owns the copies of one shard's durable leases.

It gets a lease's references from the shard or from the lease's maker, has tasks copy the objects (`runner` runs the tasks of
`copying` in the order that `jobs` says), and gives the copies to the shard. The copies die with it, and with no other process. It is
a process of its own, so that neither the shard's calls nor the shard's reference counts have to do with copying.

What always holds: the copy owner never reads a value; it runs at most a few tasks at a time; it waits for an object that does not
exist yet without a task; it gives up a copy job when the shard no longer wants it; when the registry ends, it stays until no process
has a copy.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._ray import classes, cluster, workers
from ..errors import RegistryUnavailableError
from ..registry.calls import Call
from ..registry.received import actor, checked
from ..registry.shard import Shard, actor_name
from .nodes import Nodes, OwnedCopies
from .part import Durability
from .runner import Runner, Running, fetch
from .wire import CopyCall, NotCopyable

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_WATCHES_S = 1.0  # how often it looks whether a node has died
_ASKS_S = 2.0  # how often it asks the shard what is still wanted
_RETIRES_S = 0.5
_AGAIN_S = 0.05  # before a thread that has failed goes on
_MOST_CALLS = 1_000_000  # that wait at once, each until its lease is durable


class CopyOwner:
    """A copy owner, as other processes call it. None of the calls waits.

    Args:
        handle: of its actor.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def make_copies(self, call: CopyCall, refs: Sequence[Any]) -> Ref:
        """See `SafeRefsCopyOwner.make_copies`; the completion."""
        completion: Ref = self._handle.make_copies.remote(call, list(refs))
        return completion

    def retire(self) -> None:
        """See `SafeRefsCopyOwner.retire`."""
        self._handle.retire.remote()


def owner_name(registry: str, shard: int) -> str:
    """Name of a copy owner's actor, in the namespace `safe_refs`."""
    return f"{actor_name(registry, shard)}:copies"


def start(registry: str, shard: int) -> CopyOwner:
    """A shard's copy owner. Starts it if it doesn't run, but doesn't wait until it has started.

    Raises:
        ValueError: another process won the race for the name, and its actor is not listed yet: try again.
    """
    options = {"max_concurrency": _MOST_CALLS}
    name = owner_name(registry, shard)
    return CopyOwner(cluster.start_actor(name, SafeRefsCopyOwner, (registry, shard), place=shard, options=options))


def find(registry: str, shard: int) -> CopyOwner:
    """A shard's copy owner.

    Raises:
        ValueError: it doesn't run.
    """
    return CopyOwner(cluster.named_actor(owner_name(registry, shard), SafeRefsCopyOwner))


@actor
class SafeRefsCopyOwner:
    """The actor's class. Its calls only leave work for its thread, `safe_refs-copies`, or look.

    Args:
        registry: name of the registry that it is a part of.
        shard: whose copies it owns.
    """

    def __init__(self, registry: str, shard: int) -> None:
        self._registry = registry
        self._shard = shard
        self._changed = threading.Condition()  # guards the next three
        self._new: deque[Running] = deque()  # at most as many as `_jobs`
        self._jobs: dict[bytes, Running] = {}  # by lease: one for each that the shard, or a maker, waits for
        self._retires = False
        # From here on, only the thread's.
        self._nodes = Nodes()
        self._runner = Runner(self._nodes, self._deliver)
        self._owned = OwnedCopies()
        self._living: frozenset[str] = frozenset()  # nodes, when it was last looked which have died
        self._looked_at = 0.0
        self._asked_at = time.monotonic()
        self._shards_handle: Any = None
        classes.serve()
        threading.Thread(target=self._work, name="safe_refs-copies", daemon=True).start()

    @checked
    async def make_copies(self, call: CopyCall, refs: list[Ref]) -> bytes:
        """Copy what a lease holds, and give the copies to the shard.

        Called by the shard, or by the lease's maker while its pin is on its way to the shard. If the same lease is under way already,
        this waits for that.

        Returns:
            When that is over: what `Durability.take_copies` answered; nothing if the shard has no copies.
        """
        over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._retires = False
            running = self._jobs.get(call.lease)
            if running is None:
                running = self._jobs[call.lease] = Running(call, refs)
                self._new.append(running)
                self._changed.notify_all()
            running.completions.append(over)
        # A call that waits must not keep the originals.
        refs.clear()
        del running
        return await over

    @checked
    def retire(self) -> None:
        """The registry ends. So does this, when no process has a copy any more."""
        with self._changed:
            self._retires = True
            self._changed.notify_all()

    @checked
    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return workers.node_and_process()

    @checked
    def copying(self) -> int:
        """How many leases it makes copies for now."""
        return len(self._jobs)

    @checked
    def owned(self) -> int:
        """How many copies it owns that some process has."""
        return self._owned.count()

    # From here on, the thread. Each step is a method of its own, because a thread's variables keep references alive, too.

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._changed.wait_for(lambda: bool(self._new) or self._retires, _WATCHES_S)
            try:
                self._begin_new()
                self._runner.run_tasks()
                self._ask_what_is_wanted()
                self._runner.look()
                self._runner.run_tasks()
                self._watch_nodes()
                self._retire()
            except Exception:
                # Ray may be shutting down, or a shard has died: the other jobs go on.
                logger.warning("copying failed; trying again", exc_info=True)
                time.sleep(_AGAIN_S)

    def _begin_new(self) -> None:
        with self._changed:
            new = list(self._new)
            self._new.clear()
        for running in new:
            self._runner.begin(running)

    def _deliver(self, running: Running, result: list[Any] | NotCopyable) -> None:
        """Give the copies to the shard, or say why there are none."""
        import ray

        lease = running.call.lease
        try:
            if not isinstance(result, NotCopyable):
                self._owned.note(lease, running.job.copies(), with_nodes=self._nodes.several())
            # Waited for, so that the shard has the copies before they are dropped here.
            running.taken_as = self._ask_shard(Call(Durability.take_copies, lease, result))
        except (ValueError, TimeoutError, RegistryUnavailableError, ray.exceptions.RayError):
            short_id = lease[:4].hex()
            logger.warning(
                "lease %s could not be made durable, because its shard can't be reached", short_id, exc_info=True
            )
        finally:
            self._end(running)

    def _end(self, running: Running) -> None:
        """A job is over: hold nothing of it any more, and complete what waits for it."""
        with self._changed:
            self._jobs.pop(running.call.lease, None)
            completions, running.completions = running.completions, []
        self._runner.drop(running)
        for completion in completions:
            completion.get_loop().call_soon_threadsafe(completion.set_result, running.taken_as)

    def _ask_what_is_wanted(self) -> None:
        """Give up what nobody waits for any more."""
        import ray

        now = time.monotonic()
        if now - self._asked_at < _ASKS_S:
            return
        # Of the newest the shard needn't know yet: a maker sends its copy request before its pin has arrived.
        with self._changed:
            asked = [lease for lease, running in self._jobs.items() if now - running.begun_at > _ASKS_S]
        if not asked:
            return
        self._asked_at = now
        try:
            wanted = self._ask_shard(Call(Durability.still_wanted, asked))
        except (ValueError, TimeoutError, RegistryUnavailableError, ray.exceptions.RayError):
            return  # it restarts, and will ask for its leases anew
        for lease in set(asked).difference(wanted):
            self._end(self._jobs[lease])

    def _watch_nodes(self) -> None:
        """When a node has died, tell the shard which leases have lost copies."""
        import ray

        now = time.monotonic()
        if now - self._looked_at < _WATCHES_S or not self._owned.has_any():
            return
        self._looked_at = now
        try:
            living = frozenset(cluster.nodes())
        except RegistryUnavailableError:
            return  # again, with the next look
        before, self._living = self._living, living
        if before <= living:
            return
        lost = self._owned.lost_with(living)
        try:
            if lost:
                self._ask_shard(Call(Durability.copies_lost, lost))
        except (ValueError, TimeoutError, RegistryUnavailableError, ray.exceptions.RayError):
            self._living = before  # again, with the next look

    def _retire(self) -> None:
        """End this actor, if the registry has ended and no process has a copy any more."""
        import ray

        if not self._retires:
            return
        if not self._jobs and not self._owned.count():
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
        time.sleep(_RETIRES_S)

    def _ask_shard(self, call: Call[Any]) -> Any:
        """Call the shard, and wait for its answer.

        Raises:
            ValueError: there is no such shard.
            TimeoutError: it does not respond.
        RegistryUnavailableError: Ray's control service does not.
        """
        try:
            if self._shards_handle is None:
                name = actor_name(self._registry, self._shard)
                self._shards_handle = cluster.named_actor(name, Shard)
            return fetch(getattr(self._shards_handle, call.method).remote(*call.args))
        except BaseException:
            self._shards_handle = None
            raise
