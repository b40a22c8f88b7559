"""Handles of actors: telling them from objects' references, their ids, and which actors outlive their creators.

Ray counts references to objects only. An actor that somebody owns has an object that stands for it, and Ray counts the actor's
handles as references to that object. So the rest of safe_refs treats an actor as that object wherever it can.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .native import accessor, core_worker

if TYPE_CHECKING:
    import ray


def is_actor_handle(reference: Any) -> bool:
    """Whether a reference is an actor's handle, and not an object's reference."""
    import ray

    return isinstance(reference, ray.actor.ActorHandle)


def is_weak(handle: Any) -> bool:
    """Whether a handle does not keep its actor alive. `ray.get_actor` gives such handles.

    Private: `ActorHandle._ray_weak_ref`, seen since Ray 2.52. Without it, a payload that holds both a weak and a normal handle of the
    same actor might hold only the weak one.

    A client's handles don't have the attribute: a client's server has one handle of each actor, however many the client has. Hence
    `vars`: a client's handle that is asked for an attribute it doesn't have asks the cluster for the actor's methods.
    """
    return bool(vars(handle).get("_ray_weak_ref", False))


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


# By an actor's id, whether the actor is detached, which never changes.
# Bound: about `_MOST_REMEMBERED`; then all are forgotten and asked for again. No lock: each step on the dictionary is atomic, and the
# worst that two threads at once can do is to ask Ray twice.
_detached: dict[bytes, bool] = {}
_MOST_REMEMBERED = 4096


def is_detached(actor_id: Any) -> bool:
    """Whether an actor outlives its creator. About 1 ms the first time.

    Private: the actor's row in Ray's control service (`get_actor_info`), seen since Ray 2.52. A detached actor has no owner, but its
    handle names one in every process other than its creator. Without it, a lease of a detached actor would end with the actor's
    creator.
    """
    from ray.core.generated import gcs_pb2

    known = _detached.get(actor_id.binary())
    if known is not None:
        return known
    row = accessor().get_actor_info(actor_id)
    if row is None:
        return False  # it is being created: ask again next time
    actor = gcs_pb2.ActorTableData()  # type: ignore[attr-defined] # generated at build time
    actor.ParseFromString(row)
    if len(_detached) >= _MOST_REMEMBERED:
        _detached.clear()
    _detached[actor_id.binary()] = found = bool(actor.is_detached)
    return found
