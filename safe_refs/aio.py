"""What asks the registry, awaitable: `from safe_refs import aio`, then `await aio.dumps(obj)`. Nothing here blocks the loop.

Pickling itself happens in the caller's task, as `pickle.dumps` would do it there: nobody can change the object meanwhile. What is
awaited is the registry. Many tasks at once share its calls.

What always holds: arguments, results and errors are those of the functions of the same names in `safe_refs`; a task that is cancelled
leaves nothing held.
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

from . import admin, asks, envelope, lifetimes, payloads, pickling, pipelines, places, terms
from . import handle as handle_module
from .admin import Sort
from .engine import BufferCallback, Pickled, pickle_object
from .errors import UnsupportedReferenceError
from .handle import SafeRef, slot_values
from .lifetimes import Target
from .registry.records import LeaseInfo, RegistryStats
from .slots import Reading

T = TypeVar("T")

__all__ = [
    "dumps",
    "dumps_many",
    "expires_in_s",
    "flush",
    "get",
    "leases",
    "loads",
    "loads_many",
    "make_durable",
    "pin",
    "release",
    "renew",
    "resolve",
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
) -> bytes:
    """`safe_refs.dumps`, awaited."""
    try:
        pickled = pickle_object(obj, protocol, fix_imports, buffer_callback)
        try:
            asked = terms.ask(ttl, uses, label, wait, durable)
        except BaseException:
            if not isinstance(pickled, bytes):
                pickled.writing.discard()
            raise
        return pickled if isinstance(pickled, bytes) else await _hold(pickled, asked)
    except UnsupportedReferenceError as error:
        places.explain(error, obj)
        raise


async def _hold(pickled: Pickled, asked: terms.Asked) -> bytes:
    try:
        await asks.reach(asked.settings)
    except BaseException:
        pickled.writing.discard()
        raise
    if asked.durable:
        return (await _durably(partial(payloads.hold, [pickled], asked)))[0]
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
) -> list[bytes]:
    """`safe_refs.dumps_many`, awaited. The objects are pickled in a thread: don't change them meanwhile."""
    made = _durably if terms.ask(ttl, uses, label, wait, durable).durable else _made
    return await made(
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
        )
    )


