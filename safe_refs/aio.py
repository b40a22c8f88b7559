"""What asks the registry, awaitable: `await safe_refs.aio.dumps(obj)`. Nothing here blocks the loop.

Pickling itself happens in the caller's task, as `pickle.dumps` would do it there: nobody can change the object meanwhile. What is
awaited is the registry. Many tasks at once share its calls. `settings` and `inspect` are not here: they ask nothing.

What always holds: arguments, results and errors are those of the functions of the same names in `safe_refs` (`scope`, `pipeline` and
`keepalive` are these functions: what they return is for `async with`, too); a task that is cancelled leaves nothing held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import (
    admin,
    asks,
    checks,
    lifetimes,
    pacing,
    payloads,
    pickling,
    pinning,
    pipelines,
    places,
    putting,
    spending,
    terms,
)
from .awaiting import in_thread, made, made_durably, undoable
from .consuming import consume
from .engine import BufferCallback, Pickled, pickle_object
from .errors import UnsupportedReferenceError
from .handle import SafeRef
from .lifetimes import keepalive, scope
from .loading import load_all, load_async, several
from .pipelines import pipeline

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorProxy
    from typing_extensions import Buffer, Unpack

    from .pinning import LeaseTerms

T = TypeVar("T")

__all__ = [
    "consume",
    "dumps",
    "dumps_many",
    "expires_in_s",
    "flush",
    "get",
    "init",
    "keepalive",
    "leases",
    "loads",
    "loads_many",
    "make_durable",
    "pin",
    "pipeline",
    "put",
    "release",
    "renew",
    "resolve",
    "scope",
    "shutdown",
    "stats",
]


async def dumps(
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
    """`safe_refs.dumps`, awaited."""
    try:
        pickled = pickle_object(obj, protocol, fix_imports, buffer_callback)
        if isinstance(pickled, bytes):
            terms.without_lease(ttl, uses, durable, label, wait, registry, timeout)
            return pickled
        try:
            await asks.know_settings(timeout)
            asked = terms.ask(ttl, uses, label, wait, durable, registry, timeout)
        except BaseException:
            pickled.writing.discard()
            raise
        return await _hold(pickled, asked)
    except UnsupportedReferenceError as error:
        places.explain(error, obj)
        raise


async def _hold(pickled: Pickled, asked: terms.Asked) -> bytes:
    try:
        await asks.reach(asked)
    except BaseException:
        pickled.writing.discard()
        raise
    if asked.durable:
        return (await made_durably(partial(payloads.hold, [pickled], asked)))[0]
    return await payloads.hold_async(pickled, asked)


async def dumps_many(
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
    """`safe_refs.dumps_many`, awaited. The objects are pickled in a thread: don't change them meanwhile."""
    await asks.know_settings(timeout)
    make = made_durably if terms.ask(ttl, uses, label, wait, durable, registry, timeout).durable else made
    return await make(
        partial(
            pickling.dumps_many,
            objs,
            protocol,
            fix_imports=fix_imports,
            ttl=ttl,
            uses=uses,
            durable=durable,
            label=label,
            wait=wait,
            registry=registry,
            timeout=timeout,
        ),
        timeout,
    )


async def loads(
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
    """`safe_refs.loads`, awaited."""
    how = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors, "buffers": buffers}
    uses: list[spending.Use] = []
    loaded = await load_async(data, how, uses, resolve=resolve, take=take, anchored=anchored, timeout=timeout)
    spending.opened(uses)
    return loaded


