"""What type checkers say of the face: uses with the type that each has, and mistakes that they find. `mypy` checks this file.

It is never run. Each `type: ignore` marks a mistake: mypy fails where it has nothing to ignore.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import ray

import safe_refs
from safe_refs import SafeRef
from safe_refs.scopes import Scope

if TYPE_CHECKING:
    from ray.actor import ActorProxy
    from typing_extensions import assert_type


class Counter:
    def add(self) -> int:
        return 1


def of_pickle(ref: ray.ObjectRef[int], buffer: bytearray, file: io.BytesIO, text: io.StringIO) -> None:
    payload = safe_refs.dumps({"ref": ref}, ttl=60, buffer_callback=lambda _: True)
    assert_type(payload, bytes)
    assert_type(safe_refs.dumps_many([ref]), list[bytes])
    assert_type(safe_refs.loads(payload), Any)
    assert_type(safe_refs.loads(buffer, buffers=[memoryview(payload)]), Any)
    assert_type(safe_refs.loads_many([payload, buffer]), list[Any])
    safe_refs.dump(ref, file)
    safe_refs.Pickler(file, 5).dump(ref)
    safe_refs.loads("text")  # type: ignore[arg-type]
    safe_refs.loads_many(["text"])  # type: ignore[list-item]
    safe_refs.dump(ref, text)  # type: ignore[arg-type]
    safe_refs.dumps(ref, uses="1")  # type: ignore[arg-type]
    safe_refs.dmups(ref)  # type: ignore[attr-defined]


def of_handles(ref: ray.ObjectRef[int], refs: list[ray.ObjectRef[str]], actor: ActorProxy[Counter]) -> None:
    handle = safe_refs.pin(ref, ttl=60)
    assert_type(handle, SafeRef[int])
    assert_type(handle.get(), int)
    assert_type(handle.resolve(), "ray.ObjectRef[int]")
    assert_type(safe_refs.pin(refs), list[SafeRef[str]])
    assert_type(safe_refs.pin(actor, label="it"), "SafeRef[ActorProxy[Counter]]")
    assert_type(safe_refs.pin(actor).get(), "ActorProxy[Counter]")
    assert_type(safe_refs.pin([actor]), "list[SafeRef[ActorProxy[Counter]]]")
    assert_type(safe_refs.put(1.5), SafeRef[float])
    assert_type(safe_refs.put(1.5, payload=True, ttl=60), bytes)
    wider: SafeRef[float] = handle  # it only gives its value
    assert_type(SafeRef.parse(str(wider)), SafeRef[Any])
    with handle as same:
        assert_type(same, SafeRef[int])
    safe_refs.pin(1)  # type: ignore[call-overload]
    safe_refs.pin(ref, tll=60)  # type: ignore[call-overload]
    narrower: SafeRef[bool] = handle  # type: ignore[assignment]
    del narrower


def of_leases(handle: SafeRef[int], payload: bytes) -> None:
    info = safe_refs.inspect(payload)
    assert_type(info.terms["ttl"], float)
    assert_type(info.handles, tuple[SafeRef[Any], ...])
    assert_type(safe_refs.release([payload, handle, info, str(handle)]), int)
    assert_type(safe_refs.expires_in_s(handle), float | None)
    with safe_refs.scope(ttl=60) as scope:
        assert_type(scope, Scope)
        assert_type(scope.keep(payload), bytes)
        assert_type(scope.keep(handle), SafeRef[int])
    with (
        safe_refs.consume(handle) as value,
        safe_refs.consume(payload) as obj,
        safe_refs.consume([payload, handle]) as objs,
    ):
        assert_type(value, int)
        assert_type(obj, Any)
        assert_type(objs, list[Any])
    safe_refs.consume(5)  # type: ignore[call-overload]
    safe_refs.release(5)  # type: ignore[arg-type]
    safe_refs.renew(handle)  # type: ignore[call-arg]


async def of_event_loops(ref: ray.ObjectRef[int], actor: ActorProxy[Counter]) -> None:
    aio = safe_refs.aio
    assert_type(await aio.dumps(ref, ttl=60), bytes)
    assert_type(await aio.loads(b""), Any)
    assert_type(await aio.loads_many([b""]), list[Any])
    handle = await aio.pin(ref)
    assert_type(handle, SafeRef[int])
    assert_type(await handle, int)
    assert_type(await aio.get(handle), int)
    assert_type(await aio.resolve(handle), "ray.ObjectRef[int]")
    assert_type(await aio.pin([ref]), list[SafeRef[int]])
    assert_type(await aio.pin(actor), "SafeRef[ActorProxy[Counter]]")
    assert_type(await aio.put("x"), SafeRef[str])
    assert_type(await aio.put("x", payload=True), bytes)
    assert_type(await aio.release(handle), int)
    assert_type(await aio.expires_in_s(handle), float | None)
    assert_type(await aio.leases(label="x"), list[safe_refs.LeaseInfo])
    async with handle as same, aio.scope() as scope, aio.pipeline(), aio.consume(handle) as value:
        assert_type(same, SafeRef[int])
        assert_type(value, int)
        assert_type(scope, Scope)
    await aio.loads("text")  # type: ignore[arg-type]
    await aio.pin(1)  # type: ignore[call-overload]
    await aio.release(handle, timeuot=5)  # type: ignore[call-arg]
