"""Objects: fetching values, waiting for them, where they are and how large, and what is inside them.

What always holds: an error that is raised here keeps no reference alive; nothing here waits longer than its timeout.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from . import classes, client, serializing
from .actors import counted_ref, only_objects
from .native import connected, global_worker, gone, is_left
from .workers import connection, owner_of

if TYPE_CHECKING:
    import ray

T = TypeVar("T")

_PIECE_S = 0.1  # of a long wait
_LOOKS_S = 0.5  # how often who awaits an object looks whether this process has left
_ASKED_AT_ONCE = 1000  # references; 17 microseconds each


class UnopenedActorError(Exception):
    """A call to one of our own actors, or its answer, had an actor's handle that can't be unpickled: the actor's job has ended."""


def get(refs: Any, timeout_s: float) -> Any:
    """`ray.get` for answers of our own actors. Its errors keep nothing alive.

    Ray's own do: Ray's frame holds the error that it raises, and the error's traceback holds the frame. That circle keeps every
    reference in the frames below alive until the next garbage collection, which may never come in an idle process.

    Raises:
        UnopenedActorError: see there.
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    return _answer(ray.get if client.was_here() else _get, refs, timeout_s)


def fetch(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """`get` that never starts a Ray, for background threads: `ray.get` starts one if the process has just left its cluster.

    Raises:
        RegistryUnavailableError: Ray is not initialized in this process.
        UnopenedActorError: see there.
    """
    return _answer(client.get if connection().client else _get, ref, timeout_s)


def _get(refs: Any, timeout: float) -> Any:
    """`ray.get` without what Ray does before: it starts a Ray if this process has just left its cluster, and in an async actor warns.

    Ray warns once in a process, whichever thread calls, of the first `ray.get` in an async actor. So ours would warn of what is no
    fault of the user's, and hide the warning of what is.

    Private: `Worker.get_objects`, which `ray.get` calls, and that `ray.get` is wrapped (`__wrapped__`), seen since Ray 2.52. Without
    the one, such a warning is all that is lost; without both, a short moment of the other risk is left, too.
    """
    import ray

    worker: Any = global_worker()

    def wait(left_s: float) -> Any:
        if not hasattr(worker, "get_objects"):
            return getattr(ray.get, "__wrapped__", ray.get)(refs, timeout=left_s)
        worker.check_connected()
        found = worker.get_objects(refs if isinstance(refs, list) else [refs], left_s)[0]
        return found if isinstance(refs, list) else found[0]

    return _patient(wait, timeout)


def _patient(wait: Callable[[float], T], timeout_s: float, is_over: Callable[[T], bool] = lambda _: True) -> T:
    """Call a function of Ray's that waits, piece by piece, so that it ends soon when this process leaves its cluster.

    Only in a driver, as no other process leaves its cluster and lives on. In a worker, Ray would take its CPU away and give it back
    for each piece.

    Args:
        wait: waits so many seconds; raises `ray.exceptions.GetTimeoutError` if that was not enough.
        timeout_s: for all pieces together.
        is_over: whether an answer is one to return before the time is over.

    Raises:
        RegistryUnavailableError: it leaves, or has left.
    """
    import ray

    core, worker = connected(), global_worker()
    piece_s = _PIECE_S if worker is None or worker.mode != ray.WORKER_MODE else timeout_s
    until = time.monotonic() + timeout_s
    left_s = timeout_s
    while True:
        is_last = left_s <= piece_s
        if core is None or is_left(core) or connected() is not core:
            raise gone()
        try:
            answer = wait(max(min(left_s, piece_s), 0.0))
            if is_last or is_over(answer):
                return answer
        except ray.exceptions.GetTimeoutError:
            if is_last:
                raise
        left_s = until - time.monotonic()


def value(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """`ray.get` for an object of the user's, whose error is raised as it is. It keeps nothing alive, either; see `get`."""
    import ray

    try:
        return ray.get(ref, timeout=timeout_s)
    except Exception as error:
        raise error.with_traceback(None)  # noqa: B904 # it is the same error


