"""Where references become numbered slots on the way out, and slots become references again on the way in.

Out: `copyreg` reducers for Ray's reference types (see `kinds`), which act only while safe_refs is pickling in the same thread. At any
other time they return what the type's own `__reduce__` returns. So the C pickler runs at full speed and asks us only about
references. Ray's own in-band pickler looks in its own table first, so it never calls these reducers. They are registered once Ray
has been imported: no reference exists before that.

In: a slot in a pickle is a call of `slot(tag, number)`, which answers from the payload being opened in this thread. The tag is drawn
anew for each payload: a slot that somehow ended up in another payload's pickle finds nothing, rather than the wrong object.

Later: an object may keep bytes that it pickled inside of a payload, and open them when `loads` has long returned. So this process
remembers the payloads that it opened or made lately (`lately`), and such a slot asks the registry.
"""

from __future__ import annotations

import copyreg
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from ._ray import serializing
from .errors import EnvelopeError, RegistryUnavailableError

if TYPE_CHECKING:
    import ray

    from .envelope import LeaseAddress

    Reference = ray.ObjectRef[Any] | ray.actor.ActorHandle[Any]

# A lease that code called by a pickling has made: its id, and how to end it.
Nested: TypeAlias = tuple[bytes, Callable[[], None]]

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


# Whose frames call picklers of ours.
_PICKLERS = ("safe_refs.engine", "safe_refs.slots", "safe_refs.by_value", "safe_refs.pickler")


class Writing:
    """The state of one pickling: its references, each once, and the leases that code called by it has made.

    It allocates nothing before the first of them. With the first reference it draws the tag of the payload, and the id of its
    lease. If the object is pickled once more, in another way, the same `Writing` is used again (`again`): the object may have kept
    bytes that have slots or a payload in them, and give the same bytes to the second pickling.
    """

    refs: list[Reference] | None = None
    kinds: str = ""
    tag: bytes = b""
    lease: bytes = b""
    nested: list[Nested] | None = None  # those leases; as many as that code makes
    _earlier: Sequence[Nested] = ()  # those of an attempt that came to nothing
    _before = 0  # so many of them are of the attempt before this one
    _numbers: dict[Any, int]
    _is_used = False  # this attempt has met a reference
    _is_outside = False  # another pickler has met one: the object may have kept its bytes, in whatever form

    def number(self, ref: Reference, kind: str) -> tuple[bytes, int]:
        """Tag and number of the slot for `ref`, which is of that kind; equal references share one."""
        if self.refs is None:
            if sys.is_finalizing():
                raise RegistryUnavailableError(
                    "Python is coming to its end, and Ray has ended: pass references on before that"
                )
            try:
                drawn = _drawn[os.getpid()].pop()
            except LookupError:  # nothing is left, or this is a new process
                drawn = _draw()
            self.refs, self._numbers, self.tag, self.lease = [], {}, drawn[:8], drawn[8:]
        self._is_used = True
        number = self._numbers.get(ref)
        if number is None:
            number = self._numbers[ref] = len(self.refs)
            caller = sys._getframe(2)  # it has called the pickler that has called the reducer
            if caller.f_globals.get("__name__") not in _PICKLERS:
                self._is_outside = True
            self.refs.append(ref)
            self.kinds += kind
        return self.tag, number

    def note(self, lease: bytes, end: Callable[[], None]) -> None:
        """A `__reduce__` or the like has made a lease of its own, which is to end if this pickling comes to nothing."""
        if self.nested is None:
            self.nested = []
        self.nested.append((lease, end))

    def hand_on(self) -> None:
        """Give the leases that code called by this pickling has made to the pickling around this one, if there is one."""
        if state.writing is not None:
            for lease, end in self.nested or ():
                state.writing.note(lease, end)

    def again(self) -> None:
        """The object is pickled once more."""
        if self.refs is None and self.nested is None and not self._earlier:
            return  # nearly always
        self._before = len(self.nested or ())
        self._earlier, self.nested, self._is_used = (*self._earlier, *(self.nested or ())), None, False

    def keep_what_is_in(self, pieces: Sequence[bytes], meets_all: bool) -> None:
        """The object has been pickled, once more if need be. What only an earlier attempt met goes, unless these pieces hold it.

        Args:
            pieces: what has been written. They may name it; or hold it out of sight, in bytes that an object has pickled and
                compressed in the earlier attempt, and kept.
            meets_all: this attempt meets all that earlier ones met, so that what it has not met is out of sight. If it doesn't, what
                another pickler has met in the earlier attempt may be, and stays; so do leases, if this attempt has made none.
        """
        if self.refs is None and not self._earlier:
            return  # nearly always
        earlier, self._earlier = self._earlier, ()
        hidden = len(self.nested or ()) < self._before if meets_all else not self.nested
        for lease, end in earlier:
            if hidden or any(lease in piece for piece in pieces):
                self.note(lease, end)
            else:
                end()
        is_met = meets_all or self._is_used or self._is_outside
        if self.refs is not None and not is_met and not any(self.tag in piece for piece in pieces):
            self.refs, self.kinds = None, ""

    def discard(self) -> None:
        """This pickling comes to nothing: end the leases that code called by it has made."""
        for _, end in (*self._earlier, *(self.nested or ())):
            end()


class Opened:
    """What slots that are opened later need to know of a payload that was opened or made here.

    Args:
        address: where its lease lives.
        kinds: of its slots, as in its header.
        resolve: whether its slots give references; otherwise handles.

    Attributes:
        use: id of a use of the lease: all slots that are opened later count as this one use. Drawn when it is needed.
    """

    __slots__ = ("address", "kinds", "resolve", "use")

    def __init__(self, address: LeaseAddress, kinds: str, resolve: bool) -> None:
        self.address = address
        self.kinds = kinds
        self.resolve = resolve
        self.use = b""


