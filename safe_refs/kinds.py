"""Which types are references, what is carried of them, and what is refused.

What always holds: no library is imported that isn't in use here already; a reducer returns what the type's own `__reduce__` returns,
except while safe_refs pickles in the same thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import others, slots
from ._ray import actors, native, objects, serializing
from .errors import UnsupportedReferenceError
from .slots import ACTOR, OBJECT_REF, reduce_by, reduce_object_ref, slot, state

if TYPE_CHECKING:
    import ray


def _here() -> slots.Writing | None:
    """What safe_refs pickles in this thread; None while it pickles nothing, or Ray pickles something in-band inside of that."""
    writing = state.writing
    return None if writing is None or serializing.is_innermost() else writing


def _reduce_actor(handle: ray.actor.ActorHandle[Any]) -> Any:
    writing = _here()
    if writing is None:
        return handle.__reduce__()  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    return slot, writing.number(carried(handle), ACTOR)


def carried(reference: Any) -> Any:
    """What a lease is to hold for a reference: the same, but for an actor's handle that keeps nothing alive one that does.

    Raises:
        UnsupportedReferenceError: there is no such handle here.
    """
    if not actors.is_actor_handle(reference) or not actors.is_weak(reference):
        return reference
    found = actors.holding(reference)
    if found is None:
        raise actors.unheld(reference)
    return found


def kind_of(reference: Any) -> str | None:
    """The kind of slot that a reference gets; None for what is none, or none that can be carried."""
    reduce = slots.reducers.get(type(reference))
    return _KIND_BY_REDUCER.get(reduce)


def _reduce_client_object_ref(ref: Any) -> Any:
    """Ray Client's `ClientObjectRef`, by a reducer of its own, as reducers are looked up by the exact type. It has no transport."""
    writing = _here()
    if writing is None:
        return ref.__reduce__()
    return slot, writing.number(ref, OBJECT_REF)


def _reduce_client_actor(handle: Any) -> Any:
    """Ray Client's `ClientActorHandle`, which has no `__reduce__` of its own."""
    writing = _here()
    if writing is None:
        return handle.__reduce_ex__(_REDUCE_PROTOCOL)
    return slot, writing.number(handle, ACTOR)


_REDUCE_PROTOCOL = 4  # as `copy` asks, and every pickler of today
_KIND_BY_REDUCER: dict[Any, str] = {
    reduce_object_ref: OBJECT_REF,
    _reduce_actor: ACTOR,
    _reduce_client_object_ref: OBJECT_REF,
    _reduce_client_actor: ACTOR,
}


class _Refuse:
    """A reducer for references of a kind that can't be carried.

    Args:
        what: their type, by its public name.
        remedy: what to do instead.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self._what = what
        self._remedy = remedy

    def __call__(self, reference: Any) -> Any:
        if _here() is None:
            return reference.__reduce_ex__(_REDUCE_PROTOCOL)
        raise self.error(reference)

    def error(self, reference: Any) -> UnsupportedReferenceError:
        """The error for one of them."""
        what = f"a {self._what}, which safe_refs can't carry"
        return UnsupportedReferenceError.of(reference, what, self._remedy, kind=self._what)


def _refuse_transported(ref: ray.ObjectRef[Any]) -> UnsupportedReferenceError:
    what = "a ray.ObjectRef made with a tensor transport (RDT), which safe_refs can't carry"
    remedy = "ray.get it where its tensors may be read, and pass on the value, or what ray.put makes of it without a transport"
    return UnsupportedReferenceError.of(ref, what, remedy, kind="ray.ObjectRef")


def refusal(reference: Any) -> UnsupportedReferenceError | None:
    """The error for a reference of a kind that can't be carried; None for all else."""
    reduce: Any = slots.reducers.get(type(reference))
    if reduce is reduce_object_ref and slots.transport(reference):
        return _refuse_transported(reference)
    return reduce.error(reference) if type(reduce) is _Refuse else None


