"""The picklers under `dumps`: plain C pickle first, by value where it must be, and each object's references collected as slots.

    plain ── names nothing of the main script ──► the result
      │
      └─ names it, which is another module in another process; or can't pickle something by name ──► by value ──► the result
                                                                                                        │
                                     what plain pickle gives, whatever it names ◄── can't be done ──────┘

What always holds: buffers that don't change are not copied here; pickling never changes what it pickles; a pickling that fails
ends the leases that code called by it has made.
"""

from __future__ import annotations

import io
import operator
import pickle
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from . import (
    by_value,
    kinds,  # noqa: F401 # says which types are references
)
from .errors import DepthError, SafeRefsError, UnsupportedReferenceError
from .slots import Writing, collect, register, state

# The default of cloudpickle too, and of pickle itself since Python 3.14. Buffers can go out of band by protocol 5 only.
PROTOCOL = pickle.HIGHEST_PROTOCOL
_CPickler = pickle.Pickler  # as it is now: somebody may set the module's own to ours

# The C pickler writes its output in frames of 64 KiB, and ends a frame at the first object that passes that size. It writes larger
# bytes and buffers by themselves, as they are. So a piece that is larger than two frames (and some) is somebody's data, and names
# no class, unless it begins as a frame does: with the frame's opcode, or with that behind the pickle's own first two bytes.
_LARGEST_FRAME = 2 * 64 * 1024 + 4096
_FRAME = b"\x95"

# The main script's module has two names: the second one in a process that multiprocessing has spawned. Both end alike. Below, as
# protocols 4 and 5 write them.
MAIN_ENDS = b"_main__"
_MAINS = (b"\x8c\x08__main__", b"\x8c\x0b__mp_main__")

# What plain pickle raises if it can't pickle something by name, or at all.
_NEEDS_VALUES = (pickle.PicklingError, AttributeError, TypeError)

BufferCallback = Callable[[pickle.PickleBuffer], object]
Make: TypeAlias = "Callable[[Sink, Buffers | None], Any]"


class Pickled(NamedTuple):
    """An object pickled, but not yet anybody's payload.

    Attributes:
        pieces: its bytes, in order.
        writing: its references, and leases that code called by pickling has made.
        buffers: how many buffers went out of band.
    """

    pieces: list[bytes]
    writing: Writing
    buffers: int


class NamesMainError(Exception):
    """A pickle names something of `__main__`, which is another module in another process. Never leaves this package."""


class Sink:
    """A file for the C pickler that keeps what it writes.

    Bytes are kept as they are. Another buffer has to be copied at once, as somebody could still write to it (the next `__reduce__`,
    another thread). From the first such buffer on everything is copied, into one place, so that nothing is copied twice.

    Args:
        watches: whether it refuses a pickle that names `__main__`, at the first frame that does.
        framed: False for protocols below 4: they have no frames, so that any piece may name `__main__`.

    Attributes:
        pieces: the bytes that were written, without the other buffers. If a pickle names a class, it does so in these.
    """

    __slots__ = ("_copy", "_looked", "framed", "pieces", "watches")

    def __init__(self, watches: bool = False, framed: bool = True) -> None:
        self.watches = watches
        self.framed = framed
        self.pieces: list[bytes] = []
        self._copy: io.BytesIO | None = None
        self._looked = 0  # how many pieces have been searched

    def write(self, piece: Any) -> None:
        """Take a piece of a pickle.

        Raises:
            NamesMainError: it names that module, and this sink watches.
        """
        if type(piece) is bytes:
            self.pieces.append(piece)
            # Whatever names a class needs STACK_GLOBAL, one byte, which is found quickly. Somebody's data need not be searched.
            if self.watches and (len(piece) <= _LARGEST_FRAME or _begins_as_frame(piece)) and b"\x93" in piece:
                # The module's name may stand in an earlier frame. Each is searched once, from the end: twice as fast in CPython.
                looked, self._looked = self._looked, len(self.pieces)
                for each in self.pieces[looked:]:
                    is_frame = len(each) <= _LARGEST_FRAME or _begins_as_frame(each)
                    if is_frame and each.rfind(MAIN_ENDS) >= 0 and any(main in each for main in _MAINS):
                        raise NamesMainError
            if not self.framed and self.watches and piece.rfind(MAIN_ENDS) >= 0:
                raise NamesMainError
            if self._copy is not None:
                self._copy.write(piece)
            return
        if self._copy is None:
            self._copy = io.BytesIO()
            self._copy.writelines(self.pieces)
        self._copy.write(piece.raw() if type(piece) is pickle.PickleBuffer else piece)

    def take_over(self, other: Sink) -> None:
        """Take what another sink holds; that one is empty afterwards."""
        self.pieces, self._copy = other.pieces, other._copy
        other.pieces, other._copy, other._looked = [], None, 0

    def take(self) -> list[bytes]:
        """All that was written, in order; this sink is empty afterwards."""
        taken = self.pieces if self._copy is None else [self._copy.getvalue()]
        self.pieces, self._copy, self._looked = [], None, 0
        return taken