def users_value(ref: ray.ObjectRef[Any], timeout_s: float | None) -> Any:
    """`ray.get` for a caller of ours who wants the user's object, and waits as long as it takes; None for no limit.

    The wait is in pieces, so that it ends when this process leaves its cluster. Only until the object exists somewhere: when a
    transfer from another node has begun, it isn't begun again.

    Raises:
        RegistryUnavailableError: it has left.
        Exception: as from `ray.get`.
    """
    import ray

    worker = global_worker()
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    if client.was_here() or worker is None or worker.mode == ray.WORKER_MODE or (timeout_s or 1.0) <= _PIECE_S:
        return ray.get(ref, timeout=timeout_s)
    try:
        return ray.get(ref, timeout=_PIECE_S)
    except ray.exceptions.GetTimeoutError:
        pass
    wait([ref], 1, until - time.monotonic())
    return ray.get(ref, timeout=None if timeout_s is None else max(until - time.monotonic(), 0.0))


async def awaited(ref: Any) -> Any:
    """`await ref`, which ends when this process leaves its cluster. Ray's own never would; errors as of `users_value`."""
    import asyncio

    core = connected()
    if is_left(core) or (core is None and not client.was_here()):
        raise gone()
    future = asyncio.wrap_future(ref.future())
    try:
        while not (await asyncio.wait([future], timeout=_LOOKS_S))[0]:
            if core is not None and (is_left(core) or connected() is not core):
                raise gone()
        return future.result()
    finally:
        future.cancel()


def _answer(how: Any, refs: Any, timeout_s: float) -> Any:
    try:
        if serializing.holds_lock():
            with serializing.in_rays_order():
                return classes.opened(lambda left_s: how(refs, timeout=left_s), timeout_s)
        return classes.opened(lambda left_s: how(refs, timeout=left_s), timeout_s)
    except client.broken() as error:
        raise client.unavailable(error) from None
    except Exception as error:
        if _is_unopened_actor(error):
            raise UnopenedActorError from None
        raise error.with_traceback(None)  # noqa: B904 # it is the same error


def _is_unopened_actor(error: Exception) -> bool:
    """Whether Ray could not load an actor's class, as the actor's job has ended.

    Whoever unpickles a handle asks Ray's control store for the actor's class. The class is gone as soon as the job has ended, unless
    the job made a detached actor. Ray reports the death of the actor itself a moment later.

    Private: the text of Ray's error, seen since Ray 2.52. It names `load_actor_class` (of `ray._private.function_manager`), and the
    None that Ray found in place of a class; the None is missing if the control store could not be asked. Without it, users would get
    Ray's own error in that moment.
    """
    import ray

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if not isinstance(cause, ray.exceptions.RaySystemError):
        return False
    text = str(cause)
    return "load_actor_class" in text and "NoneType" in text


def wait(refs: Sequence[Any], how_many: int, timeout_s: float) -> list[Any]:
    """`ray.wait`, which fetches nothing; those that are there.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server, or is leaving its cluster.
    """
    import ray

    def ready(left_s: float) -> list[Any]:
        return ray.wait(list(refs), num_returns=how_many, timeout=left_s, fetch_local=False)[0]

    if client.was_here():
        return client.asked(lambda: ready(timeout_s), timeout_s + client.PATIENCE_S)
    return _patient(ready, timeout_s, lambda found: len(found) >= how_many)


def put(value: Any) -> ray.ObjectRef[Any]:
    """`ray.put`; see `wait`."""
    import ray

    return client.asked(lambda: ray.put(value))


def transport_of() -> Callable[[ray.ObjectRef[Any]], object]:
    """A function that says whether a reference's value is kept outside Ray's object store: false for usual ones. 20 nanoseconds.

    Actor methods and `ray.put` with a tensor transport make such references ("RDT", Ray Direct Transport, or GPU objects). The value
    stays in the process that made it. When Ray passes such a reference on, it sends a record along, with a handle of the actor that
    has the value, and a borrower keeps that record for good (Ray issue 57962). So a registry that holds the reference would keep the
    actor alive after every release. If the value isn't made yet, Ray itself refuses to pass the reference on (Ray issue 59644).

    Undocumented: `ObjectRef.tensor_transport`, seen since Ray 2.52 (there 0 stands for the object store, now None). Without it, such
    references pass for usual ones, with the consequences above.
    """
    import ray

    return getattr(ray.ObjectRef, "tensor_transport", None) or (lambda ref: None)


