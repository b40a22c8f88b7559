"""The picklers under `dumps`: plain C pickle first, cloudpickle where it must be, and each object's references collected as slots.

Plain pickle is given up where it can't pickle something by name, or where the pickle names `__main__`, which is another module in
another process.

What always holds: buffers that don't change are not copied here; pickling never changes what it pickles; a pickling that comes to
nothing ends the leases that code called by it has made.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from . import kinds  # noqa: F401 # says which types are references
from .errors import UnsupportedReferenceError
from .slots import Writing, register, state

# What cloudpickle does too, and pickle itself since Python 3.14. Protocol 5 is what carries buffers without a copy.
PROTOCOL = pickle.HIGHEST_PROTOCOL

# The C pickler hands over its output in frames of 64 KiB, which it ends at the first object that passes that size; larger bytes and
# buffers come by themselves, as they are. So a piece above twice that (and some) is somebody's data and names no class, unless it
# begins as a frame does, behind the pickle's own first two bytes or not.
_LARGEST_FRAME = 2 * 64 * 1024 + 4096
_FRAME = b"\x95"

_MAIN = b"\x8c\x08__main__"  # the name of that module, as protocols 4 and 5 write it

# How plain pickle says that it can't pickle something by name, or at all.
_NEEDS_CLOUDPICKLE = (pickle.PicklingError, AttributeError, TypeError)

BufferCallback = Callable[[pickle.PickleBuffer], Any]


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

    Bytes are kept as they are. A buffer that somebody could still write to (the next `__reduce__`, another thread) has to be copied
    at once; from the first one on everything is copied, into one place, so that nothing is copied twice.

    Args:
        watches: whether it refuses what names `__main__`, at the first frame that does; for protocols from 4 on.

    Attributes:
        pieces: the bytes that were written, without the other buffers: what may name a class is in them.
    """

    __slots__ = ("_copy", "_looked", "pieces", "watches")

    def __init__(self, watches: bool = False) -> None:
        self.watches = watches
        self.pieces: list[bytes] = []
        self._copy: io.BytesIO | None = None
        self._looked = 0  # so many pieces have been looked at

    def write(self, piece: Any) -> None:
        """Take a piece of a pickle.

        Raises:
            NamesMainError: it names that module, and this sink watches.
        """
        if type(piece) is bytes:
            self.pieces.append(piece)
            # STACK_GLOBAL, one byte, names every class, and is quickly looked for in a frame. Somebody's data need not be searched.
            if self.watches and (len(piece) <= _LARGEST_FRAME or is_frame(piece)) and b"\x93" in piece:
                # The module's name may stand in an earlier frame. Each is searched once, from the end: twice as fast in CPython.
                looked, self._looked = self._looked, len(self.pieces)
                for each in self.pieces[looked:]:
                    if (len(each) <= _LARGEST_FRAME or is_frame(each)) and each.rfind(_MAIN) >= 0:
                        raise NamesMainError
            if self._copy is not None:
                self._copy.write(piece)
            return
        if self._copy is None:
            self._copy = io.BytesIO()
            self._copy.writelines(self.pieces)
        self._copy.write(piece.raw() if type(piece) is pickle.PickleBuffer else piece)

    def take_over(self, other: Sink) -> None:
        """Hold what another sink holds, which is empty afterwards."""
        self.pieces, self._copy = other.pieces, other._copy
        other.pieces, other._copy, other._looked = [], None, 0

    def take(self) -> list[bytes]:
        """All that was written, in order; this sink is empty afterwards."""
        taken = self.pieces if self._copy is None else [self._copy.getvalue()]
        self.pieces, self._copy, self._looked = [], None, 0
        return taken


def is_frame(piece: bytes) -> bool:
    """Whether a piece may be a frame, which names classes, and not somebody's data."""
    return len(piece) <= _LARGEST_FRAME or piece[:1] == _FRAME or piece[2:3] == _FRAME


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
        self._answers = [bool(self._callback(buffer)) for buffer in self._seen]
        return any(self._answers)

    @property
    def count(self) -> int:
        """How many buffers stay out of band."""
        return len(self._seen) - sum(self._answers or ())


class _Quick(threading.local):
    """A pickler kept for the next small object of this thread: making one costs as much as pickling a small dict."""

    def __init__(self) -> None:
        self.sink = Sink(watches=True)
        self.pickler: pickle.Pickler | None = None


_quick = _Quick()


def pickle_object(
    obj: Any, protocol: int | None, fix_imports: bool, buffer_callback: BufferCallback | None
) -> bytes | Pickled:
    """An object pickled: just bytes where it holds no references.

    Nearly every call goes by the pickler that this thread keeps.
    """
    register()
    if protocol is not None or buffer_callback is not None:
        return _bare(pickle_with(_standard_picklers(protocol, fix_imports), obj, buffer_callback, protocol))
    if type(obj) is FunctionType and obj.__name__ == "<lambda>":
        return _pickle_lambda(obj)
    pickler = _quick.pickler
    # Taken out while it works, so that a `__reduce__` that pickles something itself gets another one.
    _quick.pickler = None
    if pickler is None:
        _quick.sink = Sink(watches=True)
        pickler = pickle.Pickler(_quick.sink, PROTOCOL)
    sink = _quick.sink
    around = state.writing
    state.writing = writing = Writing()
    try:
        pickler.dump(obj)
    except BaseException as error:
        writing.discard()
        if not isinstance(error, NamesMainError) and not (
            isinstance(error, _NEEDS_CLOUDPICKLE) and _may_be_mended(error)
        ):
            raise
        sink.take()
    finally:
        state.writing = around
    pieces = sink.take()
    by_value = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", tuple)  # as `_by_value_modules`
    if not pieces or by_value():
        writing.discard()
        return _bare(_finish(_standard_picklers(None, True)[1], obj, None))
    if len(pieces) == 1 and len(pieces[0]) <= _LARGEST_FRAME:
        # Only a pickler that met nothing large is kept: clearing a memo costs as much as it once grew to.
        pickler.clear_memo()
        _quick.sink, _quick.pickler = sink, pickler
        if writing.refs is None and writing.nested is None:
            return pieces[0]
    pickled = Pickled(pieces, writing, 0)
    return _bare(pickled) if writing.refs is None else pickled