def _register_ray() -> bool:
    ray: Any = sys.modules["ray"]
    # Another thread, or a frame below, is in the middle of importing Ray, for which an import here would wait; or this is a stand-in
    # for it, or None, as tests have them: nobody has a reference yet. (`_initializing` is CPython's own; nothing public says it.)
    if not native.is_imported() or getattr(ray.__spec__, "_initializing", False) or not hasattr(ray, "actor"):
        return False
    slots.transport, slots.refuse_transported = objects.transport_of(), _refuse_transported
    reduce_by(ray.ObjectRef, reduce_object_ref)
    reduce_by(ray.actor.ActorHandle, _reduce_actor)
    remedy = "pass on the references that it yields, each when it comes or all of them as list(generator)"
    # `ray.cloudpickle` has reducers of its own for these two, which pin what they pickle outside of Ray, or refuse it.
    ours: dict[type, Callable[[Any], Any]] = {ray.ObjectRef: reduce_object_ref, ray.actor.ActorHandle: _reduce_actor}
    serializing.ask_first(ours, lambda: state.writing is not None)
    reduce_by(ray.ObjectRefGenerator, _Refuse("ray.ObjectRefGenerator", remedy))
    return True


def _register_client() -> bool:
    client = sys.modules["ray.util.client.common"]
    if not hasattr(client, "ClientObjectRef") or not hasattr(client, "ClientActorHandle"):
        return False
    reduce_by(client.ClientObjectRef, _reduce_client_object_ref)
    reduce_by(client.ClientActorHandle, _reduce_client_actor)
    return True


def _register_compiled_graphs() -> bool:
    graphs = sys.modules["ray.experimental.compiled_dag_ref"]
    for name, get in (("CompiledDAGRef", "ray.get"), ("CompiledDAGFuture", "await")):
        if not hasattr(graphs, name):
            return False
        remedy = f"only the process that ran the graph can have its result: {get} it there, and pass on the value, or ray.put it"
        reduce_by(getattr(graphs, name), _Refuse(f"ray.experimental.compiled_dag_ref.{name}", remedy))
    return True


def _others(reducers_of: Callable[[], others.Reducers | None]) -> Callable[[], bool]:
    """How to register what `others` gives for one library."""

    def give_reducers() -> bool:
        reducers = reducers_of()
        for kind, reduce in (reducers or {}).items():
            reduce_by(kind, _Refuse(*reduce) if isinstance(reduce, others.Refused) else _while_writing(reduce))
        return reducers is not None

    return give_reducers


def _while_writing(reduce: others.Reduce) -> others.Reduce:
    def reducer(obj: Any) -> Any:
        writing = _here()
        if writing is None:
            return obj.__reduce_ex__(_REDUCE_PROTOCOL)
        state.writing = None  # for a library that has something to do first, and may let Ray pickle for it
        try:
            reduced = reduce(obj)
        finally:
            state.writing = writing
        return reduced if isinstance(reduced, (tuple, str)) else reduce_object_ref(reduced)

    return reducer


slots.waiting = (
    *slots.waiting,
    ("ray", _register_ray),
    ("ray.util.client.common", _register_client),
    ("ray.experimental.compiled_dag_ref", _register_compiled_graphs),
    (others.SERVE, _others(others.of_serve)),
    (others.MODIN, _others(others.of_modin)),
)


class WithReducers:
    """A pickler's private dispatch table, completed with the reducers for references where it has none of its own.

    Args:
        table: the user's: any mapping, asked by `table[type]` and nothing else.
    """

    def __init__(self, table: Any) -> None:
        slots.register()
        self._table = table

    def __getitem__(self, kind: type) -> Callable[[Any], Any]:
        try:
            reduce: Callable[[Any], Any] = self._table[kind]
        except KeyError:
            return slots.reducers[kind]
        return reduce

    def __contains__(self, kind: type) -> bool:
        try:
            self[kind]
        except KeyError:
            return False
        return True