def _begins_as_frame(piece: bytes) -> bool:
    """Whether a large piece may be a frame, which may name classes, and not somebody's data."""
    return piece[:1] == _FRAME or piece[2:3] == _FRAME


class Buffers:
    """A `buffer_callback` that lets an object be pickled more than once and asks the user about each buffer just once.

    The first pickling leaves all buffers out of band. Then `ask` asks the user's callback about each, and if it wants some of them in
    band, another pickling goes by its answers.
    """

    def __init__(self, callback: BufferCallback) -> None:
        self._callback = callback
        self._seen: list[pickle.PickleBuffer] = []
        self._answers: list[bool] | None = None

    def start(self) -> None:
        """Another pickling begins."""
        self._seen.clear()

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """The C pickler asks: in band?"""
        self._seen.append(buffer)
        return self._answers is not None and self._answers[len(self._seen) - 1]

    def ask(self) -> bool:
        """Ask the user about each buffer. True: some belong in band, so pickle once more."""
        self._answers, in_band = [], set()
        for buffer in self._seen:
            # The pickler remembers a buffer that is in band, and doesn't ask about it again.
            if id(buffer) not in in_band:
                self._answers.append(bool(self._callback(buffer)))
                if self._answers[-1]:
                    in_band.add(id(buffer))
        return bool(in_band)

    @property
    def is_asked(self) -> bool:
        """Whether the user has been asked, and this is another pickling of the same object."""
        return self._answers is not None

    @property
    def count(self) -> int:
        """How many buffers stay out of band."""
        return len(self._seen) - sum(self._answers or ())


class _Quick(threading.local):
    """A pickler kept for the next small object of this thread: making one costs as much as pickling a small dict."""

    kept: tuple[Sink, pickle.Pickler] | None = None  # together, as a signal handler may pickle something at any line


_quick = _Quick()


def pickle_object(
    obj: Any, protocol: int | None, fix_imports: bool, buffer_callback: BufferCallback | None
) -> bytes | Pickled:
    """Pickle an object, nearly always by the pickler that this thread keeps. Returns just bytes if it holds no references."""
    register()
    # The last two are `by_value.is_asked_for`, without a call for nearly every dumps.
    asks = protocol is not None or buffer_callback is not None or any(by_value.value_modules)
    if asks or (len(by_value.rays_table) != by_value.rays_own and by_value.has_serializers()):
        return _bare(pickle_with(_standard_picklers(protocol, fix_imports), obj, buffer_callback, protocol))
    if (
        type(obj) is FunctionType and obj.__name__ == "<lambda>"
    ):  # plain pickle would take as long to find out that it can't
        try:
            return _bare(_finish(_PICKLERS, obj, None, Writing()))
        except RecursionError as error:
            raise DepthError from error
    kept = _quick.kept
    # Taken out while it works, so that a `__reduce__` that pickles something itself gets another one.
    _quick.kept = None
    if kept is None:
        sink = Sink(watches=True)
        pickler = _CPickler(sink, PROTOCOL)
    else:
        sink, pickler = kept
    around, writing = state.writing, Writing()
    try:
        try:
            state.writing = writing
            pickler.dump(obj)
        except BaseException as error:
            if not isinstance(error, NamesMainError) and not (
                isinstance(error, _NEEDS_VALUES) and _may_be_mended(error)
            ):
                writing.discard()
                if isinstance(error, RecursionError):
                    raise DepthError from error
                raise
            sink.take()
        finally:
            state.writing = around
    finally:
        state.writing = around  # once more: a signal handler may raise at any line
    pieces = sink.take()
    if not pieces:
        return _bare(_finish(_PICKLERS, obj, None, writing))
    if len(pieces) == 1 and len(pieces[0]) <= _LARGEST_FRAME:
        # Only a pickler that met nothing large is kept: clearing a memo costs as much as it once grew to.
        pickler.clear_memo()
        _quick.kept = sink, pickler
        if writing.refs is None and writing.nested is None:
            return pieces[0]
    pickled = Pickled(pieces, writing, 0)
    return _bare(pickled) if writing.refs is None else pickled