def sizes(refs: Iterable[ray.ObjectRef[Any]], timeout_s: float) -> dict[ray.ObjectRef[Any], int]:
    """Bytes (data and metadata) of those of `refs` that exist already and whose owner answers in time. Actors have none.

    Args:
        refs: of any owners.
        timeout_s: for each owner.
    """
    by_owner: dict[bytes, list[ray.ObjectRef[Any]]] = {}
    for ref in only_objects(refs):
        by_owner.setdefault(owner_of(ref), []).append(ref)
    found: dict[ray.ObjectRef[Any], int] = {}
    for theirs in by_owner.values():
        for start in range(0, len(theirs), _ASKED_AT_ONCE):
            try:
                places = _locations(theirs[start : start + _ASKED_AT_ONCE], timeout_s)
            except TimeoutError:
                break  # this owner does not respond; the others may
            found.update(
                {ref: place["object_size"] for ref, place in places.items() if place["object_size"] is not None}
            )
    return found


def nodes_of(ref: ray.ObjectRef[Any], timeout_s: float) -> list[str]:
    """Ids of the nodes whose stores have an object, in memory or on disk.

    None for a small object, whose value its owner has, and if the owner does not answer.
    """
    try:
        place = _locations([ref], timeout_s).get(ref, {})
    except TimeoutError:
        return []
    return [str(node) for node in place.get("node_ids", ())]


def owner_answers(ref: Any, timeout_s: float) -> bool:
    """Whether the owner of an object or actor answers a question about it.

    One "no" may be the network's fault; see `workers.is_surely_dead`.

    Raises:
        TimeoutError: the owner does not respond: it neither answers nor refuses.
    """
    counted = counted_ref(ref)
    return counted in _locations([counted], timeout_s)


def _locations(refs: Sequence[ray.ObjectRef[Any]], timeout_s: float) -> Any:
    """Where objects of *one* owner are, and how large: `ray.experimental.get_object_locations`, seen since Ray 2.52.

    Never for several owners in one call, and never for more than one of Ray's batches (10,000). Ray counts its batches while it sends
    them; if the answer to the first comes before all are counted, the whole process ends ("Promise already satisfied", Ray issue
    65523). Objects whose owner could not be asked are left out.
    """
    from ray.experimental import get_object_locations

    return get_object_locations(list(refs), timeout_ms=int(timeout_s * 1000))


@contextmanager
def met_inside(instead: Mapping[bytes, ray.ObjectRef[Any]] | None = None) -> Iterator[list[Any]]:
    """While it lasts, collects the references inside the values that this thread fetches: objects' and actors', repeats included.

    One thread of a process at a time.

    Private: Ray's pickles name the two functions that make references again (`_object_ref_deserializer` and
    `_actor_handle_deserializer` in `ray._private.serialization`), and unpickling looks them up by name, so that they can be replaced;
    seen since Ray 2.52. Ray has no call that says what is inside an object. Without it, objects inside durable ones would die with
    their makers.

    Args:
        instead: by an object's id, the reference to put in its place.
    """
    import ray

    module: Any = ray._private.serialization
    met: list[Any] = []
    names = ("_object_ref_deserializer", "_actor_handle_deserializer")
    originals = {name: getattr(module, name) for name in names}
    me = threading.get_ident()

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def make(first: Any, *rest: Any) -> Any:
            if threading.get_ident() != me:
                return original(first, *rest)
            if instead is not None and first in instead:
                return instead[first]
            made = original(first, *rest)
            met.append(made)
            return made

        return make

    for name, original in originals.items():
        setattr(module, name, watched(original))
    try:
        yield met
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