class _Lately:
    """The payloads that this process opened or made lately, by tag: the last 4,096 at least, and 8,192 at most (some 4 MB).

    No lock: each step is one for the interpreter, and threads that begin a new half at once lose at most what they add just then.
    """

    def __init__(self) -> None:
        self._new: dict[bytes, Opened] = {}
        self._old: dict[bytes, Opened] = {}

    def add(self, tag: bytes, payload: Opened) -> None:
        """Remember a payload, in place of an earlier one of the same tag."""
        new = self._new
        if len(new) >= _HALF:
            self._old, self._new = new, (new := {})
        new[tag] = payload

    def find(self, tag: bytes) -> Opened | None:
        """A payload, if it is remembered."""
        return self._new.get(tag) or self._old.get(tag)


_HALF = 4096
lately = _Lately()


def _not_later(payload: Opened, number: int) -> Any:
    raise AssertionError("nobody has opened a payload yet")


# Gives what stands in a slot that is opened when its payload is no longer being opened; `handle` sets it.
later: Callable[[Opened, int], Any] = _not_later


class Reading:
    """What stands in the slots of one payload while it is being unpickled.

    Args:
        tag: the payload's, which its slots name.
        values: for each slot, the reference or handle to put there.
        payload: for slots that are opened later.
    """

    def __init__(self, tag: bytes, values: Sequence[Any], payload: Opened) -> None:
        self.tag = tag
        self.values = values
        self.around: Reading | None = None
        lately.add(tag, payload)


class _State(threading.local):
    """What this thread is doing; None when nothing."""

    writing: Writing | None = None
    reading: Reading | None = None


state = _State()


@contextmanager
def opening(reading: Reading) -> Iterator[None]:
    """A context manager: inside, the slots of that payload are its values.

    A signal handler may raise at any line. So the state is put back twice: if the handler raises in one of these lines, the other
    one still runs. If it raises when the block is left, before this generator goes on, Python closes the generator with the block's
    frame.
    """
    around = state.reading
    try:
        try:
            reading.around, state.reading = around, reading
            yield
        finally:
            state.reading = around
    finally:
        state.reading = around


def collect(writing: Writing, pickle: Callable[[Any], Any], obj: Any) -> Any:
    """Pickle an object by that function. Its references go to `writing`."""
    around = state.writing
    try:
        try:
            state.writing = writing
            return pickle(obj)
        finally:
            state.writing = around
    finally:
        state.writing = around  # once more: a signal handler may raise at any line


def slot(tag: bytes, number: int) -> Any:
    """Give the reference of a slot. Pickles call this. A slot whose payload is not being opened in this thread asks the registry.

    Raises:
        EnvelopeError: the slot is of a payload that this process has not opened lately, or that has no such slot.
        SafeRefsError: another one, as from `loads`, for a slot that is opened later.
    """
    writing = state.writing
    if writing is not None and writing.refs is not None and tag == writing.tag:
        return writing.refs[number]  # `copy` uses these reducers too: a `__getstate__` copies a reference
    reading = state.reading
    while reading is not None:  # of this payload, or of one that is being opened around it
        if tag == reading.tag and 0 <= number < len(reading.values):
            return reading.values[number]
        reading = reading.around
    payload = lately.find(tag)
    if payload is not None and 0 <= number < len(payload.kinds):
        return later(payload, number)
    if state.reading is None:
        raise EnvelopeError(
            "a slot of a payload was unpickled by itself, in a process that has not opened that payload lately: open the whole "
            "payload, with loads()"
        )
    raise EnvelopeError(
        "the pickle names a reference that its payload does not hold: it was put together from parts of others"
    )


# Pickles name this function, so its address is a part of the payload format: it stays as it is (docs/format.md).
slot.__module__ = "safe_refs"
slot.__qualname__ = slot.__name__ = "_slot"


# Modules that safe_refs has something to register for once they are imported, each with the function that does it and says whether
# it could. `kinds` and `by_value` add rows. Every pickling looks here, so it is short. It is replaced as a whole and never changed,
# so that threads may look at it at any time.
waiting: tuple[tuple[str, Callable[[], bool]], ...] = ()


# The reducers of all types that are references, or are refused. Bound: by the rows of `waiting`. Only ever added to.
reducers: dict[type, Callable[[Any], Any]] = {}


def reduce_by(kind: type, reducer: Callable[[Any], Any]) -> None:
    """Have all picklers reduce objects of exactly this type by `reducer`; Ray's own in-band one has a table of its own."""
    reducers[kind] = reducer
    copyreg.pickle(kind, reducer)


def register() -> None:
    """Register what belongs to those modules of `waiting` that have been imported by now. Cheap when nothing is new."""
    global waiting
    for module, register_its in waiting:
        if module in sys.modules and register_its():
            waiting = tuple(row for row in waiting if row[0] != module)


def _no_transport(ref: ray.ObjectRef[Any]) -> object:
    return None


def _no_refusal(ref: ray.ObjectRef[Any]) -> Exception:
    raise AssertionError("no reference has a transport yet")


# Whether a reference's value is elsewhere than in Ray's object store, and the error for such a reference; `kinds` sets both when
# Ray is there.
transport: Callable[[Any], object] = _no_transport
refuse_transported: Callable[[Any], Exception] = _no_refusal


def reduce_object_ref(ref: ray.ObjectRef[Any]) -> Any:
    """The reducer for `ray.ObjectRef`."""
    writing = state.writing
    if writing is None or (serializing.local.__dict__.get("in_band") and serializing.is_innermost()):
        return ref.__reduce__()
    if transport(ref):
        raise refuse_transported(ref)
    return slot, writing.number(ref, OBJECT_REF)