async def loads_many(
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
    """`safe_refs.loads_many`, awaited. The objects are unpickled in a thread."""
    how = {"fix_imports": fix_imports, "encoding": encoding, "errors": errors}
    uses: list[spending.Use] = []
    load = partial(
        load_all, several(payloads), how, uses, resolve=resolve, take=take, anchored=anchored, timeout=timeout
    )
    loaded = await undoable(load, lambda _: spending.give_back(uses, timeout), timeout)
    spending.opened(uses)
    return loaded


@overload
async def pin(ref: ray.ObjectRef[T], **terms: Unpack[LeaseTerms]) -> SafeRef[T]: ...
@overload
async def pin(  # type: ignore[overload-overlap] # as for `safe_refs.pin`
    ref: ActorProxy[T], **terms: Unpack[LeaseTerms]
) -> SafeRef[ActorProxy[T]]: ...
@overload
async def pin(ref: Iterable[ray.ObjectRef[T]], **terms: Unpack[LeaseTerms]) -> list[SafeRef[T]]: ...
@overload
async def pin(ref: Iterable[ActorProxy[T]], **terms: Unpack[LeaseTerms]) -> list[SafeRef[ActorProxy[T]]]: ...
async def pin(
    ref: Any,
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> SafeRef[Any] | list[SafeRef[Any]]:
    """`safe_refs.pin`, awaited."""
    await asks.know_settings(timeout)
    make = made_durably if terms.ask(ttl, uses, label, wait, durable, registry, timeout).durable else made
    return await make(
        partial(
            pinning.pin,
            ref,
            ttl=ttl,
            uses=uses,
            durable=durable,
            label=label,
            wait=wait,
            registry=registry,
            timeout=timeout,
        ),
        timeout,
    )


@overload
async def put(value: T, *, payload: Literal[False] = False, **terms: Unpack[LeaseTerms]) -> SafeRef[T]: ...
@overload
async def put(value: Any, *, payload: Literal[True], **terms: Unpack[LeaseTerms]) -> bytes: ...
async def put(
    value: Any,
    *,
    payload: bool = False,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> SafeRef[Any] | bytes:
    """`safe_refs.put`, awaited. The value is put in a thread: don't change it meanwhile."""
    await asks.know_settings(timeout)
    asked = terms.ask(ttl, uses, label, wait, durable, registry, timeout)
    how: dict[str, Any] = {"ttl": ttl, "uses": uses, "durable": durable, "label": label, "wait": wait}
    how |= {"payload": payload, "registry": registry, "timeout": timeout}
    return await (made_durably if asked.durable else made)(partial(putting.put, value, **how), timeout)


async def make_durable(handle: SafeRef[object], *, timeout: float | timedelta | None = None) -> None:
    """`SafeRef.make_durable`, awaited."""
    await made_durably(partial(_checked(handle).make_durable, timeout=timeout))


def _checked(handle: SafeRef[T]) -> SafeRef[T]:
    if not isinstance(handle, SafeRef):
        raise TypeError(
            f"this takes a SafeRef, not {type(handle).__name__}: SafeRef.parse makes one of its text, and aio.loads opens a payload"
        )
    return handle


async def resolve(
    handle: SafeRef[T], *, anchored: bool = False, timeout: float | timedelta | None = None
) -> ray.ObjectRef[T]:
    """`SafeRef.resolve`, awaited."""
    anchored = checks.flag(anchored, "anchored")
    use, since = os.urandom(8), time.monotonic()  # a use that is given back if this is cancelled
    refs = await asks.resolve_async(_checked(handle).address, timeout, slot=handle.slot, take=False, use=use)
    if anchored:
        try:
            await pacing.await_anchored_async([handle.address], timeout, since)
        except BaseException:
            await spending.give_back_async([spending.Use(handle.address, use, False, refs)], timeout)
            raise
    found: ray.ObjectRef[T] = refs[0]
    return found


async def get(handle: SafeRef[T]) -> T:
    """The value behind a handle, as `await handle` gives it."""
    return await _checked(handle)


expires_in_s = in_thread(lifetimes.expires_in_s)
flush = in_thread(pipelines.flush)
init = in_thread(admin.init, bounds=False)
leases = in_thread(admin.leases, bounds=False)
release = in_thread(lifetimes.release)
renew = in_thread(lifetimes.renew)
shutdown = in_thread(admin.shutdown)
stats = in_thread(admin.stats)


def __dir__() -> list[str]:
    """The face: no module and no type that is only imported here."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
