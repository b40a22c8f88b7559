"""Ray Serve: payloads go from one deployment to another, no replica's loop waits for the registry, and responses go as references."""

from __future__ import annotations

import asyncio
import collections
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio
from safe_refs._ray import store
from tests.integrations.jobs import HandOver
from tests.support.loops import Ticks
from tests.support.shards import stopped
from tests.support.store import RAYS_MARKS, SETTLE_S
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integrations
serve = pytest.importorskip("ray.serve", reason="`make test-integrations` installs Ray Serve", exc_type=ImportError)

REQUESTS = 1000
AT_ONCE = 50
SIZE = 200_000  # bytes, so that they lie in the store


def value_of(number: int) -> bytes:
    return number.to_bytes(8, "big") * (SIZE // 8)


class Maker:
    """Puts values, and hands their references on as bytes; or gives the values themselves, for which Serve makes references."""

    async def make(self, number: int) -> bytes:
        return await aio.dumps({"n": number, "ref": ray.put(value_of(number))})

    async def give(self, number: int) -> bytes:
        return value_of(number)

    async def fail(self) -> None:
        raise ValueError("on purpose")

    async def count(self, up_to: int) -> AsyncIterator[int]:
        for number in range(up_to):
            yield number


class Reader:
    """Gets a payload from the maker, reads the value, and ends the lease."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    async def read(self, number: int) -> int:
        payload = await self._maker.make.remote(number)
        loaded = await aio.loads(payload)
        value = await loaded["ref"]
        assert await aio.release(payload) == 1
        return int.from_bytes(value[:8], "big")

    async def pass_on(self, number: int) -> tuple[str, bytes]:
        """What a response is refused with in this loop, and the payload of it that a thread makes."""
        response = self._maker.give.remote(number)
        try:
            await aio.dumps(response)
        except safe_refs.UnsupportedReferenceError as error:
            refused = str(error)
        (payload,) = await aio.dumps_many([{"response": response}])
        return refused, payload

    async def ping(self) -> str:
        return "pong"

    async def slowest(self, often: int) -> float:
        """Many reads at once in this replica: the longest time in s for which its loop was kept from everything else."""
        async with Ticks() as ticks:
            found = await asyncio.gather(*(self.read(number) for number in range(often)))
        assert found == list(range(often))
        return ticks.longest_s


class Busy:
    """Never answers."""

    async def __call__(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture(scope="module")
def reader(ray_cluster: str) -> Iterator[Any]:
    """The handle of an application of two deployments."""
    options = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 1000}
    maker = serve.deployment(**options)(Maker).bind()
    serve.start(proxy_location="Disabled")
    handle = serve.run(serve.deployment(**options)(Reader).bind(maker), name="test", route_prefix=None)
    safe_refs.init()
    yield handle
    serve.shutdown()


@pytest.fixture
def maker(reader: Any) -> Any:
    """The handle of the deployment behind."""
    return serve.get_deployment_handle("Maker", "test")


def test_payloads_pass_between_deployments_and_leave_nothing(reader: Any) -> None:
    """A thousand requests, fifty at once: each is answered with its own value; leases and objects stay as many as are under way.

    In the end no lease and no byte is left.
    """
    before = store.store_usage()
    under_way: collections.deque[Any] = collections.deque()
    objects, leases = [], []
    for number in range(REQUESTS):
        under_way.append(reader.read.remote(number))
        if len(under_way) == AT_ONCE:
            assert under_way.popleft().result(timeout_s=60) == number - AT_ONCE + 1
        if number % AT_ONCE == AT_ONCE - 1:
            objects.append(store.store_usage().objects - before.objects)
            figures = safe_refs.stats()
            assert figures is not None
            leases.append(figures.live_leases)
    assert [reply.result(timeout_s=60) for reply in under_way] == list(range(REQUESTS))[-len(under_way) :]
    under_way.clear()
    assert max(leases) <= AT_ONCE
    assert max(objects) <= 2 * AT_ONCE  # what was released goes a moment later
    assert safe_refs.leases() == []
    after = store.wait_for_store(before.used_bytes + RAYS_MARKS, SETTLE_S)
    assert after.used_bytes <= before.used_bytes + RAYS_MARKS
    assert after.objects <= before.objects


def test_a_response_goes_to_another_job(reader: Any, hand_over: HandOver) -> None:
    """A response comes back as the reference of its result, also if there is none yet, or it is an error; twice the same as one."""
    found = hand_over(
        """
from ray import serve
handle = serve.get_deployment_handle("Maker", "test")
def make():
    response = handle.give.remote(7)
    return [response, {"again": response}, handle.give.remote(8), handle.fail.remote()]

def finish(things):
    for response in things[0], things[2]:
        response.result(timeout_s=60)
""",
        """
def use(things):
    first, again, second, failed = things
    try:
        ray.get(failed, timeout=20)
    except ValueError as error:
        said = str(error)
    return [
        [type(thing).__name__ for thing in (first, second, failed)], again["again"] is first,
        [ray.get(ref, timeout=20)[7] for ref in (first, second)], "on purpose" in said,
    ]
""",
        size=2 * SIZE,
    )
    assert found == [["ObjectRef"] * 3, True, [7, 8], True]


def test_a_response_in_an_event_loop_is_refused_unless_a_thread_pickles_it(reader: Any) -> None:
    """In a deployment, `aio.dumps` says what to do instead of keeping the loop waiting, and `aio.dumps_many` takes it."""
    refused, payload = reader.pass_on.remote(5).result(timeout_s=60)
    assert "ray.serve.handle.DeploymentResponse" in refused
    assert "await response" in refused
    loaded = safe_refs.loads(payload, take=True)
    assert ray.get(loaded["response"], timeout=20) == value_of(5)


def test_what_of_serve_can_not_be_carried_is_refused_by_name(maker: Any) -> None:
    """Streams, and responses that come without a reference; nothing stays held. Other picklers get what Serve gives them."""
    streamed = maker.options(stream=True).count.remote(3)
    by_value = maker.options(_by_reference=False).give.remote(1)
    for response, kind, remedy in (
        (streamed, "ray.serve.handle.DeploymentResponseGenerator", "iterate over it"),
        (by_value, "ray.serve.handle.DeploymentResponse", "_by_reference=True"),
    ):
        with pytest.raises(safe_refs.UnsupportedReferenceError, match=remedy) as caught:
            safe_refs.dumps([ray.put("beside"), response])
        assert caught.value.kind == kind
    assert list(streamed) == [0, 1, 2]
    assert by_value.result(timeout_s=60) == value_of(1)
    with pytest.raises(serve.exceptions.RayServeException, match="not serializable"):
        pickle.dumps(maker.give.remote(2))
    assert safe_refs.leases() == []


def test_a_request_that_no_replica_takes_is_not_waited_for_longer_than_the_timeout(
    reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dumps` gives up after `SAFE_REFS_TIMEOUT`; nothing stays held."""
    options = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 1}
    busy = serve.run(serve.deployment(**options)(Busy).bind(), name="busy", route_prefix=None)
    under_way = [busy.remote(), busy.remote()]
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", "0.5")
    with pytest.raises(TimeoutError):
        safe_refs.dumps([ray.put("beside"), *under_way])
    monkeypatch.undo()
    assert safe_refs.leases() == []
    for response in under_way:
        response.cancel()
    serve.delete("busy")


def test_a_handle_of_a_deployment_is_a_plain_pickle(maker: Any) -> None:
    """It names the deployment, and holds nothing."""
    pickled = safe_refs.dumps(maker)
    assert safe_refs.inspect(pickled).lease_id is None
    assert safe_refs.loads(pickled).give.remote(3).result(timeout_s=60) == value_of(3)


def test_no_loop_waits_for_the_registry(reader: Any) -> None:
    """A replica answers others while the registry is silent, and is never kept for long by a hundred reads at once."""
    with stopped("default", 0):
        waiting = reader.read.remote(7)
        assert reader.ping.remote().result(timeout_s=20) == "pong"
    assert waiting.result(timeout_s=60) == 7
    assert reader.slowest.remote(100).result(timeout_s=60) < 1
    wait_until(lambda: safe_refs.leases() == [])