def _bare(pickled: Pickled) -> bytes | Pickled:
    """Just the bytes of what holds no references."""
    if pickled.writing.refs is not None:
        return pickled
    pickled.writing.hand_on()
    return b"".join(pickled.pieces)


def pickle_with(
    picklers: Sequence[Callable[[Sink, Buffers | None], Any]],
    obj: Any,
    buffer_callback: BufferCallback | None,
    protocol: int | None,
) -> Pickled:
    """Pickle `obj` with the first of two picklers, or with the second where it must be.

    Args:
        picklers: how to make the plain one and the one based on cloudpickle, each from a sink and a buffer callback.
        obj: what to pickle.
        buffer_callback: the user's, or None.
        protocol: as for `dumps`.

    Raises:
        Exception: what the second pickler raises.
    """
    plain, cloud = picklers
    buffers = None if buffer_callback is None else Buffers(buffer_callback)
    pickled = None if _by_value_modules() else _attempt(plain, obj, buffers, protocol)
    chosen = plain
    if pickled is None:
        chosen = cloud
        pickled = _finish(cloud, obj, buffers)
    if buffers is not None:
        try:
            again = buffers.ask()
        except BaseException:
            pickled.writing.discard()
            raise
        if again:
            pickled.writing.discard()
            pickled = _finish(chosen, obj, buffers)
    return pickled


def _attempt(
    make: Callable[[Sink, Buffers | None], Any], obj: Any, buffers: Buffers | None, protocol: int | None
) -> Pickled | None:
    """Pickle with plain pickle; None where cloudpickle has to do it."""
    framed = protocol is None or protocol < 0 or protocol >= 4
    sink = Sink(watches=framed)
    try:
        writing = _run(make, obj, buffers, sink)
    except NamesMainError:
        return None
    except _NEEDS_CLOUDPICKLE as error:
        if not _may_be_mended(error):
            raise
        return None
    if not framed and any(piece.rfind(b"__main__") >= 0 for piece in sink.pieces):
        writing.discard()
        return None
    return Pickled(sink.take(), writing, 0 if buffers is None else buffers.count)


def _may_be_mended(error: Exception) -> bool:
    """Whether cloudpickle may do better. Trying again for nothing would call users' code twice, and use up what can be read once."""
    if isinstance(error, UnsupportedReferenceError):
        return False
    # What can't be pickled at all is a TypeError that says so; others are mistakes in somebody's `__reduce__`.
    return not isinstance(error, TypeError) or str(error).startswith("cannot pickle")


def _run(make: Callable[[Sink, Buffers | None], Any], obj: Any, buffers: Buffers | None, sink: Sink) -> Writing:
    """Pickle once, into a sink, collecting references."""
    writing = Writing()
    if buffers is not None:
        buffers.start()
    pickler = make(sink, buffers)
    around = state.writing
    state.writing = writing
    try:
        pickler.dump(obj)
    except BaseException:
        writing.discard()
        raise
    finally:
        state.writing = around
    return writing


def _finish(make: Callable[[Sink, Buffers | None], Any], obj: Any, buffers: Buffers | None) -> Pickled:
    """Pickle, whatever the pickle names."""
    sink = Sink()
    writing = _run(make, obj, buffers, sink)
    return Pickled(sink.take(), writing, 0 if buffers is None else buffers.count)


def _pickle_lambda(obj: Any) -> Pickled | bytes:
    """Cloudpickle's at once, as plain pickle would take as long to find out."""
    import cloudpickle

    around = state.writing
    state.writing = writing = Writing()
    try:
        data: bytes = cloudpickle.dumps(obj, PROTOCOL)
    except BaseException:
        writing.discard()
        raise
    finally:
        state.writing = around
    return _bare(Pickled([data], writing, 0))


def _by_value_modules() -> bool:
    """Whether the user has registered modules with cloudpickle to be pickled by value, which plain pickle knows nothing of."""
    # Another thread may be in the middle of importing it: then nobody has registered anything yet.
    registered = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return registered is not None and bool(registered())


def _standard_picklers(protocol: int | None, fix_imports: bool) -> Sequence[Callable[[Sink, Buffers | None], Any]]:
    """How to make the picklers of `dumps`: C pickle, and cloudpickle."""
    wanted = PROTOCOL if protocol is None else protocol

    def plain(sink: Sink, buffers: Buffers | None) -> pickle.Pickler:
        return pickle.Pickler(sink, wanted, fix_imports=fix_imports, buffer_callback=buffers)

    def cloud(sink: Sink, buffers: Buffers | None) -> Any:
        import cloudpickle

        pickler = cloudpickle.Pickler(sink, wanted, buffer_callback=buffers)
        if not fix_imports:
            # cloudpickle's constructor doesn't pass it on; the C pickler's own may be called again.
            pickle.Pickler.__init__(pickler, sink, wanted, fix_imports=False, buffer_callback=buffers)
        return pickler

    return plain, cloud
