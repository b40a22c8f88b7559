"""`Pickler`, `Unpickler` and `load`: the same work as `dumps` and `loads`, for files and for subclasses with hooks of their own.

What always holds: each `dump` writes one self-contained pickle or payload (as if `clear_memo()` came before it), so that each can be
loaded and released by itself; a subclass's hooks (`persistent_id`, `reducer_override`, `dispatch_table`; `find_class`,
`persistent_load`) work on what is inside a payload just as on a plain pickle.
"""

from __future__ import annotations

import contextlib
import pickle
import types
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol

from . import envelope, payloads, places, terms
from .engine import PROTOCOL, BufferCallback, Buffers, Sink, pickle_with
from .errors import UnsupportedReferenceError
from .handle import slot_values
from .kinds import WithReducers
from .pickling import WritableFile, write_or_release
from .slots import Reading, register, slot


class ReadableFile(Protocol):
    """What `load` needs of a file."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes."""

    def readline(self) -> bytes:
        """Read a line."""


class Pickler(pickle.Pickler):
    """`pickle.Pickler`, and references are held by the registry before `dump` writes their payload.

    Args:
        file: where to write.
        protocol: as for `dumps`, like `fix_imports` and `buffer_callback`.
        fix_imports: see `protocol`.
        buffer_callback: see `protocol`.
        ttl: terms of each lease, as for `dumps`, like `uses`, `durable` and `label`.
        uses: see `ttl`.
        durable: see `ttl`.
        label: see `ttl`.
        wait: as for `dumps`.
    """

    def __init__(
        self,
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
        if not callable(getattr(file, "write", None)):
            raise TypeError("file must have a 'write' attribute")
        self._file = file
        self._protocol = PROTOCOL if protocol is None else protocol
        self._fix_imports = fix_imports
        self._user_callback = buffer_callback
        self._terms = (ttl, uses, label, wait, durable)
        terms.ask(*self._terms)  # a mistake shows here; what a scope adds is known when something is dumped
        self._sink = Sink()
        self._buffers: Buffers | None = None
        callback = None if buffer_callback is None else self._ask
        super().__init__(self._sink, self._protocol, fix_imports=fix_imports, buffer_callback=callback)

    def _ask(self, buffer: pickle.PickleBuffer) -> bool:
        # The C pickler takes its callback for good, while each dump has its own account of buffers.
        return self._buffers is None or self._buffers(buffer)

    def dump(self, obj: Any, /) -> None:
        """Write `obj` to the file, references held; errors as from `dumps`."""
        if not hasattr(self, "_file"):
            raise pickle.PicklingError(f"Pickler.__init__() was not called by {type(self).__name__}.__init__()")
        register()
        try:
            pickled = pickle_with((self._as_plain, self._as_cloud), obj, self._user_callback, self._protocol)
            held = None
            if pickled.writing.refs is not None:
                try:
                    asked = terms.ask(*self._terms)
                except BaseException:
                    pickled.writing.discard()
                    raise
                held = payloads.hold([pickled], asked)[0]
            elif pickled.writing.nested:
                pickled.writing.hand_on()
        except UnsupportedReferenceError as error:
            places.explain(error, obj)
            raise
        if held is not None:
            write_or_release(self._file, held)
            return
        for piece in pickled.pieces:
            self._file.write(piece)

    def _as_plain(self, sink: Sink, buffers: Buffers | None) -> Any:
        return _Plain(self, sink, buffers)

    def _as_cloud(self, sink: Sink, buffers: Buffers | None) -> Any:
        return _cloud_pickler(self, sink, self._protocol, self._fix_imports, buffers)

    @contextlib.contextmanager
    def _writing_to(self, sink: Sink, buffers: Buffers | None) -> Iterator[None]:
        """While it lasts, what the C pickler writes goes to `sink`, with a fresh memo and a dispatch table that knows references."""
        self._sink.take()
        self._sink.watches = sink.watches
        self._buffers = buffers
        table = getattr(self, "dispatch_table", None)
        self.clear_memo()
        if table is not None:
            # By the descriptor: a table that is a class's attribute hides the C pickler's own, which is what it goes by.
            _set_table(self, WithReducers(table))
        try:
            yield
            sink.take_over(self._sink)
        finally:
            if table is not None:
                _set_table(self, table)
            self._buffers = None
            self._sink.take()
            self._sink.watches = False
            self.clear_memo()


def _set_table(pickler: pickle.Pickler, table: Any) -> None:
    descriptor: Any = vars(pickle.Pickler)["dispatch_table"]
    descriptor.__set__(pickler, table)


class _Plain:
    """One pickling by the user's own pickler object, with its hooks."""

    def __init__(self, pickler: Pickler, sink: Sink, buffers: Buffers | None) -> None:
        self._pickler = pickler
        self._sink = sink
        self._buffers = buffers

    def dump(self, obj: Any) -> None:
        with self._pickler._writing_to(self._sink, self._buffers):
            pickle.Pickler.dump(self._pickler, obj)


def _cloud_pickler(
    user: Pickler, sink: Sink, protocol: int, fix_imports: bool, buffers: Buffers | None
) -> pickle.Pickler:
    """A cloudpickle pickler that asks the hooks of `user` first."""
    import cloudpickle

    own_table = getattr(user, "dispatch_table", None)
    table = None if own_table is None else WithReducers(own_table)
    override = getattr(user, "reducer_override", None)
    persistent_id = getattr(user, "persistent_id", None)

    class Cloud(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is untyped
        def reducer_override(self, obj: Any) -> Any:
            if override is not None:
                reduced = override(obj)
                if reduced is not NotImplemented:
                    return reduced
            if table is not None and type(obj) in table:
                return table[type(obj)](obj)
            return super().reducer_override(obj)

    # From Python 3.13 on every C pickler has a `persistent_id`, which does nothing unless somebody brings another.
    if persistent_id is not None and not (
        isinstance(persistent_id, types.BuiltinMethodType) and persistent_id.__self__ is user
    ):
        Cloud.persistent_id = lambda self, obj: persistent_id(obj)
    pickler: pickle.Pickler = Cloud(sink, protocol, buffer_callback=buffers)
    if not fix_imports:
        # cloudpickle's constructor doesn't pass it on; the C pickler's own may be called again.
        pickle.Pickler.__init__(pickler, sink, protocol, fix_imports=False, buffer_callback=buffers)
    return pickler


class Unpickler(pickle.Unpickler):
    """`pickle.Unpickler`, for plain pickles and payloads alike.

    A subclass that restricts `find_class` lets payloads through by calling `super().find_class` for `safe_refs.open_payload`; what is
    inside a payload then goes through the same `find_class`. Looking that name up by itself (`getattr`), or letting it through in a
    plain `pickle.Unpickler`, opens what is inside without any restriction.

    Args:
        file: where to read.
        fix_imports: as for `pickle.Unpickler`, like `encoding`, `errors` and `buffers`.
        encoding: see `fix_imports`.
        errors: see `fix_imports`.
        buffers: see `fix_imports`.
        resolve: as for `loads`, like `take` and `timeout`.
        take: see `resolve`.
        timeout: see `resolve`.
    """

    def __init__(
        self,
        file: ReadableFile,
        *,
        fix_imports: bool = True,
        encoding: str = "ASCII",
        errors: str = "strict",
        buffers: Iterable[Any] | None = None,
        resolve: bool = True,
        take: bool = False,
        timeout: float | timedelta | None = None,
    ) -> None:
        super().__init__(file, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
        self._how: dict[str, Any] = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
        self._resolve = resolve
        self._take = take
        self._timeout = timeout

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Find what a pickle names; for a payload's entry point, the one of this unpickler."""
        if module_name == "safe_refs":
            if global_name == envelope.ENTRY_POINT:
                return self._open_payload
            if global_name == slot.__name__:
                return slot
        return super().find_class(module_name, global_name)

    def _open_payload(self, body: bytes, buffers: Sequence[Any] = ()) -> Any:
        found = envelope.open_body(body)
        with Reading(found.header.tag, slot_values([found.header], self._resolve, self._take, self._timeout)[0]):
            return _Inner(self, found.inner, buffers, self._how).load()


class _Inner(pickle.Unpickler):
    """Opens the pickle inside a payload, with the hooks of the unpickler that met it."""

    def __init__(self, outer: Unpickler, inner: memoryview, buffers: Sequence[Any], how: dict[str, Any]) -> None:
        super().__init__(_Memory(inner), buffers=buffers or None, **how)
        self._outer = outer

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # The slots are ours: a subclass that restricts classes need not know of them.
        if module_name == "safe_refs" and global_name == slot.__name__:
            return slot
        return self._outer.find_class(module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        load = getattr(self._outer, "persistent_load", None)
        if load is None:
            raise pickle.UnpicklingError("the pickle has a persistent id, and the unpickler no persistent_load for it")
        return load(pid)


class _Memory:
    """A file over a payload's bytes, for the C unpickler; reads are copied once, into what they become."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self._view[self._at : self._at + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def peek(self, size: int) -> bytes:
        return bytes(self._view[self._at : self._at + size])

    def readline(self) -> bytes:
        rest = bytes(self._view[self._at :])
        line = rest[: rest.find(b"\n") + 1] or rest
        self._at += len(line)
        return line


def load(
    file: ReadableFile,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Any] | None = None,
    resolve: bool = True,
    take: bool = False,
    timeout: float | timedelta | None = None,
) -> Any:
    """Read one pickle or payload from `file`, and no more than that. Arguments and errors as of `loads`.

    Raises:
        EOFError: the file is at its end.
        pickle.UnpicklingError: the file ends in the middle of a pickle or payload.
    """
    return Unpickler(
        file,
        fix_imports=fix_imports,
        encoding=encoding,
        errors=errors,
        buffers=buffers,
        resolve=resolve,
        take=take,
        timeout=timeout,
    ).load()
