"""`Pickler`: the same work as `dumps`, for files and for subclasses with hooks of their own.

What always holds:
- A `Pickler` remembers what it has written, as `pickle.Pickler` does: a later `dump` names an object of an earlier one instead of
  writing it again. So one `Unpickler` has to load them all, in order.
- Payloads are left out of that, as any unpickler must be able to open each by itself: a payload names nothing of an earlier dump,
  and no later dump names anything in it.
- Of a dump that failed, nothing is remembered.
- A subclass's hooks (`persistent_id`, `reducer_override`, `dispatch_table`) work on what is inside a payload as on a plain pickle.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import types
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import by_value, payloads, places, terms
from .engine import MAIN_ENDS, PROTOCOL, BufferCallback, Buffers, Pickled, Sink, pickle_with
from .errors import UnsupportedReferenceError
from .kinds import WithReducers
from .pickling import WritableFile, release_unwritten
from .slots import register, state

if TYPE_CHECKING:
    from _pickle import PicklerMemoProxy

_CPickler = pickle.Pickler  # as it is now: somebody may set the module's own to ours


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
        wait: as for `dumps`, like the next two.
        registry: see `wait`.
        timeout: see `wait`.
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
        registry: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> None:
        if not callable(getattr(file, "write", None)):
            raise TypeError("file must have a 'write' attribute")
        self._safe_refs = _State(file, PROTOCOL if protocol is None else protocol, fix_imports, buffer_callback)
        self._safe_refs.terms = (ttl, uses, label, wait, durable, registry, timeout)
        terms.ask(*self._safe_refs.terms)  # so that a mistake shows here; each dump asks anew, as it may be in a scope
        of = self._safe_refs
        super().__init__(of.sink, of.protocol, fix_imports=fix_imports, buffer_callback=of.callback)

    def __repr__(self) -> str:
        of: _State | None = getattr(self, "_safe_refs", None)
        if of is None:
            return f"<{type(self).__name__}, not initialized>"
        said = zip(("ttl", "uses", "label", "wait", "durable", "registry", "timeout"), of.terms, strict=True)
        terms = "".join(f", {name}={value!r}" for name, value in said if value is not None)
        return f"<{type(self).__name__} to {type(of.file).__name__}, protocol {of.protocol}{terms}>"

    def clear_memo(self) -> None:
        """Remember nothing of what has been dumped."""
        of = self._safe_refs
        of.written, of.values, of.named_main = 0, None, False
        super().clear_memo()

    @property
    def memo(self) -> PicklerMemoProxy:
        """As `pickle.Pickler.memo`."""
        values = self._safe_refs.values
        memo: PicklerMemoProxy = _MEMO.__get__(self if values is None else values.pickler)
        return memo

    @memo.setter
    def memo(self, memo: PicklerMemoProxy | dict[int, tuple[int, Any]]) -> None:
        _MEMO.__set__(self, memo)
        self._safe_refs.values, self._safe_refs.written = None, len(_MEMO.__get__(self).copy())

    def dump(self, obj: Any, /) -> None:
        """Write `obj` to the file, references held; errors as from `dumps`."""
        of: _State | None = getattr(self, "_safe_refs", None)
        if of is None:
            raise pickle.PicklingError(f"Pickler.__init__() was not called by {type(self).__name__}.__init__()")
        register()
        try:
            picklers = (partial(_Plain, self), partial(_ByValue, self))
            plain_first = of.values is None and not of.named_main
            pickled = pickle_with(picklers, obj, of.user_callback, of.protocol, plain_first=plain_first)
            if pickled.writing.refs is not None:
                try:
                    asked = terms.ask(*of.terms)
                except BaseException:
                    pickled.writing.discard()
                    raise
                self._write(pickled, asked)
                return
            if pickled.writing.nested:
                pickled.writing.hand_on()
            for piece in pickled.pieces:
                of.file.write(piece)
            self._count(pickled.pieces)
        except UnsupportedReferenceError as error:
            _put_back(of, self)
            places.explain(error, obj)
            raise
        except BaseException:
            _put_back(of, self)
            raise

    def _write(self, pickled: Pickled, asked: terms.Asked) -> None:
        held = b""
        try:
            held = payloads.hold([pickled], asked)[0]
            self._safe_refs.file.write(held)
        except BaseException:
            release_unwritten(held)
            raise

    def _count(self, pieces: Sequence[bytes]) -> None:
        """Note how many objects the memo holds now that this is written. It looks into the memo or at the bytes: what is cheaper."""
        of = self._safe_refs
        if of.written < 2 * sum(map(len, pieces)):
            of.written = len(self.memo.copy())
        else:
            of.written += sum(opcode.name in _PUTS for opcode, _, _ in pickletools.genops(b"".join(pieces)))
        # From now on a pickle may name the main script's module by the memo, which `Sink` does not see.
        of.named_main = of.named_main or any(piece.rfind(MAIN_ENDS) >= 0 for piece in pieces)


class _State:
    """What a `Pickler` has beside the C pickler's own state, in one attribute, as subclasses have attributes of their own.

    Attributes:
        sink: where the C pickler writes.
        buffers: the account of buffers of the dump that is under way.
        written: how many objects the memo held after the last dump that was written to the file. An unpickler numbers what it
            remembers in the order in which it comes. So the next dump must begin with a memo of exactly these objects.
        named_main: whether the name of the main script's module has been written.
        values: the pickler by value, once one is needed. From then on it does the dumps, until an object can't be pickled by value.
        terms: of each lease.
    """

    def __init__(self, file: WritableFile, protocol: int, fix_imports: bool, callback: BufferCallback | None) -> None:
        self.file = file
        self.protocol = protocol
        self.fix_imports = fix_imports
        self.user_callback = callback
        self.terms: tuple[Any, ...] = ()
        self.sink = Sink()
        self.buffers: Buffers | None = None
        self.written = 0
        self.named_main = False
        self.values: _Values | None = None

    @property
    def callback(self) -> BufferCallback | None:
        """The C pickler's callback, which it gets once and for all. Each dump has its own account of buffers, which this asks."""
        return None if self.user_callback is None else lambda buffer: self.buffers is None or self.buffers(buffer)


