"""The adopter: it owns the copies that durable leases hold, one adopter for each shard that has such leases.

It takes a lease's references from its shard, has tasks copy the objects (see `copying`), those inside them first, and gives the
copies to the shard. The copies die with it, and with nobody else; it is a process of its own, so that neither the shard's calls nor
its counts of references have to do with copying.

What always holds: it never reads a value; a few tasks are under way at a time; an object that isn't there yet is waited for without a
task; a lease is given up when its shard doesn't want it any more; when the registry ends, the adopter stays until nobody has a copy.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import _ray
from . import couriers
from .copying import ErrorInside, Inside, Unfit, Why, duplicate, fail_alike, rebuild
from .topology import actor_name

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_AT_ONCE = 4  # tasks; each has a process of its own
_LOOKS_S = 0.05  # how long new work waits while objects are waited for
_ASKS_S = 2.0
_ANSWER_S = 10.0
_PROBE_S = 1.0
_NODES_S = 2.0  # how long what was seen of the cluster's nodes is good for
_RETIRES_S = 0.5
_MANY = 1000
_MOST_CALLS = 1_000_000  # that wait at once, each until its lease is durable


def adopter(registry: str, shard: int) -> Any:
    """The handle of a shard's adopter, which is started if it doesn't run. Doesn't wait until it has started."""
    options = {"max_concurrency": _MOST_CALLS}
    return couriers.named(adopter_name(registry, shard), Adopter, registry, shard, place=shard, **options)


def adopter_name(registry: str, shard: int) -> str:
    """The actor's name."""
    return f"{actor_name(registry, shard)}:adopter"


@functools.cache
def _remote(task: Any) -> Any:
    """A task for Ray, which pickles it once."""
    import ray

    return ray.remote(task)


def _fetch(ref: Ref) -> Any:
    """`ray.get`, which warns of blocking an event loop also where it is called in another thread."""
    return ref.future().result(_ANSWER_S)


class _Object:
    """An object that is to be copied.

    Attributes:
        ref: it.
        copy: the reference of its copy, once the last task for it is under way.
        inside: ids of the objects inside it, once they are known.
        done: whether the copy exists.
    """

    __slots__ = ("copy", "done", "inside", "ref")

    def __init__(self, ref: Ref) -> None:
        self.ref = ref
        self.copy: Ref | None = None
        self.inside: list[bytes] | None = None
        self.done = False


class _Adoption:
    """A lease whose objects are being copied.

    Args:
        lease: its id.
        refs: what it holds, in the order of its slots.
        env: the maker's runtime environment, as JSON.
        place: which copy this is, where several shards make one each: the first goes where the data is, the others elsewhere.
    """

    def __init__(self, lease: bytes, refs: Sequence[Any], env: str, place: int) -> None:
        self.lease = lease
        self.slots = list(refs)
        self.env = env
        self.place = place
        self.objects: dict[bytes, _Object] = {}
        self.under_way = 0  # tasks, and objects that are waited for
        self.bells: list[asyncio.Future[None]] = []  # of those who wait until it is over
        self.is_over = False

    def copies(self) -> list[Any]:
        """The copies, slot by slot; an actor stays what it is."""
        return [ref if _ray.is_actor_handle(ref) else self.objects[ref.binary()].copy for ref in self.slots]


