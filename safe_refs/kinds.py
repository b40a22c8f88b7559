"""Which types are references, what is carried of them, and what is refused.

What always holds: no library is imported that isn't in use here already; a reducer returns what the type's own `__reduce__` returns,
except while safe_refs pickles in the same thread.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import others, slots
from ._ray import objects
from .errors import UnsupportedReferenceError
from .slots import ACTOR, OBJECT_REF, reduce_object_ref, slot, state

if TYPE_CHECKING:
    import ray


def _reduce_actor(handle: ray.actor.ActorHandle[Any]) -> Any:
    writing = state.writing
    if writing is None:
        return handle.__reduce__()  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    return slot, writing.number(handle, ACTOR)


def kind_of(reference: Any) -> str | None:
    """The kind of slot that a reference gets; None for what is none, or none that can be carried."""
    reduce = copyreg.dispatch_table.get(type(reference))
    return _KIND_BY_REDUCER.get(reduce)


def _reduce_client_object_ref(ref: Any) -> Any:
    """Ray Client's `ClientObjectRef`, by a reducer of its own, as reducers are looked up by the exact type. It has no transport."""
    writing = state.writing
    if writing is None:
        return ref.__reduce__()
    return slot, writing.number(ref, OBJECT_REF)


def _reduce_client_actor(handle: Any) -> Any:
    """Ray Client's `ClientActorHandle`, which has no `__reduce__` of its own."""
    writing = state.writing
    if writing is None:
        return handle.__reduce_ex__(_ITS_PROTOCOL)
    return slot, writing.number(handle, ACTOR)


_ITS_PROTOCOL = 4  # as `copy` asks, and every pickler of today
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
        if state.writing is None:
            return reference.__reduce_ex__(_ITS_PROTOCOL)
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
    reduce: Any = copyreg.dispatch_table.get(type(reference))
    if reduce is reduce_object_ref and slots.transport(reference):
        return _refuse_transported(reference)
    return reduce.error(reference) if type(reduce) is _Refuse else None


def _register_ray() -> bool:
    import ray

    if not hasattr(ray, "actor"):  # another thread is in the middle of importing Ray: nobody has a reference yet
        return False
    slots.transport, slots.refuse_transported = objects.transport_of(), _refuse_transported
    copyreg.pickle(ray.ObjectRef, reduce_object_ref)
    copyreg.pickle(ray.actor.ActorHandle, _reduce_actor)
    remedy = "pass on the references that it yields, each when it comes or all of them as list(generator)"
    copyreg.pickle(ray.ObjectRefGenerator, _Refuse("ray.ObjectRefGenerator", remedy))
    return True


def _register_client() -> bool:
    client = sys.modules["ray.util.client.common"]
    if not hasattr(client, "ClientObjectRef") or not hasattr(client, "ClientActorHandle"):
        return False
    copyreg.pickle(client.ClientObjectRef, _reduce_client_object_ref)
    copyreg.pickle(client.ClientActorHandle, _reduce_client_actor)
    return True


def _register_compiled_graphs() -> bool:
    graphs = sys.modules["ray.experimental.compiled_dag_ref"]
    for name, get in (("CompiledDAGRef", "ray.get"), ("CompiledDAGFuture", "await")):
        if not hasattr(graphs, name):
            return False
        remedy = f"only the process that ran the graph can have its result: {get} it there, and pass on the value, or ray.put it"
        copyreg.pickle(getattr(graphs, name), _Refuse(f"ray.experimental.compiled_dag_ref.{name}", remedy))
    return True


def _others(reducers_of: Callable[[], others.Reducers | None]) -> Callable[[], bool]:
    """How to register what `others` gives for one library."""

    def give_reducers() -> bool:
        reducers = reducers_of()
        for kind, reduce in (reducers or {}).items():
            copyreg.pickle(kind, _Refuse(*reduce) if isinstance(reduce, others.Refused) else _while_writing(reduce))
        return reducers is not None

    return give_reducers


def _while_writing(reduce: others.Reduce) -> others.Reduce:
    def reducer(obj: Any) -> Any:
        writing = state.writing
        if writing is None:
            return obj.__reduce_ex__(4)  # as `copy` asks, and every pickler of today
        state.writing = None  # for a library that has something to do first, and may let Ray pickle for it
        try:
            reduced = reduce(obj)
        finally:
            state.writing = writing
        return reduced if isinstance(reduced, (tuple, str)) else reduce_object_ref(reduced)

    return reducer


slots.waiting = (
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
        self._ours = {
            kind: reduce
            for kind, reduce in copyreg.dispatch_table.copy().items()
            if reduce.__module__ in (__name__, slots.__name__)
        }

    def __getitem__(self, kind: type) -> Callable[[Any], Any]:
        try:
            reduce: Callable[[Any], Any] = self._table[kind]
        except KeyError:
            return self._ours[kind]
        return reduce

    def __contains__(self, kind: type) -> bool:
        try:
            self[kind]
        except KeyError:
            return False
        return True
