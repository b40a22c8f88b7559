"""Objects: fetching values, waiting for them, where they are and how large, and what is inside them.

What always holds: an error that is raised here keeps no reference alive; nothing here waits longer than its timeout.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import classes, client, serializing
from .actors import counted_ref, only_objects
from .native import global_worker
from .workers import connection, owner_of

if TYPE_CHECKING:
    import ray

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
    if not hasattr(worker, "get_objects"):
        return getattr(ray.get, "__wrapped__", ray.get)(refs, timeout=timeout)
    worker.check_connected()
    if isinstance(refs, list):
        return worker.get_objects(refs, timeout)[0]
    return worker.get_objects([refs], timeout)[0][0]


def value(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """`ray.get` for an object of the user's, whose error is raised as it is. It keeps nothing alive, either; see `get`."""
    import ray

    try:
        return ray.get(ref, timeout=timeout_s)
    except Exception as error:
        raise error.with_traceback(None)  # noqa: B904 # it is the same error


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
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    return client.asked(
        lambda: ray.wait(list(refs), num_returns=how_many, timeout=timeout_s, fetch_local=False)[0],
        timeout_s + client.PATIENCE_S,
    )


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
