"""Where references become numbered slots on the way out, and slots become references again on the way in.

Out: `copyreg` reducers for Ray's reference types, which act only while safe_refs is pickling in the same thread; at any other time
they give just what the type's own `__reduce__` gives. So the C pickler runs at full speed and asks us only about references, and
Ray's own in-band pickler, which looks in a private table first, never sees us. They are registered once Ray is in the process,
and only then can a reference exist.

In: a slot in a pickle is a call of `slot(tag, number)`, which answers from the payload being opened in this thread. The tag is drawn
anew for each payload: a slot that somehow ended up in another payload's pickle finds nothing, rather than the wrong object.
"""

from __future__ import annotations

import copyreg
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _ray, others
from .errors import EnvelopeError, UnsupportedReferenceError
from .randomness import token

if TYPE_CHECKING:
    import ray

    Reference = ray.ObjectRef[Any] | ray.actor.ActorHandle[Any]

# The kinds of a slot, as they stand in a payload's header.
OBJECT_REF = "o"
ACTOR = "a"
KINDS = frozenset({OBJECT_REF, ACTOR})


class Writing:
    """What is met while one object is being pickled: its references, each once, and leases made by code that pickling calls.

    Costs nothing until the first one.
    """

    refs: list[Reference] | None = None
    kinds: str = ""
    tag: bytes = b""
    nested: list[tuple[str, bytes]] | None = None
    _numbers: dict[Any, int]

    def number(self, ref: Reference, kind: str) -> tuple[bytes, int]:
        """Tag and number of the slot for `ref`, which is of that kind; equal references share one."""
        if self.refs is None:
            self.refs, self._numbers, self.tag = [], {}, token(8)
        # Two handles of an actor are equal, though one of them keeps it alive and the other doesn't.
        key: Any = (ref, _ray.is_weak(ref)) if kind == ACTOR else ref
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.refs)
            self.refs.append(ref)
            self.kinds += kind
        return self.tag, number

    def note(self, registry: str, lease: bytes) -> None:
        """A `__reduce__` or the like has made a lease of its own, which is to end if this pickling comes to nothing."""
        if self.nested is None:
            self.nested = []
        self.nested.append((registry, lease))


class Reading:
    """What stands in the slots of one payload while it is being unpickled. Used as a context manager.

    Args:
        tag: what the payload's slots call it by.
        values: for each slot, the reference or handle to put there.
    """

    def __init__(self, tag: bytes, values: Sequence[Any]) -> None:
        self._tag = tag
        self._values = values
        self._around: Reading | None = None

    def __enter__(self) -> None:
        self._around = state.reading
        state.reading = self

    def __exit__(self, *_: object) -> None:
        state.reading = self._around

    def find(self, tag: bytes, number: int) -> Any:
        """What stands in a slot of this payload, or of one that is being opened around it."""
        if tag == self._tag:
            if 0 <= number < len(self._values):
                return self._values[number]
        elif self._around is not None:
            return self._around.find(tag, number)
        raise EnvelopeError(
            "the pickle names a reference that its payload does not hold: it was put together from parts of others"
        )


class _State(threading.local):
    """What this thread is doing; None when nothing."""

    writing: Writing | None = None
    reading: Reading | None = None


state = _State()


def slot(tag: bytes, number: int) -> Any:
    """Give the reference of a slot. Pickles call this; it works only while their payload is being opened.

    Raises:
        EnvelopeError: the slot belongs to another payload, or no payload is being opened.
    """
    writing = state.writing
    if writing is not None and writing.refs is not None and tag == writing.tag:
        return writing.refs[number]  # a `__getstate__` copies what it gives away: `copy` asks the same reducers
    reading = state.reading
    if reading is None:
        raise EnvelopeError("a slot of a payload was unpickled by itself: open the whole payload, with loads()")
    return reading.find(tag, number)


# Pickles name this function, so its address is a part of the payload format: it stays as it is (docs/format.md).
slot.__module__ = "safe_refs"
slot.__qualname__ = slot.__name__ = "_slot"


def _reduce_object_ref(ref: ray.ObjectRef[Any]) -> Any:
    writing = state.writing
    if writing is None:
        return ref.__reduce__()
    if _transport(ref):
        raise _refuse_transported(ref)
    return slot, writing.number(ref, OBJECT_REF)


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
    _reduce_object_ref: OBJECT_REF,
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


def _no_transport(ref: ray.ObjectRef[Any]) -> object:
    return None


# Whether the value of a reference is elsewhere than in Ray's object store; Ray's own answer as soon as Ray is there.
_transport: Callable[[Any], object] = _no_transport


def _refuse_transported(ref: ray.ObjectRef[Any]) -> UnsupportedReferenceError:
    what = "a ray.ObjectRef made with a tensor transport (RDT), which safe_refs can't carry"
    remedy = "ray.get it where its tensors may be read, and pass on the value, or what ray.put makes of it without a transport"
    return UnsupportedReferenceError.of(ref, what, remedy, kind="ray.ObjectRef")


def refusal(reference: Any) -> UnsupportedReferenceError | None:
    """The error for a reference of a kind that can't be carried; None for all else."""
    reduce: Any = copyreg.dispatch_table.get(type(reference))
    if reduce is _reduce_object_ref and _transport(reference):
        return _refuse_transported(reference)
    return reduce.error(reference) if type(reduce) is _Refuse else None


def _register_ray() -> bool:
    import ray

    if not hasattr(ray, "actor"):  # another thread is in the middle of importing Ray: nobody has a reference yet
        return False
    global _transport
    _transport = _ray.transport_of()
    copyreg.pickle(ray.ObjectRef, _reduce_object_ref)
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
        return reduced if isinstance(reduced, (tuple, str)) else _reduce_object_ref(reduced)

    return reducer


# Modules whose reference types have no reducers yet, and what gives them some. Every pickling looks here, so it is short; replaced
# as a whole, never changed, so that threads may look at it at any time.
_waiting: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("ray", _register_ray),
    ("ray.util.client.common", _register_client),
    ("ray.experimental.compiled_dag_ref", _register_compiled_graphs),
    (others.SERVE, _others(others.of_serve)),
    (others.MODIN, _others(others.of_modin)),
)


def register() -> None:
    """Register the reducers for those reference types whose modules have been imported by now. Cheap when nothing is new."""
    global _waiting
    for module, give_reducers in _waiting:
        if module in sys.modules and give_reducers():
            _waiting = tuple(row for row in _waiting if row[0] != module)


class WithReducers:
    """A pickler's private dispatch table, completed with the reducers for references where it has none of its own.

    Args:
        table: the user's: any mapping, asked by `table[type]` and nothing else.
    """

    def __init__(self, table: Any) -> None:
        register()
        self._table = table
        self._ours = {
            kind: reduce for kind, reduce in copyreg.dispatch_table.copy().items() if reduce.__module__ == __name__
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
