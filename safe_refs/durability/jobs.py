"""The adopter: it owns the copies that durable leases hold, one adopter for each shard that has such leases.

It takes a lease's references from its shard, has tasks copy the objects (see `copying`), those inside them first, and gives the
copies to the shard. The copies die with it, and with nobody else; it is a process of its own, so that neither the shard's calls nor
its counts of references have to do with copying.

What always holds: it never reads a value; a few tasks are under way at a time; an object that isn't there yet is waited for without a
task; a lease is given up when its shard doesn't want it any more; when the registry ends, the adopter stays until nobody has a copy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import _ray
from .copying import ErrorInside, Inside, Unfit, Why, duplicate, fail_alike, rebuild
from .topology import actor_name

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_AT_ONCE = 6  # tasks; each has a process of its own
_AT_ONCE_EACH = 3  # of one lease, as they may hang
_MOST_CRASHES = 3  # of the workers that copy what one lease holds
_WATCHES_S = 1.0
_LOOKS_S = 0.05  # how long new work waits while objects are waited for
_ASKS_S = 2.0
_ANSWER_S = 10.0
_PROBE_S = 0.5
_NODES_S = 2.0  # how long what was seen of the cluster's nodes is good for
_RETIRES_S = 0.5
_MANY = 1000
_MOST_CALLS = 1_000_000  # that wait at once, each until its lease is durable


def adopter(registry: str, shard: int) -> Any:
    """The handle of a shard's adopter, which is started if it doesn't run. Doesn't wait until it has started."""
    options = {"max_concurrency": _MOST_CALLS}
    return _ray.start_actor(adopter_name(registry, shard), Adopter, [registry, shard], place=shard, options=options)


def adopter_name(registry: str, shard: int) -> str:
    """The actor's name."""
    return f"{actor_name(registry, shard)}:adopter"


@functools.lru_cache(maxsize=64)
def _runtime_env(surroundings: str) -> dict[str, Any]:
    return _ray.runtime_env_for(surroundings)


@functools.cache
def _remote(task: Any) -> Any:
    """A task for Ray, which pickles it once."""
    import ray

    return ray.remote(task)


