"""`dumps`, `loads` and `dump`: between an object and its payload (`load` and the classes are in `pickler`).

Out: pickle the object with the C pickler, collecting its references as slots; where plain pickle can't do it, or the pickle names
`__main__` (which is another module in another process), pickle it again with cloudpickle. No references: that pickle is the result.
Otherwise `holding` makes a payload of it.

What always holds: big buffers are copied once, into the payload; pickling never changes what it pickles.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from types import FunctionType
from typing import Any, Protocol

from . import envelope, places
from .errors import UnsupportedReferenceError
from .handle import how_held, make_terms
from .holding import Pickled, discard, hold, hold_many, slot_values, slot_values_many
from .registry import late
from .slots import Reading, Writing, register, state

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

_THIRD_OPCODE = envelope.PREFIX[2:4]

BufferCallback = Callable[[pickle.PickleBuffer], Any]


class WritableFile(Protocol):
    """What `dump` needs of a file."""

    def write(self, data: Any, /) -> Any:
        """Write bytes."""


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
            # Every class is named by STACK_GLOBAL, one byte, quickly looked for. Its module's name may stand in an earlier frame.
            if self.watches and _is_frame(piece) and b"\x93" in piece and self._names_main():
                raise NamesMainError
            if self._copy is not None:
                self._copy.write(piece)
            return
        if self._copy is None:
            self._copy = io.BytesIO()
            self._copy.writelines(self.pieces)
        self._copy.write(piece.raw() if type(piece) is pickle.PickleBuffer else piece)

    def _names_main(self) -> bool:
        """Whether a frame names that module; each is looked at once."""
        frames = [piece for piece in self.pieces[self._looked :] if _is_frame(piece)]
        self._looked = len(self.pieces)
        # From the end, which is twice as fast in CPython as from the start.
        return any(frame.rfind(_MAIN) >= 0 for frame in frames)

    def take_over(self, other: Sink) -> None:
        """Hold what another sink holds, which is empty afterwards."""
        self.pieces, self._copy = other.pieces, other._copy
        other.pieces, other._copy, other._looked = [], None, 0

    def take(self) -> list[bytes]:
        """All that was written, in order; this sink is empty afterwards."""
        taken = self.pieces if self._copy is None else [self._copy.getvalue()]
        self.pieces, self._copy, self._looked = [], None, 0
        return taken


def _is_frame(piece: bytes) -> bool:
    """Whether a piece may be a frame, which names classes, and not somebody's data."""
    return len(piece) <= _LARGEST_FRAME or piece[:1] == _FRAME or piece[2:3] == _FRAME