def _bare(pickled: Pickled) -> bytes | Pickled:
    """Just the bytes, if the object holds no references."""
    if pickled.writing.refs is not None:
        return pickled
    pickled.writing.hand_on()
    return b"".join(pickled.pieces)


def pickle_with(
    picklers: Sequence[Make],
    obj: Any,
    buffer_callback: BufferCallback | None,
    protocol: int | None,
    *,
    plain_first: bool = True,
) -> Pickled:
    """Pickle `obj` by plain pickle, or by value where it must be; without `plain_first` by value at once. The callback is the user's.

    Raises:
        DepthError: recursion is too deep.
        Exception: what a pickler raises.
    """
    buffers = None if buffer_callback is None else Buffers(buffer_callback)
    writing = Writing()
    try:
        plain_first = plain_first and not by_value.is_asked_for()
        pickled = _attempt(picklers[0], obj, buffers, protocol, writing) if plain_first else None
        by_plain = pickled is not None
        if pickled is None:
            pickled = _finish(picklers, obj, buffers, writing)
        if buffers is not None and buffers.ask():
            once_more = partial(_run, picklers[0], sink=Sink()) if by_plain else partial(_finish, picklers)
            pickled = once_more(obj, buffers=buffers, writing=writing)
    except BaseException as error:
        writing.discard()
        if isinstance(error, RecursionError):
            raise DepthError from error
        raise
    return pickled


def _attempt(make: Make, obj: Any, buffers: Buffers | None, protocol: int | None, writing: Writing) -> Pickled | None:
    """Pickle with plain pickle; None where it has to be done by value."""
    framed = protocol is None or not 0 <= operator.index(protocol) < 4  # its error is pickle's, too
    try:
        return _run(make, obj, buffers, Sink(watches=True, framed=framed), writing)
    except NamesMainError:
        return None
    except _NEEDS_VALUES as error:
        if not _may_be_mended(error):
            raise
        return None


def _may_be_mended(error: Exception) -> bool:
    """Whether pickling by value may help. Trying in vain would call users' code twice, and use up what can be read only once."""
    if isinstance(error, (UnsupportedReferenceError, RecursionError)):
        return False
    # For what it can't pickle at all, pickle raises a TypeError that says so. Others are mistakes in somebody's `__reduce__`.
    return not isinstance(error, TypeError) or str(error).startswith("cannot pickle")


def _run(make: Make, obj: Any, buffers: Buffers | None, sink: Sink, writing: Writing, all_: bool = True) -> Pickled:
    """Pickle once, into a sink, collecting references; `all_` as for `Writing.keep_what_is_in`."""
    writing.again()
    if buffers is not None:
        buffers.start()
    collect(writing, make(sink, buffers).dump, obj)
    pieces = sink.take()
    writing.keep_what_is_in(pieces, all_)
    return Pickled(pieces, writing, 0 if buffers is None else buffers.count)


def _finish(picklers: Sequence[Make], obj: Any, buffers: Buffers | None, writing: Writing) -> Pickled:
    """Pickle by value; where that can't be done, with plain pickle, whatever the pickle names then."""
    plain, values = picklers
    met = writing.refs is not None
    try:
        try:
            return _run(values, obj, buffers, Sink(), writing)
        except Exception as error:
            if isinstance(error, SafeRefsError) and not isinstance(error, UnsupportedReferenceError):
                raise  # an error of a call to safe_refs that code called by pickling has made
            # By value, something is pickled that plain pickle just names: a lock that a method uses, a connection.
            try:
                return _run(plain, obj, buffers, Sink(), writing, met)
            except Exception:
                raise error from None
    except BaseException:
        writing.discard()
        raise


def _standard_picklers(protocol: int | None, fix_imports: bool) -> Sequence[Make]:
    """How to make the picklers of `dumps`, each from a sink and a callback for buffers: plain, and by value."""
    wanted = PROTOCOL if protocol is None else protocol

    def plain(sink: Sink, buffers: Buffers | None) -> pickle.Pickler:
        return _CPickler(sink, wanted, fix_imports=fix_imports, buffer_callback=buffers)

    def values(sink: Sink, buffers: Buffers | None) -> pickle.Pickler:
        return by_value.pickler(sink, wanted, fix_imports, buffers)

    return plain, values


_PICKLERS = _standard_picklers(None, True)
