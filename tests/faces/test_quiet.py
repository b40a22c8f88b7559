"""What a user sees of us without asking: no warning about our own calls, no rows among the user's tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio
from safe_refs._ray import workers
from safe_refs._ray.native import accessor
from safe_refs.registry import known
from tests.support.actors import Owner, borrower
from tests.support.cluster import as_actor
from tests.support.values import MB, got
from tests.support.waiting import wait_until


async def within(context: Any, payload: bytes) -> None:
    """A block in a context manager of `aio`."""
    async with context:
        safe_refs.release(await aio.dumps(ray.put(1), ttl=60))
        await aio.loads(payload)


# Each function of `aio`: how it is called, with a payload that is there and the handle in it.
CALLS: dict[str, Callable[[bytes, Any], Any]] = {
    "consume": lambda payload, handle: within(aio.consume(payload), payload),
    "dumps": lambda payload, handle: aio.dumps(ray.put(1), ttl=60),
    "dumps_many": lambda payload, handle: aio.dumps_many([ray.put(1), ray.put(2)], ttl=60),
    "expires_in_s": lambda payload, handle: aio.expires_in_s(payload),
    "flush": lambda payload, handle: aio.flush(),
    "get": lambda payload, handle: aio.get(handle),
    "init": lambda payload, handle: aio.init(),
    "keepalive": lambda payload, handle: within(aio.keepalive(payload, 60), payload),
    "leases": lambda payload, handle: aio.leases(),
    "loads": lambda payload, handle: aio.loads(payload),
    "loads_many": lambda payload, handle: aio.loads_many([payload]),
    "make_durable": lambda payload, handle: aio.make_durable(handle),
    "pin": lambda payload, handle: aio.pin(ray.put(1), ttl=60),
    "pipeline": lambda payload, handle: within(aio.pipeline(), payload),
    "put": lambda payload, handle: aio.put(1, ttl=60),
    "release": lambda payload, handle: aio.release(payload),
    "renew": lambda payload, handle: aio.renew(payload, 60),
    "resolve": lambda payload, handle: aio.resolve(handle),
    "scope": lambda payload, handle: within(aio.scope(), payload),
    "shutdown": lambda payload, handle: aio.shutdown("nobody"),
    "stats": lambda payload, handle: aio.stats(),
}
# What blocks the loop, as the user wants it to; but it is the user's call that does, and not the `ray.get` in it that Ray would name.
BLOCKING: tuple[Callable[[bytes], Any], ...] = (
    lambda payload: safe_refs.dumps(ray.put(1), ttl=60),
    lambda payload: safe_refs.dumps_many([ray.put(1), ray.put(2)], ttl=60),
    safe_refs.loads,
    lambda payload: safe_refs.stats(),
    safe_refs.release,
)


class Listening:
    """An actor with an event loop that hears what Ray warns of in its process."""

    async def keep(self, refs: list[Any]) -> None:
        self.refs, self.heard = refs, list[str]()
        handler = logging.Handler()
        handler.emit = lambda record: self.heard.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("ray").addHandler(handler)

    async def calls(self, name: str, payload: bytes) -> list[str]:
        """What Ray warns of if this function is the first that is called."""
        known.drop(workers.connection())
        await CALLS[name](payload, safe_refs.inspect(payload).handles[0])
        return self.heard

    async def pins(self) -> list[str]:
        """The same of what it has only borrowed, awaited and not."""
        for wait in (True, False):
            await aio.release(await aio.dumps(self.refs, wait=wait))
        safe_refs.release(safe_refs.dumps(self.refs))
        return self.heard

    async def blocks(self, number: int, payload: bytes) -> list[str]:
        known.drop(workers.connection())
        BLOCKING[number](payload)
        return self.heard

    async def gets(self) -> list[str]:
        """What Ray warns of when the user's own code blocks the loop."""
        ray.get(self.refs[0])
        return self.heard


def test_our_calls_warn_of_no_blocking_in_an_async_actor(cluster: str) -> None:
    """Whichever comes first, in a process that has used no registry before. The user's own blocking call is still warned of."""
    assert CALLS.keys() == set(aio.__all__)  # say here how a new one is called
    actor = as_actor(Listening).remote()
    ray.get(actor.keep.remote([ray.put("theirs")]), timeout=60)
    for name in CALLS:
        payload = safe_refs.dumps(ray.put("v"), ttl=60)
        assert ray.get(actor.calls.remote(name, payload), timeout=60) == [], name
    for number in range(len(BLOCKING)):
        payload = safe_refs.dumps(ray.put("v"), ttl=60)
        assert ray.get(actor.blocks.remote(number, payload), timeout=60) == [], number
    assert ray.get(actor.pins.remote(), timeout=60) == []
    (warning,) = ray.get(actor.gets.remote(), timeout=60)
    assert "Using blocking ray.get inside async actor" in warning
    safe_refs.shutdown(force=True)


def tasks() -> list[str]:
    """Names of the tasks that Ray's control service lists, as `ray list tasks` does by the dashboard."""
    from ray.core.generated import gcs_pb2

    found = []
    for row in accessor().get_task_events():
        events = gcs_pb2.TaskEvents()  # type: ignore[attr-defined] # generated at build time
        events.ParseFromString(row)
        found.append(events.task_info.name)
    return found


def ours(names: list[str]) -> list[str]:
    return [name for name in names if "SafeRefs" in name or "safe_refs" in name]


@pytest.mark.long
def test_what_we_do_is_no_row_among_the_users_tasks(cluster: str) -> None:
    """Nor are the actors' own starts, and their calls of each other: registry, relays, exit delay, copy owner and its tasks."""

    @ray.remote(num_cpus=0)
    def last_of_all() -> None:
        """The user's."""

    owner, actor = as_actor(Owner).remote(), borrower()
    ray.get(actor.keep.remote(ray.get(owner.put.remote(b"v" * MB), timeout=60)), timeout=60)
    pinned = ray.get(actor.dumps.remote(), timeout=60)
    ray.get(actor.be_busy.remote(), timeout=60)
    depends = ray.get(actor.dumps.remote(), timeout=60)  # an exit delay starts
    for each in (pinned, depends):
        assert got(safe_refs.loads(each)) == b"v" * MB
    nested = safe_refs.dumps(ray.put([ray.put(b"inside")]), durable=True)
    plain = safe_refs.dumps(ray.put("plain"), durable=True)
    safe_refs.renew(plain, 60)
    assert got(safe_refs.loads(plain)) == "plain"
    assert safe_refs.stats() is not None
    wait_until(lambda: "SafeRefsExitDelay" in {row["class_name"] for row in actors()})
    safe_refs.release([pinned, depends, nested, plain])
    ray.get(last_of_all.remote(), timeout=60)
    wait_until(lambda: any("last_of_all" in name for name in tasks()))
    assert ours(tasks()) == []
    assert {"Owner.put", "Borrower.dumps"} <= set(tasks())


def actors() -> list[dict[str, str]]:
    """The actors that Ray's control service lists."""
    from ray.core.generated import gcs_pb2

    found = []
    for row in accessor().get_actor_table(None, None):
        actor = gcs_pb2.ActorTableData()  # type: ignore[attr-defined] # generated at build time
        actor.ParseFromString(row)
        found.append({"class_name": actor.class_name})
    return found
