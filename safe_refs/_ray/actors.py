"""Handles of actors: telling them from objects' references, their ids, and which actors outlive their creators.

Ray counts references to objects only. An actor that somebody owns has an object that stands for it, and Ray counts the actor's
handles as references to that object. So the rest of safe_refs treats an actor as that object wherever it can.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedReferenceError
from .native import core_worker

if TYPE_CHECKING:
    import ray


def is_actor_handle(reference: Any) -> bool:
    """Whether a reference is an actor's handle, and not an object's reference."""
    import ray

    return isinstance(reference, ray.actor.ActorHandle)


def is_reference(value: Any) -> bool:
    """Whether it is a reference that a lease can be asked to hold: an object's that names one, or an actor's handle."""
    import ray

    if isinstance(value, ray.ObjectRef):
        return not value.is_nil()
    return isinstance(value, ray.actor.ActorHandle)


def is_weak(handle: Any) -> bool:
    """Whether a handle does not keep its actor alive. `ray.get_actor` and `get_runtime_context().current_actor` give such handles.

    Private: `ActorHandle._ray_weak_ref`, seen since Ray 2.52. Without it, a lease of such a handle would hold nothing.

    A client's handles don't have the attribute: a client's server has one handle of each actor, however many the client has. Hence
    `vars`: a client's handle that is asked for an attribute it doesn't have asks the cluster for the actor's methods.
    """
    return bool(vars(handle).get("_ray_weak_ref", False))


def holding(handle: Any) -> Any:
    """For a weak handle, one that a lease can hold: the same if the actor is detached, else one that Ray counts; None if none is.

    Ray counts a handle only if the actor's creator can know of it. It can in the creator's own process, and in one that has a handle
    which the creator gave it, directly or by others: there another handle can be made. In all other processes a handle can be made,
    too, but the creator never learns who holds it, and the actor ends although it is held (tests/core/test_ray_facts.py shows that).
    Not even the actor itself can tell its creator.

    Private: `CoreWorker.serialize_actor_handle` and `deserialize_and_register_actor_handle`, with which Ray passes handles on, seen
    since Ray 2.52. Without it, see `is_weak`.
    """
    import ray

    if is_detached(handle._actor_id):
        return handle
    core = core_worker()
    state, standing_for = core.serialize_actor_handle(handle._actor_id)
    if not has_owner(standing_for.binary()):
        return None
    return core.deserialize_and_register_actor_handle(state, ray.ObjectRef.nil(), False)


def unheld(handle: Any) -> UnsupportedReferenceError:
    """The error for a handle that no lease can hold; see `holding`."""
    what = (
        f"{handle!r}, a weak handle (from `ray.get_actor` or `current_actor`), which keeps no actor alive, so that a lease of it "
        "would hold nothing"
    )
    remedy = (
        "let the actor's creator make the payload, or give this process the handle that it has, as an argument; or create the actor "
        'with lifetime="detached"'
    )
    return UnsupportedReferenceError.of(handle, what, remedy, kind="ray.actor.ActorHandle")


def refused(references: Iterable[Any]) -> UnsupportedReferenceError | None:
    """The error if one of these is a handle that no lease can hold. A Ray Client can't see that; a shard can."""
    for each in references:
        if is_actor_handle(each) and is_weak(each) and not is_detached(each._actor_id):
            error = unheld(each)
            error.locate("the object", None)
            return error
    return None


def counted_ref(reference: Any) -> ray.ObjectRef[Any]:
    """What Ray counts for a reference: the reference itself, or for an actor's handle the object that stands for the actor.

    Private: `CoreWorker.serialize_actor_handle`, with which Ray itself passes handles on, seen since Ray 2.52. Without it, no lease
    could hold an actor.
    """
    if not is_actor_handle(reference):
        ref: ray.ObjectRef[Any] = reference
        return ref
    _, standing_for = core_worker().serialize_actor_handle(reference._actor_id)
    found: ray.ObjectRef[Any] = standing_for
    return found


def id_of(reference: Any) -> bytes:
    """Id of the object that a reference names, or of the object that stands for its actor."""
    return counted_ref(reference).binary()


def only_objects(references: Iterable[Any]) -> list[ray.ObjectRef[Any]]:
    """Those that are objects' references, and not actors' handles."""
    return [each for each in references if not is_actor_handle(each)]


def only_actors(references: Iterable[Any]) -> list[Any]:
    """Those that are actors' handles."""
    return [each for each in references if is_actor_handle(each)]


# By an actor's id, the one handle that `interned` gives for it.
# Bound: handles that somebody else here holds, as the dictionary holds them weakly.
# Lock: `WeakValueDictionary.setdefault` is not atomic. If two threads interned two handles of one actor at once, each would get its
# own, and `counts.touch_zero` could take neither to zero. Only a shard interns, and a shard does not fork.
_interned: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()
_interning = threading.Lock()


def interned(references: Iterable[Any]) -> list[Any]:
    """The same references, but each actor has one handle in them, the same one in each call. `counts.touch_zero` needs that."""
    found = list(references)
    for number, reference in enumerate(found):
        if is_actor_handle(reference) and not is_weak(reference):
            with _interning:
                found[number] = _interned.setdefault(reference._actor_id.binary(), reference)
    return found


def stands_for_actor(id_: bytes) -> bool:
    """Whether the object of this id stands for an actor: to Ray it is what the task that created the actor returned.

    Private: how Ray composes the ids of tasks and objects (`id.h`), seen since Ray 2.52. Without it, an actor's id could not be told
    from an object's.
    """
    return id_[:8] == b"\xff" * 8 and id_[8:20] != b"\xff" * 12 and id_[24:] == b"\1\0\0\0"


def has_owner(id_: bytes) -> bool:
    """Whether this process has references to this object, and so knows its owner.

    Private: `CoreWorker.get_owner_address`, see `workers.owner_of`.
    """
    import ray

    try:
        core_worker().get_owner_address(ray.ObjectRef(id_))
    except ValueError:
        return False
    return True


def known_actors(ids: Iterable[bytes]) -> set[bytes]:
    """Those of these ids that stand for actors that have an owner, and of which this process has handles.

    Ray's reference counts leave actors out, so that `counts.still_counted` doesn't find these.
    """
    return {id_ for id_ in ids if stands_for_actor(id_) and has_owner(id_)}


def is_mortal(handle: Any) -> bool:
    """Whether an actor ends when its creator ends. All do but detached ones. The handle may come from anywhere."""
    return not is_detached(handle._actor_id)


def is_detached(actor_id: Any) -> bool:
    """Whether an actor outlives its creator, of which this process has a handle. 3 microseconds; nobody is asked.

    Private: `ActorHandle` of Ray's `core_worker.proto`, as which Ray passes handles on, seen since Ray 2.52. A detached actor has no
    owner, but its handle names one in every process other than its creator. Without it, a lease of a detached actor would end with
    the actor's creator.
    """
    from ray.core.generated import core_worker_pb2

    handle = core_worker_pb2.ActorHandle()  # type: ignore[attr-defined] # generated at build time
    handle.ParseFromString(core_worker().serialize_actor_handle(actor_id)[0])
    return bool(handle.is_detached)