class Buffers:
    """A `buffer_callback` that lets an object be pickled more than once and asks the user about each buffer just once.

    The first pickling leaves all buffers out of band; then `settle` asks the user's callback about each, and if it wants some of
    them in band, another pickling goes by its answers.
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

    def settle(self) -> bool:
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


def dumps(
    obj: Any,
    protocol: int | None = None,
    *,
    fix_imports: bool = True,
    buffer_callback: BufferCallback | None = None,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> bytes:
    """Pickle `obj`; Ray references anywhere in it are held by the registry from before this returns until their lease ends.

    Args:
        obj: anything that `pickle` or `cloudpickle` can pickle, with `ObjectRef`s anywhere in it.
        protocol: pickle protocol; None for the highest, 5.
        fix_imports: as for `pickle.dumps`.
        buffer_callback: as for `pickle.dumps`; needs protocol 5.
        ttl: seconds (or a `timedelta`) after which the lease ends by itself; None for what the scope, `init` or `SAFE_REFS_TTL` says,
            which is no limit unless it was set; `math.inf` for none.
        uses: how often the payload may be loaded; None for no limit.
        durable: True has the registry hold copies of its own, of the objects and those inside them, so that they outlive the
            process, job and driver that made them; returns when the copies exist (see docs/lifetimes.md for the cost).
            The default is False, unless a `scope` says otherwise.
        label: a name for people, shown by `leases()`.
        wait: False returns before the registry holds the references, and leaves that to a background thread: see `flush`. The
            default is True, unless `pipeline`, `init` or `SAFE_REFS_WAIT` says otherwise.

    Returns:
        Plain pickle bytes if there are no references in `obj`; else a payload, which is a valid pickle too. One payload is one
        lease. A payload is a capability: whoever has it can load the objects and release them.

    Raises:
        UnsupportedReferenceError: `obj` holds a Ray reference of a kind that can't be carried: a generator of
            references, a result of a compiled graph, one made with a tensor transport, or a bare id without an owner. Its
            `place` says where in `obj`, as `payload['batch'][3].ref`, and its text what to do.
        RegistryFullError: a limit of the registry would be passed.
        RegistryUnavailableError: no Ray connection, or no answer in time; or the copies could not be made in time.
        OwnerGoneError: with `durable`, the owner of an object died before it was copied.
        ValueError: `durable=True` and `wait=False`, or terms that are none.
        Exception: what `pickle` or `cloudpickle` raises for an object that can't be pickled.
        In each case nothing stays held.
    """
    try:
        pickled = pickle_object(obj, protocol, fix_imports, buffer_callback)
        if isinstance(pickled, bytes):
            if ttl is not None or uses is not None or label is not None:
                make_terms(ttl, uses, label)
            return pickled
        return hold(pickled, make_terms(ttl, uses, label), *how_held(wait, durable))
    except UnsupportedReferenceError as error:
        places.settle(error, obj)
        raise


def dumps_many(
    objs: Iterable[Any],
    protocol: int | None = None,
    *,
    fix_imports: bool = True,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> list[bytes]:
    """`dumps` of each object, with one call to the registry (to each shard of it) for all, or for each thousand.

    Args:
        objs: the objects; each gets a payload, and a lease, of its own.
        protocol: as for `dumps`, like all the others; the terms are those of each lease.
        fix_imports: see `protocol`.
        ttl: see `protocol`.
        uses: see `protocol`.
        durable: see `protocol`.
        label: see `protocol`.
        wait: see `protocol`.

    Returns:
        What `dumps` returns for each, in their order.

    Raises:
        Exception: as from `dumps`; then nothing of all stays held. (Without waiting, what is refused later shows in `flush`.) The
            place in an `UnsupportedReferenceError` begins with `payloads[2]` for the third object.
    """
    terms, (waits, copies) = make_terms(ttl, uses, label), how_held(wait, durable)
    done: list[bytes | Pickled] = []
    obj: Any = None
    try:
        for obj in objs:
            done.append(pickle_object(obj, protocol, fix_imports, None))
    except BaseException as error:
        if isinstance(error, UnsupportedReferenceError):
            places.settle(error, obj, f"payloads[{len(done)}]")
        for each in done:
            if isinstance(each, Pickled):
                discard(each.writing)
        raise
    try:
        held = iter(hold_many([each for each in done if isinstance(each, Pickled)], terms, waits, copies))
    except UnsupportedReferenceError as error:
        places.settle(error, objs, "payloads")
        raise
    return [next(held) if isinstance(each, Pickled) else each for each in done]


def pickle_object(
    obj: Any, protocol: int | None, fix_imports: bool, buffer_callback: BufferCallback | None
) -> bytes | Pickled:
    """An object pickled: just bytes where it holds no references."""
    register()
    if protocol is None and buffer_callback is None:
        pickled = _pickle_quickly(obj)
        if isinstance(pickled, bytes):
            return pickled
    else:
        pickled = pickle_with(_standard_picklers(protocol, fix_imports), obj, buffer_callback, protocol)
    return b"".join(pickled.pieces) if pickled.writing.refs is None else pickled


def loads(
    data: Any,
    /,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Any] | None = None,
    resolve: bool = True,
    take: bool = False,
    timeout: float | timedelta | None = None,
) -> Any:
    """Unpickle what `dumps`, or any other pickler, wrote.

    Args:
        data: bytes, or any buffer of bytes; what follows the pickle in it is ignored.
        fix_imports: as for `pickle.loads`, like `encoding`, `errors` and `buffers`.
        encoding: see `fix_imports`.
        errors: see `fix_imports`.
        buffers: the out-of-band buffers, if there were any.
        resolve: False puts a `SafeRef` where each reference was, and asks the registry nothing.
        take: True ends the lease in the same step; what was resolved stays good.
        timeout: seconds to wait for the registry (not for any value); default from `init` or `SAFE_REFS_TIMEOUT`.

    Returns:
        The object. Its references are tracked by Ray as if they had been passed in-band.

    Raises:
        EnvelopeError: the payload is cut, altered or of an unknown version; none of its pickle was run.
        LeaseError: its lease has ended; the class says how.
        WrongClusterError: it is another cluster's.
        RegistryUnavailableError: no Ray connection, or no answer in time.
        Exception: what `pickle.loads` raises.
    """
    if type(data) is bytes and data[2:4] != _THIRD_OPCODE:
        # Some other pickle: the common case, told by two bytes.
        return pickle.loads(data, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
    if not envelope.is_payload(data):
        return pickle.loads(data, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
    found = envelope.find(data)
    with Reading(found.header.tag, slot_values(found.header, resolve, take, timeout)):
        return pickle.loads(found.inner, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)


def loads_many(
    payloads: Iterable[Any],
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    resolve: bool = True,
    take: bool = False,
    timeout: float | timedelta | None = None,
) -> list[Any]:
    """`loads` of each payload, with one call to the registry (to each shard of it) for all, or for each thousand.

    Args:
        payloads: what `dumps`, or any other pickler, wrote.
        fix_imports: as for `loads`, like all the others; the timeout is for all together.
        encoding: see `fix_imports`.
        errors: see `fix_imports`.
        resolve: see `fix_imports`.
        take: see `fix_imports`.
        timeout: see `fix_imports`.

    Returns:
        The objects, in the order of their payloads.

    Raises:
        Exception: as from `loads`, for the first payload that can't be loaded. Uses and takes of the others are spent.
    """
    how: dict[str, Any] = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
    datas = list(payloads)
    found = [envelope.find(data) if envelope.is_payload(data) else None for data in datas]
    values = iter(slot_values_many([each.header for each in found if each is not None], resolve, take, timeout))
    loaded: list[Any] = []
    for data, each in zip(datas, found, strict=True):
        if each is None:
            loaded.append(pickle.loads(data, **how))
        else:
            with Reading(each.header.tag, next(values)):
                loaded.append(pickle.loads(each.inner, **how))
    return loaded


def dump(
    obj: Any,
    file: WritableFile,
    protocol: int | None = None,
    *,
    fix_imports: bool = True,
    buffer_callback: BufferCallback | None = None,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> None:
    """Write what `dumps` returns to `file`. If writing fails, nothing stays held.

    Arguments and errors are those of `dumps`; several dumps may follow one another in a file.
    """
    data = dumps(
        obj,
        protocol,
        fix_imports=fix_imports,
        buffer_callback=buffer_callback,
        ttl=ttl,
        uses=uses,
        durable=durable,
        label=label,
        wait=wait,
    )
    write_or_release(file, data)


def open_payload(body: bytes, buffers: Sequence[Any] = ()) -> Any:
    """Open a payload's body. Payloads call this when a plain `pickle.load` opens them; use `loads` yourself.

    The name is a part of the payload format, and stays.

    Raises:
        EnvelopeError: and others as from `loads`.
    """
    found = envelope.open_body(body)
    with Reading(found.header.tag, slot_values(found.header, resolve=True, take=False, timeout=None)):
        return pickle.loads(found.inner, buffers=buffers or None)


open_payload.__module__ = "safe_refs"


def write_or_release(file: WritableFile, data: bytes) -> None:
    """Write bytes to a file; if that fails and they are a payload, end its lease."""
    try:
        file.write(data)
    except BaseException:
        if envelope.is_payload(data):
            address = envelope.find(data).header.address
            late.releasing.release_later(address.registry, [address.lease])
        raise


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
            again = buffers.settle()
        except BaseException:
            discard(pickled.writing)
            raise
        if again:
            discard(pickled.writing)
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
        discard(writing)
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
        discard(writing)
        raise
    finally:
        state.writing = around
    return writing


def _finish(make: Callable[[Sink, Buffers | None], Any], obj: Any, buffers: Buffers | None) -> Pickled:
    """Pickle, whatever the pickle names."""
    sink = Sink()
    writing = _run(make, obj, buffers, sink)
    return Pickled(sink.take(), writing, 0 if buffers is None else buffers.count)


def _pickle_quickly(obj: Any) -> Pickled | bytes:
    """Pickle with the kept pickler of this thread: the way of nearly every call. Just bytes where they are small and all."""
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
        discard(writing)
        if not isinstance(error, NamesMainError) and not (
            isinstance(error, _NEEDS_CLOUDPICKLE) and _may_be_mended(error)
        ):
            raise
        sink.take()
    finally:
        state.writing = around
    pieces = sink.take()
    if pieces and not _by_value_modules():
        if len(pieces) == 1 and len(pieces[0]) <= _LARGEST_FRAME:
            # Only a pickler that met nothing large is kept: clearing a memo costs as much as it once grew to.
            pickler.clear_memo()
            _quick.sink, _quick.pickler = sink, pickler
            if writing.refs is None:
                return pieces[0]
        return Pickled(pieces, writing, 0)
    discard(writing)
    return _finish(_standard_picklers(None, True)[1], obj, None)


def _pickle_lambda(obj: Any) -> Pickled | bytes:
    """Cloudpickle's at once, as plain pickle would take as long to find out."""
    import cloudpickle

    around = state.writing
    state.writing = writing = Writing()
    try:
        data: bytes = cloudpickle.dumps(obj, PROTOCOL)
    except BaseException:
        discard(writing)
        raise
    finally:
        state.writing = around
    return data if writing.refs is None else Pickled([data], writing, 0)


def _by_value_modules() -> bool:
    """Whether the user told cloudpickle to pickle some modules by value, which plain pickle knows nothing of."""
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