@contextlib.contextmanager
def _writing_to(user: Pickler, sink: Sink, buffers: Buffers | None) -> Iterator[None]:
    """A context manager: inside, what the C pickler writes goes to `sink`, and its dispatch table knows references."""
    of = user._safe_refs
    of.sink.take()
    table = getattr(user, "dispatch_table", None)

    def put_back() -> None:
        if table is not None:
            _set_table(user, table)
        of.buffers = None
        of.sink.take()
        of.sink.watches = False

    try:
        try:
            of.sink.watches, of.sink.framed = sink.watches, sink.framed
            of.buffers = buffers
            if table is not None:
                # By the descriptor: a table that is a class's attribute hides the C pickler's own, which the C pickler goes by.
                _set_table(user, WithReducers(table))
            yield
            sink.take_over(of.sink)
        finally:
            put_back()
    except BaseException:
        put_back()  # a signal handler may have raised at any line of the first
        raise


def _set_table(pickler: pickle.Pickler, table: Any) -> None:
    descriptor: Any = vars(_CPickler)["dispatch_table"]
    descriptor.__set__(pickler, table)


class _Plain:
    """One pickling by the user's own pickler object, with its hooks."""

    def __init__(self, user: Pickler, sink: Sink, buffers: Buffers | None) -> None:
        self._user = user
        self._sink = sink
        self._buffers = buffers

    def dump(self, obj: Any) -> None:
        user, of = self._user, self._user._safe_refs
        if of.values is not None:  # this can't be pickled by value
            _MEMO.__set__(user, _MEMO.__get__(of.values.pickler))
            of.values = None
        with _writing_to(user, self._sink, self._buffers), _remembering(of, user, self._buffers):
            _CPickler.dump(user, obj)
            if of.written and _has_references():
                _start_again(self._buffers)
                of.sink.take()
                memo = _MEMO.__get__(user).copy()
                _CPickler.clear_memo(user)
                _CPickler.dump(user, obj)
                _MEMO.__set__(user, memo)


class _Values(NamedTuple):
    """The pickler by value of a `Pickler`, and where it writes."""

    pickler: pickle.Pickler
    sink: Sink


class _ByValue:
    """One pickling by value, with the hooks of the user's pickler."""

    def __init__(self, user: Pickler, sink: Sink, buffers: Buffers | None) -> None:
        self._user = user
        self._sink = sink
        self._buffers = buffers

    def dump(self, obj: Any) -> None:
        user, of = self._user, self._user._safe_refs
        values = of.values or _values(user)
        if of.values is None and of.written:
            _MEMO.__set__(values.pickler, _MEMO.__get__(user))
        of.buffers = self._buffers
        try:
            with _remembering(of, values.pickler, self._buffers):
                values.pickler.dump(obj)
                if of.written and _has_references():
                    _start_again(self._buffers)
                    values.sink.take()
                    alone = _values(user)
                    alone.pickler.dump(obj)
                    values.sink.take_over(alone.sink)
            self._sink.take_over(values.sink)
        finally:
            of.buffers = None
            values.sink.take()
        of.values = values


_MEMO: Any = vars(_CPickler)["memo"]  # the C pickler's own; to set it copies it
_PUTS = frozenset({"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})  # the opcodes by which an unpickler remembers something


@contextlib.contextmanager
def _remembering(of: _State, pickler: pickle.Pickler, buffers: Buffers | None) -> Iterator[None]:
    """A context manager for a dump by `pickler`: afterwards the memo has nothing of it if it was a payload, or failed."""
    if buffers is not None and buffers.is_asked:
        _put_back(of, pickler)  # the memo has this object already, from the first pickling of the same dump
    try:
        yield
        if _has_references():
            _put_back(of, pickler)
    except BaseException:
        _put_back(of, pickler)
        raise


def _put_back(of: _State, pickler: pickle.Pickler) -> None:
    """Have a pickler remember only what was written; the pickler by value, if that does the dumps by now."""
    if of.values is not None:
        pickler = of.values.pickler
    if of.written:
        _MEMO.__set__(pickler, {key: row for key, row in _MEMO.__get__(pickler).copy().items() if row[0] < of.written})
    else:
        _CPickler.clear_memo(pickler)


def _has_references() -> bool:
    return state.writing is not None and state.writing.refs is not None


def _start_again(buffers: Buffers | None) -> None:
    """What is being pickled has references, and may have named an object of an earlier dump: it is pickled once more, by itself."""
    if state.writing is not None:
        state.writing.again()
    if buffers is not None:
        buffers.start()


def _values(user: Pickler) -> _Values:
    """Make a pickler by value, which asks the hooks of `user` first."""
    own_table = getattr(user, "dispatch_table", None)
    table = None if own_table is None else WithReducers(own_table)
    override = getattr(user, "reducer_override", None)
    persistent_id = getattr(user, "persistent_id", None)

    class WithHooks(by_value.pickler_class()):  # type: ignore[misc] # cloudpickle is untyped
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
        WithHooks.persistent_id = lambda self, obj: persistent_id(obj)
    sink = Sink()
    of = user._safe_refs
    return _Values(by_value.pickler(sink, of.protocol, of.fix_imports, of.callback, WithHooks), sink)