class Adopter:
    """The actor's class.

    Args:
        registry: name of the registry that it is a part of.
        shard: whose copies it owns.
    """

    def __init__(self, registry: str, shard: int) -> None:
        self._registry = registry
        self._shard = shard
        self._changed = threading.Condition()
        self._new: deque[_Adoption] = deque()
        self._adoptions: dict[bytes, _Adoption] = {}
        self._waiting: dict[Ref, list[Callable[[], None]]] = {}
        self._tasks = 0
        self._ready: deque[Callable[[], None]] = deque()  # tasks to begin when others are done
        self._owned: set[bytes] = set()
        self._tidies_at = _MANY
        self._retires = False
        self._shards_handle: Any = None
        self._nodes: tuple[float, list[str]] = (-_NODES_S, [])
        self._asked_at = time.monotonic()
        threading.Thread(target=self._work, name="safe_refs-adopting", daemon=True).start()

    async def adopt(self, lease: bytes, refs: list[Any], env: str, place: int) -> None:
        """Copy what a lease holds, and give it to the shard; answers when that is done, or has failed, or is given up.

        The same lease again, while it is under way, is not copied twice.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._retires = False
            begun = self._adoptions.get(lease)
            if begun is None:
                begun = self._adoptions[lease] = _Adoption(lease, refs, env, place)
                self._new.append(begun)
                self._changed.notify_all()
            begun.bells.append(over)
        refs.clear()
        del begun
        await over

    def retire(self) -> None:
        """The registry ends: so does this, when nobody has a copy any more."""
        with self._changed:
            self._retires = True
            self._changed.notify_all()

    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return _ray.node_and_process()

    def adopting(self) -> int:
        """How many leases it makes copies for now."""
        return len(self._adoptions)

    def owned(self) -> int:
        """How many copies it owns."""
        self._owned.intersection_update(_ray.counted(self._owned))
        return len(self._owned)

    def _work(self) -> None:
        """The adopting thread. What it does is in methods of their own, as a thread's variables are references, too."""
        import ray

        while True:
            with self._changed:
                if not self._adoptions:
                    self._changed.wait_for(lambda: bool(self._new) or self._retires, couriers.STAYS_S)
            try:
                self._begin_new()
                self._ask_what_is_wanted()
                self._look()
                while self._ready and self._tasks < _AT_ONCE:
                    self._ready.popleft()()  # of an adoption that is over, it does nothing
                if self._retires and not self._adoptions and not self.owned():
                    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
                if self._retires:
                    time.sleep(_RETIRES_S)
            except Exception:
                # Ray may be shutting down, or a shard has died: the other adoptions go on.
                logger.warning("adopting failed; trying again", exc_info=True)
                time.sleep(_LOOKS_S)

    def _begin_new(self) -> None:
        with self._changed:
            new = list(self._new)
            self._new.clear()
        for adoption in new:
            for ref in _ray.objects(adoption.slots):
                self._add(adoption, ref)
            self._go_on(adoption)

    def _look(self) -> None:
        """Go on with what is ready, when something is, or when it is time to look for new work."""
        import ray

        if not self._waiting:
            return
        waiting = list(self._waiting)
        ray.wait(waiting, timeout=_LOOKS_S, fetch_local=False)
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for ref in ready:
            for then in self._waiting.pop(ref):
                then()

    def _add(self, adoption: _Adoption, ref: Ref) -> None:
        """One more object, which is waited for."""
        if ref.binary() not in adoption.objects:
            adoption.objects[ref.binary()] = found = _Object(ref)
            self._wait_for(adoption, ref, lambda: self._start(adoption, lambda: self._duplicate(adoption, found)))

    def _wait_for(self, adoption: _Adoption, ref: Ref, then: Callable[[], None], *, is_task: bool = False) -> None:
        """Go on with something when an object is there, unless the adoption is over by then."""
        adoption.under_way += 1

        def go_on() -> None:
            adoption.under_way -= 1
            self._tasks -= is_task
            self._do(adoption, then)

        self._waiting.setdefault(ref, []).append(go_on)

    def _start(self, adoption: _Adoption, task: Callable[[], None]) -> None:
        """Begin a task when there is room."""
        adoption.under_way += 1

        def begin() -> None:
            adoption.under_way -= 1
            self._do(adoption, task)

        if self._tasks < _AT_ONCE:
            begin()
        else:
            self._ready.append(begin)

    def _do(self, adoption: _Adoption, step: Callable[[], None]) -> None:
        """A step of an adoption; one that fails ends that adoption, and no other."""
        if adoption.is_over:
            return
        try:
            step()
        except Exception as error:
            logger.warning("a lease could not be made durable", exc_info=True)
            self._hand_over(adoption, Unfit(Why.FAILED, f"{type(error).__name__}: {error}".strip()))

    def _run(self, adoption: _Adoption, task: Any, found: _Object, args: tuple[Any, ...], returns: int) -> Any:
        """Submit a task, where the data is."""
        from ray.runtime_env import RuntimeEnv
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {
            "name": f"safe_refs.{task.__name__}",
            "num_cpus": 0,
            "num_returns": returns,
        }
        node = self._node_for(adoption, found.ref)
        if node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        if adoption.env != _ray.runtime_env():
            options["runtime_env"] = RuntimeEnv(**json.loads(adoption.env))
        submitted = _remote(task).options(**options).remote([found.ref], *args)
        self._tasks += 1
        return submitted

    def _node_for(self, adoption: _Adoption, ref: Ref) -> str | None:
        """The node for a copy: the one that has the data, or another, the further down this shard is in the lease's list."""
        looked_at, nodes = self._nodes
        if time.monotonic() - looked_at > _NODES_S:
            nodes = _ray.nodes()
            self._nodes = (time.monotonic(), nodes)
        if len(nodes) < 2:
            return None
        having = [node for node in _ray.nodes_of(ref, _PROBE_S) if node in nodes]
        if not adoption.place:
            return having[0] if having else None
        others = sorted(node for node in nodes if node not in having[:1])
        return others[(adoption.place - 1) % len(others)]

    def _duplicate(self, adoption: _Adoption, found: _Object) -> None:
        copy, told = self._run(adoption, duplicate, found, (), 2)

        def then() -> None:
            inside = self._told(adoption, told)
            if isinstance(inside, Unfit):
                self._hand_over(adoption, inside)
            elif isinstance(inside, ErrorInside):
                failed = self._run(adoption, fail_alike, found, (), 1)
                self._copying(adoption, found, failed, failed)
            elif isinstance(inside, Inside) and inside.refs:
                found.inside = [ref.binary() for ref in inside.refs]
                for ref in inside.refs:
                    self._add(adoption, ref)
                self._go_on(adoption)
            elif inside is not None:
                self._note(adoption, found, copy)

        self._wait_for(adoption, told, then, is_task=True)

    def _told(self, adoption: _Adoption, told: Ref) -> Any:
        """What a task says of its copy; None if it has failed itself, and so has the adoption."""
        try:
            return _fetch(told)
        except Exception as error:
            self._hand_over(adoption, Unfit(Why.FAILED, f"{type(error).__name__}: {error}".strip()))
            return None

    def _copying(self, adoption: _Adoption, found: _Object, copy: Ref, told: Ref) -> None:
        """The last task for an object is under way."""
        found.copy = copy

        def then() -> None:
            if told is copy or self._told(adoption, told) is not None:
                self._note(adoption, found, copy)

        self._wait_for(adoption, told, then, is_task=True)
        self._go_on(adoption)

    def _note(self, adoption: _Adoption, found: _Object, copy: Ref) -> None:
        """A copy exists."""
        found.copy, found.done = copy, True
        self._owned.add(copy.binary())
        if len(self._owned) > self._tidies_at:
            self._tidies_at = 2 * self.owned() + _MANY
        self._go_on(adoption)

    def _go_on(self, adoption: _Adoption) -> None:
        """Rebuild what waits for copies that are under way by now; hand over when all is done."""
        for found in list(adoption.objects.values()):
            if found.copy is None and found.inside is not None:
                copies = {id_: adoption.objects[id_].copy for id_ in found.inside}
                if None not in copies.values():
                    found.inside = None
                    self._start(adoption, self._rebuilding(adoption, found, copies))
        if adoption.is_over:
            return
        if all(found.done for found in adoption.objects.values()):
            self._hand_over(adoption, adoption.copies())
        elif not adoption.under_way:
            circle = "its objects hold each other in a circle, of which no copy can be made"
            self._hand_over(adoption, Unfit(Why.UNSUPPORTED, circle))

    def _rebuilding(self, adoption: _Adoption, found: _Object, copies: dict[bytes, Any]) -> Callable[[], None]:
        def begin() -> None:
            self._copying(adoption, found, *self._run(adoption, rebuild, found, (copies,), 2))

        return begin

    def _hand_over(self, adoption: _Adoption, result: Any) -> None:
        """Give the copies to the shard, or say why there are none."""
        import ray

        adoption.is_over = True
        try:
            # Waited for, so that the shard has the copies before they are dropped here.
            self._ask_shard("adopted", adoption.lease, result)
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            logger.warning("a lease could not be made durable, as its shard can't be reached", exc_info=True)
        self._end(adoption)

    def _ask_shard(self, method: str, *args: Any) -> Any:
        """Call the shard, and wait for its answer."""
        import ray

        try:
            if self._shards_handle is None:
                self._shards_handle = ray.get_actor(actor_name(self._registry, self._shard), namespace=_ray.NAMESPACE)
            return _fetch(getattr(self._shards_handle, method).remote(*args))
        except BaseException:
            self._shards_handle = None
            raise

    def _end(self, adoption: _Adoption) -> None:
        adoption.is_over = True
        with self._changed:
            self._adoptions.pop(adoption.lease, None)
            bells, adoption.bells = adoption.bells, []
        for bell in bells:
            bell.get_loop().call_soon_threadsafe(bell.set_result, None)

    def _ask_what_is_wanted(self) -> None:
        """Give up what nobody waits for any more."""
        import ray

        now = time.monotonic()
        if not self._adoptions or now - self._asked_at < _ASKS_S:
            return
        self._asked_at = now
        try:
            wanted = self._ask_shard("still_adopting", list(self._adoptions))
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            return  # it restarts, and will ask for its leases anew
        for lease in set(self._adoptions).difference(wanted):
            self._end(self._adoptions[lease])