async def loads(
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
    """`safe_refs.loads`, awaited."""
    if not envelope.is_payload(data):
        return pickle.loads(data, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)
    found = envelope.find(data)
    asks.check_kinds(found.header)
    if resolve:
        values: Any = await asks.resolve_async(found.header.address, timeout, slot=None, take=take)
    else:
        values = slot_values([found.header], resolve, take, timeout)[0]
    with Reading(found.header.tag, values):
        return pickle.loads(found.inner, fix_imports=fix_imports, encoding=encoding, errors=errors, buffers=buffers)


async def loads_many(
    payloads: Iterable[Any],
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    resolve: bool = True,
    take: bool = False,
    timeout: float | timedelta | None = None,
) -> list[Any]:
    """`safe_refs.loads_many`, awaited. The objects are unpickled in a thread."""
    return await asyncio.to_thread(
        pickling.loads_many,
        payloads,
        fix_imports=fix_imports,
        encoding=encoding,
        errors=errors,
        resolve=resolve,
        take=take,
        timeout=timeout,
    )


async def pin(
    ref: Any,
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> Any:
    """`safe_refs.pin`, awaited."""
    made = _durably if terms.ask(ttl, uses, label, wait, durable).durable else _made
    return await made(partial(handle_module.pin, ref, ttl=ttl, uses=uses, durable=durable, label=label, wait=wait))


async def make_durable(handle: SafeRef[Any], *, timeout: float | timedelta | None = None) -> None:
    """`SafeRef.make_durable`, awaited."""
    await _durably(partial(handle.make_durable, timeout=timeout))


async def _made(make: Callable[[], T]) -> T:
    """Make leases in a thread. Who is cancelled meanwhile doesn't get them, so that they end as soon as they have begun."""
    lock = threading.Lock()
    made: list[T] = []
    gone = False

    def run() -> T:
        found = make()
        with lock:
            made.append(found)
            is_left = gone
        if is_left:
            _end(found)
        return found

    try:
        return await asyncio.to_thread(run)
    except BaseException:
        with lock:
            gone, left = True, list(made)
        for found in left:
            _end_later(found)
        raise


async def _durably(make: Callable[[], T]) -> T:
    """The same in a thread of its own, as it may take long, and the loop has but a few; who is cancelled has it given up."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    gone = threading.Event()

    def answer(found: T | None, error: BaseException | None) -> None:
        if future.done():
            _end_later(found)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, found))

    def run() -> None:
        from .assembly import given_up

        given_up.set(gone)
        found, failure = None, None
        try:
            found = make()
        except BaseException as error:  # whatever it is, who awaits is to have it
            failure = error
        try:
            loop.call_soon_threadsafe(answer, found, failure)
        except RuntimeError:  # the loop has been closed meanwhile
            _end(found)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="safe_refs-durable", daemon=True).start()
    try:
        return await future
    except BaseException:
        gone.set()
        raise


def _end_later(made: Any) -> None:
    """End leases from an event loop: a thread does it, as it may have to look for the registry."""
    try:
        asyncio.get_running_loop().run_in_executor(None, _end, made)
    except RuntimeError:  # the loop has ended, or its threads have
        _end(made)


def _end(made: Any) -> None:
    if made is None:
        return
    for target in made if isinstance(made, list) else [made]:
        if isinstance(target, SafeRef) or envelope.is_payload(target):
            asks.release_later(lifetimes.address_of(target))


async def resolve(handle: SafeRef[Any], *, timeout: float | timedelta | None = None) -> Any:
    """`SafeRef.resolve`, awaited."""
    return (await asks.resolve_async(handle.address, timeout, slot=handle.slot, take=False))[0]


async def get(handle: SafeRef[Any]) -> Any:
    """The value behind a handle, as `await handle` gives it."""
    return await handle


async def release(target: Target | Iterable[Target], *, timeout: float | timedelta | None = None) -> int:
    """`safe_refs.release`, awaited."""
    return await asyncio.to_thread(lifetimes.release, target, timeout=timeout)


async def renew(target: Any, ttl: float | timedelta, *, timeout: float | timedelta | None = None) -> None:
    """`safe_refs.renew`, awaited."""
    await asyncio.to_thread(lifetimes.renew, target, ttl, timeout=timeout)


async def expires_in_s(target: Any, *, timeout: float | timedelta | None = None) -> float | None:
    """`safe_refs.expires_in_s`, awaited."""
    return await asyncio.to_thread(lifetimes.expires_in_s, target, timeout=timeout)


async def flush(timeout: float | timedelta | None = None) -> None:
    """`safe_refs.flush`, awaited."""
    await asyncio.to_thread(pipelines.flush, timeout)


async def leases(
    *,
    label: str | None = None,
    job: str | None = None,
    min_age_s: float | None = None,
    min_bytes: int | None = None,
    sort: Sort = "age",
    limit: int | None = 1000,
    sizes: bool = True,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> list[LeaseInfo]:
    """`safe_refs.leases`, awaited."""
    return await asyncio.to_thread(
        admin.leases,
        label=label,
        job=job,
        min_age_s=min_age_s,
        min_bytes=min_bytes,
        sort=sort,
        limit=limit,
        sizes=sizes,
        registry=registry,
        timeout=timeout,
    )


async def stats(*, registry: str | None = None, timeout: float | timedelta | None = None) -> RegistryStats | None:
    """`safe_refs.stats`, awaited."""
    return await asyncio.to_thread(admin.stats, registry=registry, timeout=timeout)


async def shutdown(registry: str | None = None, *, timeout: float | timedelta | None = None) -> int:
    """`safe_refs.shutdown`, awaited."""
    return await asyncio.to_thread(admin.shutdown, registry, timeout=timeout)
