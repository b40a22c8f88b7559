"""`Unpickler` and `load`: the same work as `loads`, for files and for subclasses with hooks of their own.

What always holds: a subclass's hooks (`find_class`, `persistent_load`) work on what is inside a payload just as on a plain pickle.
"""

from __future__ import annotations

import pickle
import time
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # by which `pickle` reads what Python 2 wrote
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from . import checks, envelope, pacing
from .errors import EnvelopeError
from .handle import slot_values
from .slots import slot
from .spending import Use, give_back, new_use, opened, reading, within

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ReadableFile(Protocol):
    """What `load` needs of a file."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes."""

    def readline(self) -> bytes:
        """Read a line."""


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
        buffers: Iterable[Buffer] | None = None,
        resolve: bool = True,
        take: bool = False,
        timeout: float | timedelta | None = None,
    ) -> None:
        super().__init__(file, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
        self._how: dict[str, Any] = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
        self._resolve = checks.flag(resolve, "resolve")
        self._take = checks.flag(take, "take")
        self._timeout = None if timeout is None else checks.seconds(timeout, "timeout")
        self._is_at_payload = False  # the last that was read began, or was, a payload
        self._uses: list[Use] = []  # of the payloads in the pickle that is being read
        self._renames = False  # the pickle being opened inside a payload names things as Python 2 called them

    def __repr__(self) -> str:
        if not hasattr(self, "_how"):
            return f"<{type(self).__name__}, not initialized>"
        return f"<{type(self).__name__}, resolve={self._resolve}, take={self._take}>"

    def load(self) -> Any:
        """Read an object; errors as from `safe_refs.load`."""
        self._is_at_payload, self._uses = False, []
        try:
            loaded = super().load()
            opened(self._uses)
            self._uses.clear()
            return loaded
        except BaseException as error:
            if self._uses:
                give_back(self._uses, self._timeout)
                self._uses.clear()  # the error keeps the callers' frames
            # `pickle` says so of a pickle that lacks its last bytes, and whoever reads a file to its end would take it for the end.
            if isinstance(error, EOFError) and self._is_at_payload:
                raise EnvelopeError("the payload is cut short: it lacks its last bytes; get it again, whole") from None
            raise

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Find what a pickle names; for a payload's entry point, the one of this unpickler."""
        if module_name == "safe_refs" and global_name == envelope.ENTRY_POINT:
            self._is_at_payload = True
            return self._open_payload
        if self._renames:
            # This one is asked for another pickle, and goes by its own pickle's protocol.
            renamed = IMPORT_MAPPING.get(module_name, module_name), global_name
            module_name, global_name = NAME_MAPPING.get((module_name, global_name), renamed)
        return super().find_class(module_name, global_name)

    def _open_payload(self, body: bytes, buffers: Sequence[Buffer] = ()) -> Any:
        self._is_at_payload = False  # what is inside of it may raise anything
        found = envelope.open_body(body)
        lease = found.header.address.lease
        resolve, take, timeout, until = within([lease], self._resolve, self._take, self._timeout)
        use, since = new_use(found.header, take), time.monotonic()
        values = slot_values([found.header], resolve, take, timeout, [use])
        if use and resolve:
            self._uses.append(Use(found.header.address, use, take, values[0]))
        said: Any = {"inside": found.inner, "until": until, "uses": self._uses}
        with reading(found.header, values[0], resolve, take=take, **said):
            del values  # an error keeps this frame
            if resolve:
                pacing.await_pace((found.header,), False, timeout, since)
            around, is_old = self._renames, bytes(found.inner[:1]) != pickle.PROTO or found.inner[1] < 3
            self._renames = is_old and self._how["fix_imports"]
            try:
                value = _Inner(self, found.inner, buffers, self._how).load()
            finally:
                self._renames = around
        self._is_at_payload = True
        return value


class _Inner(pickle.Unpickler):
    """Opens the pickle inside a payload, with the hooks of the unpickler that met it."""

    def __init__(self, outer: Unpickler, inner: memoryview, buffers: Sequence[Buffer], how: dict[str, Any]) -> None:
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
    buffers: Iterable[Buffer] | None = None,
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
