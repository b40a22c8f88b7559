"""Where references become numbered slots on the way out, and slots become references again on the way in.

Out: `copyreg` reducers for Ray's reference types (see `kinds`), which act only while safe_refs is pickling in the same thread. At any
other time they return what the type's own `__reduce__` returns. So the C pickler runs at full speed and asks us only about
references. Ray's own in-band pickler looks in its own table first, so it never calls these reducers. They are registered once Ray
has been imported: no reference exists before that.

In: a slot in a pickle is a call of `slot(tag, number)`, which answers from the payload being opened in this thread. The tag is drawn
anew for each payload: a slot that somehow ended up in another payload's pickle finds nothing, rather than the wrong object.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._ray import actors
from .errors import EnvelopeError

if TYPE_CHECKING:
    import ray

    Reference = ray.ObjectRef[Any] | ray.actor.ActorHandle[Any]

# The kinds of a slot, as they stand in a payload's header.
OBJECT_REF = "o"
ACTOR = "a"
KINDS = frozenset({OBJECT_REF, ACTOR})


# Random bytes for the next payloads, 24 for each, good enough for secrets. To ask the operating system for each payload takes 3 to
# 7 µs, and lets the thread that sends take the interpreter in the middle of `dumps`, which then takes half as long again. By process
# id: a forked child must not use what its parent drew, however and wherever it was forked. Bound: what one draw of each thread gives.
# No lock: each step is one for the interpreter.
_drawn: dict[int, deque[bytes]] = {}
_IDS = 24
_PAGE = 170 * _IDS


def _draw() -> bytes:
    me = os.getpid()
    for other in [each for each in _drawn if each != me]:
        _drawn.pop(other, None)  # a parent's, whose id may be a child's one day
    pool = _drawn.setdefault(me, deque())
    page = os.urandom(_PAGE)
    pool.extend([page[start : start + _IDS] for start in range(_IDS, _PAGE, _IDS)])
    return page[:_IDS]


class Writing:
    """The state of one pickling: its references, each once, and the leases that code called by it has made.

    It allocates nothing before the first of them. With the first reference it draws the tag of the payload, and the id of its lease.
    """

    refs: list[Reference] | None = None
    kinds: str = ""
    tag: bytes = b""
    lease: bytes = b""
    nested: list[Callable[[], None]] | None = None  # how to end each of those leases; as many as that code makes
    _numbers: dict[Any, int]

    def number(self, ref: Reference, kind: str) -> tuple[bytes, int]:
        """Tag and number of the slot for `ref`, which is of that kind; equal references share one."""
        if self.refs is None:
            try:
                drawn = _drawn[os.getpid()].pop()
            except LookupError:  # nothing is left, or this is a new process
                drawn = _draw()
            self.refs, self._numbers, self.tag, self.lease = [], {}, drawn[:8], drawn[8:]
        # Two handles of an actor are equal, though one of them keeps it alive and the other doesn't.
        key: Any = (ref, actors.is_weak(ref)) if kind == ACTOR else ref
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.refs)
            self.refs.append(ref)
            self.kinds += kind
        return self.tag, number

    def note(self, end: Callable[[], None]) -> None:
        """A `__reduce__` or the like has made a lease of its own, which is to end if this pickling comes to nothing."""
        if self.nested is None:
            self.nested = []
        self.nested.append(end)

    def hand_on(self) -> None:
        """This pickle is bytes alone: what was made under way belongs to the pickling around it, if there is one."""
        if state.writing is not None:
            for end in self.nested or ():
                state.writing.note(end)

    def discard(self) -> None:
        """This pickling comes to nothing: end the leases that code called by it has made."""
        for end in self.nested or ():
            end()


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
        return writing.refs[number]  # `copy` uses these reducers too: a `__getstate__` copies a reference
    reading = state.reading
    if reading is None:
        raise EnvelopeError("a slot of a payload was unpickled by itself: open the whole payload, with loads()")
    return reading.find(tag, number)


# Pickles name this function, so its address is a part of the payload format: it stays as it is (docs/format.md).
slot.__module__ = "safe_refs"
slot.__qualname__ = slot.__name__ = "_slot"


# Modules whose reference types have no reducers yet, each with the function that registers them; `kinds` says which. Every pickling
# looks here, so it is short. It is replaced as a whole and never changed, so that threads may look at it at any time.
waiting: tuple[tuple[str, Callable[[], bool]], ...] = ()


def register() -> None:
    """Register the reducers for those reference types whose modules have been imported by now. Cheap when nothing is new."""
    global waiting
    for module, give_reducers in waiting:
        if module in sys.modules and give_reducers():
            waiting = tuple(row for row in waiting if row[0] != module)


def _no_transport(ref: ray.ObjectRef[Any]) -> object:
    return None


def _no_refusal(ref: ray.ObjectRef[Any]) -> Exception:
    raise AssertionError("no reference has a transport yet")


# Whether a reference's value is elsewhere than in Ray's object store, and the error for one; `kinds` sets both when Ray is there.
transport: Callable[[Any], object] = _no_transport
refuse_transported: Callable[[Any], Exception] = _no_refusal


def reduce_object_ref(ref: ray.ObjectRef[Any]) -> Any:
    """The reducer for `ray.ObjectRef`."""
    writing = state.writing
    if writing is None:
        return ref.__reduce__()
    if transport(ref):
        raise refuse_transported(ref)
    return slot, writing.number(ref, OBJECT_REF)