def _fetch(ref: Ref) -> Any:
    """`ray.get`, which warns of blocking an event loop also where it is called in another thread."""
    try:
        return ref.future().result(_ANSWER_S)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer within {_ANSWER_S:g} s") from None  # another class before Python 3.11


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
        env: what its tasks need to be like the maker's; see `_ray.surroundings`.
        at_home: whether the copies go to the adopter's own node, and not where the data is. So they do where several shards have
            copies each: a node that dies then takes along those of one.
        ready: whether all of the objects exist already, so that none needs to be waited for.
    """

    def __init__(self, lease: bytes, refs: Sequence[Any], env: str, at_home: bool, ready: bool) -> None:
        self.lease = lease
        self.slots = list(refs)
        self.env = env
        self.at_home = at_home
        self.ready = ready
        self.objects: dict[bytes, _Object] = {}
        self.begun_at = time.monotonic()
        self.under_way = 0  # tasks, and objects that are waited for
        self.tasks: list[Any] = []  # what their results are waited for by
        self.taken_as = b""  # what the shard answers that has taken the copies
        self.bells: list[asyncio.Future[bytes]] = []  # of those who wait until it is over
        self.crashes = 0
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
        self._waiting: dict[Ref, list[tuple[_Adoption, Callable[[], None]]]] = {}
        self._ready: deque[tuple[_Adoption, Callable[[], None]]] = deque()  # tasks to begin when others are done
        # Copies: of which lease, and the nodes that had each when it was made; none for a small one, which is in this process.
        self._owned: dict[bytes, tuple[bytes, list[str]]] = {}
        self._tidies_at = _MANY
        self._living: frozenset[str] = frozenset()  # nodes, when it was last looked
        self._looked_at = 0.0
        self._retires = False
        self._shards_handle: Any = None
        self._nodes: tuple[float, list[str]] = (-_NODES_S, [])
        self._asked_at = time.monotonic()
        threading.Thread(target=self._work, name="safe_refs-adopting", daemon=True).start()

    async def adopt(self, lease: bytes, refs: list[Any], env: str, at_home: bool, ready: bool = False) -> bytes:
        """Copy what a lease holds, and give it to the shard; answers when that is over, with what `Shard.adopted` says.

        Called by the shard, or by the lease's maker while its pin is on its way to the shard. The same lease again, while it is under
        way, is not copied twice.
        """
        over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._retires = False
            begun = self._adoptions.get(lease)
            if begun is None:
                begun = self._adoptions[lease] = _Adoption(lease, refs, env, at_home, ready)
                self._new.append(begun)
                self._changed.notify_all()
            begun.bells.append(over)
        refs.clear()
        del begun
        return await over

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
        counted = set(_ray.counted(self._owned))
        self._owned = {id_: what for id_, what in self._owned.items() if id_ in counted}
        return len(self._owned)

    def _work(self) -> None:
        """The adopting thread. What it does is in methods of their own, as a thread's variables are references, too."""
        import ray

        while True:
            with self._changed:
                if not self._adoptions:
                    self._changed.wait_for(lambda: bool(self._new) or self._retires, _WATCHES_S)
            try:
                self._begin_new()
                self._ask_what_is_wanted()
                self._look()
                self._begin_ready()
                self._watch_nodes()
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
            self._do(adoption, functools.partial(self._begin, adoption))

    def _begin(self, adoption: _Adoption) -> None:
        for ref in _ray.objects(adoption.slots):
            self._add(adoption, ref, ready=adoption.ready)
        self._go_on(adoption)

    def _look(self) -> None:
        """Go on with what is ready, when something is, or when it is time to look for new work."""
        import ray

        if not self._waiting:
            return
        waiting = list(self._waiting)
        ready, _ = ray.wait(waiting, timeout=_LOOKS_S, fetch_local=False)
        if len(waiting) > 1:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for ref in ready:
            for adoption, then in self._waiting.pop(ref, ()):
                self._do(adoption, then)

    def _add(self, adoption: _Adoption, ref: Ref, *, ready: bool = False) -> None:
        """One more object, which is waited for, unless it is there."""
        if ref.binary() not in adoption.objects:
            adoption.objects[ref.binary()] = found = _Object(ref)

            def start() -> None:
                self._start(adoption, lambda: self._duplicate(adoption, found))

            if ready:
                start()
            else:
                self._wait_for(adoption, ref, start)

    def _wait_for(self, adoption: _Adoption, ref: Ref, then: Callable[[], None], *, is_task: bool = False) -> None:
        """Go on with something when an object is there, unless the adoption is over by then."""
        adoption.under_way += 1
        if is_task:
            adoption.tasks.append(ref)

        def go_on() -> None:
            adoption.under_way -= 1
            if is_task:
                adoption.tasks.remove(ref)
            then()

        self._waiting.setdefault(ref, []).append((adoption, go_on))

    def _start(self, adoption: _Adoption, task: Callable[[], None]) -> None:
        """Begin a task when there is room."""
        adoption.under_way += 1

        def begin() -> None:
            adoption.under_way -= 1
            task()

        self._ready.append((adoption, begin))
        self._begin_ready()

    def _begin_ready(self) -> None:
        """Begin tasks, as far as there is room: for all together, and for each lease, as its own may hang."""
        for _ in range(len(self._ready)):
            under_way = sum(len(adoption.tasks) for adoption in list(self._adoptions.values()))
            if under_way >= _AT_ONCE or not self._ready:  # beginning one may have begun others
                return
            adoption, begin = self._ready.popleft()
            if len(adoption.tasks) < _AT_ONCE_EACH:
                self._do(adoption, begin)
            elif not adoption.is_over:
                self._ready.append((adoption, begin))

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
            # Not run again by Ray: when a copy is lost with its node, the original is gone.
            "max_retries": 0,
        }
        node = self._node_for(adoption, found.ref)
        if node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        env = _runtime_env(adoption.env)
        if env:
            options["runtime_env"] = RuntimeEnv(**env)
        return _remote(task).options(**options).remote([found.ref], *args)

    def _node_for(self, adoption: _Adoption, ref: Ref) -> str | None:
        """The node for a copy; None for any."""
        looked_at, nodes = self._nodes
        if time.monotonic() - looked_at > _NODES_S:
            nodes = _ray.nodes()
            self._nodes = (time.monotonic(), nodes)
        if len(nodes) < 2:
            return None
        if adoption.at_home:
            return _ray.node_and_process()[0]
        return next((node for node in _ray.nodes_of(ref, _PROBE_S) if node in nodes), None)

    def _duplicate(self, adoption: _Adoption, found: _Object) -> None:
        copy, told = self._run(adoption, duplicate, found, (), 2)

        def then() -> None:
            inside = self._told(adoption, told, lambda: self._duplicate(adoption, found))
            if isinstance(inside, Unfit):
                self._hand_over(adoption, inside)
            elif isinstance(inside, ErrorInside):
                self._copying(adoption, found, fail_alike, (), 1)
            elif isinstance(inside, Inside) and inside.refs:
                found.inside = [ref.binary() for ref in inside.refs]
                for ref in inside.refs:
                    self._add(adoption, ref)
                self._go_on(adoption)
            elif inside is not None:
                self._note(adoption, found, copy)

        self._wait_for(adoption, told, then, is_task=True)

    def _told(self, adoption: _Adoption, told: Ref, again: Callable[[], None]) -> Any:
        """What a task says of its copy; None if it has failed itself. If its worker has died, it is begun again, a few times."""
        import ray

        try:
            return _fetch(told)
        except Exception as error:
            crashed = isinstance(error, (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError))
            if crashed and adoption.crashes < _MOST_CRASHES:
                adoption.crashes += 1
                self._start(adoption, again)
                return None
            self._hand_over(adoption, Unfit(Why.FAILED, f"{type(error).__name__}: {error}".strip()))
            return None

    def _copying(self, adoption: _Adoption, found: _Object, task: Any, args: tuple[Any, ...], returns: int) -> None:
        """Begin the last task for an object."""
        submitted = self._run(adoption, task, found, args, returns)
        copy, told = (submitted, submitted) if returns == 1 else submitted
        found.copy = copy

        def then() -> None:
            if told is copy or self._told(adoption, told, again) is not None:
                self._note(adoption, found, copy)

        def again() -> None:
            # What was to hold the lost copy's reference has to be made once more, too: begin anew.
            self._hand_over(adoption, Unfit(Why.FAILED, "the process that copied an object has died"))

        self._wait_for(adoption, told, then, is_task=True)
        self._go_on(adoption)

    def _note(self, adoption: _Adoption, found: _Object, copy: Ref) -> None:
        """A copy exists."""
        found.copy, found.done = copy, True
        self._go_on(adoption)

    def _go_on(self, adoption: _Adoption) -> None:
        """Rebuild what waits for copies that are under way by now; hand over when all is done."""
        for found in list(adoption.objects.values()):
            if adoption.is_over:  # a task that could not be begun has ended it
                return
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
            self._copying(adoption, found, rebuild, (copies,), 2)

        return begin

    def _hand_over(self, adoption: _Adoption, result: Any) -> None:
        """Give the copies to the shard, or say why there are none; once."""
        import ray

        if adoption.is_over:
            return
        adoption.is_over = True
        if not isinstance(result, Unfit):
            self._note_owned(adoption)
        try:
            # Waited for, so that the shard has the copies before they are dropped here.
            adoption.taken_as = self._ask_shard("adopted", adoption.lease, result)
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            logger.warning("a lease could not be made durable, as its shard can't be reached", exc_info=True)
        self._end(adoption)

    def _note_owned(self, adoption: _Adoption) -> None:
        """Remember whose copies there are, and which of them a node has: small ones are in this process."""
        copies = [found.copy for found in adoption.objects.values() if found.copy is not None]
        several = len(self._nodes[1]) > 1
        for copy in copies:
            self._owned[copy.binary()] = (adoption.lease, _ray.nodes_of(copy, _PROBE_S) if several else [])
        if len(self._owned) > self._tidies_at:
            self._tidies_at = 2 * self.owned() + _MANY

    def _watch_nodes(self) -> None:
        """Tell the shard which leases have lost copies, when a node has died.

        Those that lay there are asked for no more: Ray has put errors in their place on other nodes by then.
        """
        import ray

        now = time.monotonic()
        if not self._owned or now - self._looked_at < _WATCHES_S:
            return
        self._looked_at = now
        living = frozenset(_ray.nodes())
        before, self._living = self._living, living
        if before <= living:
            return
        self.owned()
        lost = {lease for lease, nodes in self._owned.values() if nodes and living.isdisjoint(nodes)}
        if not lost:
            return
        try:
            self._ask_shard("copies_lost", list(lost))
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            self._living = before  # again, with the next look

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
        import ray

        adoption.is_over = True
        with self._changed:
            self._adoptions.pop(adoption.lease, None)
            bells, adoption.bells = adoption.bells, []
        for task in adoption.tasks:
            ray.cancel(task, force=True)  # it may hang, and keeps what it copies
        # Closures that nobody calls any more would keep all that it held.
        self._ready = deque(row for row in self._ready if row[0] is not adoption)
        for ref, rows in list(self._waiting.items()):
            rows[:] = [row for row in rows if row[0] is not adoption]
            if not rows:
                del self._waiting[ref]
        adoption.tasks.clear()
        adoption.objects.clear()
        adoption.slots.clear()
        for bell in bells:
            bell.get_loop().call_soon_threadsafe(bell.set_result, adoption.taken_as)

    def _ask_what_is_wanted(self) -> None:
        """Give up what nobody waits for any more."""
        import ray

        now = time.monotonic()
        if now - self._asked_at < _ASKS_S:
            return
        # Of the newest the shard needn't know yet: a maker tells of what it pins before the pin has come.
        asked = [lease for lease, adoption in list(self._adoptions.items()) if now - adoption.begun_at > _ASKS_S]
        if not asked:
            return
        self._asked_at = now
        try:
            wanted = self._ask_shard("still_adopting", asked)
        except (ValueError, TimeoutError, ray.exceptions.RayError):
            return  # it restarts, and will ask for its leases anew
        for lease in set(asked).difference(wanted):
            self._end(self._adoptions[lease])
