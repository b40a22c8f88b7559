"""`dumps`, `loads` and `dump`: between an object and its payload (`load` and the classes are in `pickler`).

Out: `engine` pickles the object and collects its references. If there are none, that pickle is the result; otherwise `payloads`
makes a payload of it, whose references the registry holds. In: `handle.slot_values` gives what stands in the slots while the inner
pickle is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from pickle import loads as unpickle  # as it is now: somebody may set the module's own to ours
from typing import TYPE_CHECKING, Any, Protocol

from . import _settings, asks, checks, envelope, pacing, payloads, places, terms
from .engine import BufferCallback, Pickled, pickle_object
from .errors import UnsupportedReferenceError
from .handle import mistaken, slot_values
from .loading import load_many, several
from .spending import around, plainly, reading

if TYPE_CHECKING:
    from typing_extensions import Buffer

_THIRD_OPCODE = envelope.PREFIX[2:4]


class WritableFile(Protocol):
    """What `dump` needs of a file."""

    def write(self, data: bytes, /) -> object:
        """Write bytes."""


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
    registry: str | None = None,
    timeout: float | timedelta | None = None,
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
            process, job and driver that made them; returns when the copies exist (see docs/durable.md for the cost).
            The default is False, unless a `scope` says otherwise.
        label: a name for people, shown by `leases()`.
        wait: False returns before the registry holds the references, and leaves that to a background thread: see `flush`. The
            default is True, unless `pipeline`, `init` or `SAFE_REFS_WAIT` says otherwise.
        registry: name of the registry that is to hold them; default from `init` or `SAFE_REFS_REGISTRY`.
        timeout: seconds to wait for it, and for the copies of a durable lease; default from `init` or `SAFE_REFS_TIMEOUT`, and for
            copies from `SAFE_REFS_DURABLE_TIMEOUT`.

    Returns:
        Plain pickle bytes if there are no references in `obj`; else a payload, which is a valid pickle too. One payload is one
        lease. A payload is a capability: whoever has it can load the objects and release them.

    Raises:
        UnsupportedReferenceError: `obj` holds a Ray reference that can't be carried: a generator of references, a result of a
            compiled graph, one made with a tensor transport, a bare id without an owner, or an actor's handle that keeps no actor
            alive (see docs/references.md). Its `place` says where in `obj`, as `payload['batch'][3].ref`, and its text what to do.
        RegistryFullError: a limit of the registry would be passed.
        RegistryUnavailableError: no Ray connection, or no answer in time; or the copies could not be made in time.
        OwnerGoneError: with `durable`, the owner of an object died before it was copied.
        ValueError: `durable=True` and `wait=False`, or a term that is not valid.
        Exception: what `pickle` or `cloudpickle` raises for an object that can't be pickled.

    If it raises, the registry holds nothing of `obj`.
    """
    try:
        pickled = pickle_object(obj, protocol, fix_imports, buffer_callback)
        if isinstance(pickled, bytes):
            is_asked = ttl is not None or uses is not None or durable is not None or label is not None
            if is_asked or wait is not None or registry is not None or timeout is not None:
                terms.without_lease(ttl, uses, durable, label, wait, registry, timeout)
            return pickled
        try:
            asked = terms.ask(ttl, uses, label, wait, durable, registry, timeout)
        except BaseException:
            pickled.writing.discard()
            raise
        return payloads.hold([pickled], asked)[0]
    except UnsupportedReferenceError as error:
        places.explain(error, obj)
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
    registry: str | None = None,
    timeout: float | timedelta | None = None,
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
        registry: see `protocol`.
        timeout: see `protocol`; for all together.

    Returns:
        What `dumps` returns for each, in their order.

    Raises:
        Exception: as from `dumps`; then nothing of all stays held. (Without waiting, what is refused later shows in `flush`.) The
            place in an `UnsupportedReferenceError` begins with `payloads[2]` for the third object.
    """
    asked = terms.ask(ttl, uses, label, wait, durable, registry, timeout)
    done: list[bytes | Pickled] = []
    obj: Any = None
    try:
        for obj in objs:
            done.append(pickle_object(obj, protocol, fix_imports, None))
    except BaseException as error:
        if isinstance(error, UnsupportedReferenceError):
            places.explain(error, obj, f"payloads[{len(done)}]")
        for each in done:
            if isinstance(each, Pickled):
                each.writing.discard()
        raise
    held: list[bytes] = []
    try:
        to_hold = [each for each in done if isinstance(each, Pickled)]
        held = payloads.hold(to_hold, asked) if to_hold else []
        left = iter(held)
        return [next(left) if isinstance(each, Pickled) else each for each in done]
    except UnsupportedReferenceError as error:
        places.explain(error, objs, "payloads")
        raise
    except BaseException:
        for payload in held:
            release_unwritten(payload)
        raise


def loads(
    data: Buffer,
    /,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Buffer] | None = None,
    resolve: bool = True,
    take: bool = False,
    anchored: bool = False,
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
        take: True ends the lease in the same step; what was resolved stays good. If the object can't be opened (a module is missing
            here, say), the take is given back, as is a use of a lease with `uses`.
        anchored: True waits until the references are safe from a crash of the registry. Otherwise they are within a second.
        timeout: seconds to wait for the registry (not for any value); default from `init` or `SAFE_REFS_TIMEOUT`.

    `resolve=False`, `take=True` and the timeout hold for payloads inside the payload, too: those whose bytes are in it, and which a
    `__setstate__` or the like opens, by whatever `loads`, meanwhile.

    Returns:
        The object. Its references are tracked by Ray as if they had been passed in-band.

    Raises:
        EnvelopeError: the payload is cut, altered or of an unknown version; none of its pickle was run.
        LeaseError: its lease has ended; the class says how.
        WrongClusterError: it is another cluster's.
        RegistryUnavailableError: no Ray connection, or no answer in time.
        Exception: what `pickle.loads` raises.
    """
    try:
        # Two bytes show that this is another pickle: the common case.
        if (type(data) is bytes and data[2:4] != _THIRD_OPCODE) or not envelope.is_payload(data):
            if resolve and not take and timeout is None:
                return unpickle(data, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
            until = None if timeout is None else _settings.deadline(timeout)
            with plainly(data, resolve, take, until):
                return unpickle(data, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
    except Exception:
        if (wrong := mistaken(data)) is None:
            raise
        raise wrong from None
    if {type(anchored)} != {bool}:
        anchored = checks.flag(anchored, "anchored")
    found, since = envelope.find(data), time.monotonic()
    if around.how is not None:
        resolve, take, timeout = around.how.reaching([found.header.address.lease], resolve, take, timeout)
    until = None if timeout is None else _settings.deadline(timeout)
    use = os.urandom(8) if take or "uses" in found.header.terms else b""  # as `new_use`, which would be one step more
    values = slot_values([found.header], resolve, take, timeout, [use])
    with reading(found.header, values[0], resolve, use, take, timeout, inside=found.inner, until=until):
        del values  # an error keeps this frame
        if resolve and (anchored or len(found.header.kinds) > pacing.LARGE):
            pacing.await_pace((found.header,), anchored, timeout, since)
        return unpickle(found.inner, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)


def loads_many(
    payloads: Iterable[Buffer],
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    resolve: bool = True,
    take: bool = False,
    anchored: bool = False,
    timeout: float | timedelta | None = None,
) -> list[Any]:
    """`loads` of each payload, with one call to the registry (to each shard of it) for hundreds of them, or a thousand references.

    Args:
        payloads: what `dumps`, or any other pickler, wrote.
        fix_imports: as for `loads`, like all the others; the timeout is for all together.
        encoding: see `fix_imports`.
        errors: see `fix_imports`.
        resolve: see `fix_imports`.
        take: see `fix_imports`.
        anchored: see `fix_imports`.
        timeout: see `fix_imports`.

    Returns:
        The objects, in the order of their payloads.

    Raises:
        Exception: as from `loads`, for the first payload that can't be loaded. Uses and takes of all are given back.
    """
    how = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
    return load_many(several(payloads), how, resolve=resolve, take=take, anchored=anchored, timeout=timeout)


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
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> None:
    """Write what `dumps` returns to `file`. If writing fails, nothing stays held.

    Arguments and errors are those of `dumps`; several dumps may follow one another in a file.
    """
    if not callable(getattr(file, "write", None)):
        raise TypeError("file must have a 'write' attribute")
    data = b""
    try:
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
            registry=registry,
            timeout=timeout,
        )
        file.write(data)
    except BaseException:
        release_unwritten(data)
        raise


def release_unwritten(data: bytes) -> None:
    """Bytes could not be written to a file: if they are a payload, end its lease."""
    if envelope.is_payload(data):
        asks.release_later(envelope.find(data).header.address)
