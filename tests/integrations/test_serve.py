"""`safe_refs.aio` in Ray Serve: payloads go from one deployment to another, and no replica's loop waits for the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import _ray, aio
from tests.conftest import LOCAL_RAY, RAYS_MARKS, SETTLE_S
from tests.shards import stopped
from tests.test_aio import Ticks
from tests.test_registry import wait_until

pytestmark = pytest.mark.integrations
serve = pytest.importorskip("ray.serve", reason="`make test-integrations` installs Ray Serve", exc_type=ImportError)

REQUESTS = 200
SIZE = 200_000  # bytes, so that they lie in the store


class Maker:
    """Puts a value, and hands its reference on as bytes."""

    async def make(self, number: int) -> bytes:
        return await aio.dumps({"n": number, "ref": ray.put(number.to_bytes(8, "big") * (SIZE // 8))})


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

    async def ping(self) -> str:
        return "pong"

    async def slowest(self, often: int) -> float:
        """Many reads at once in this replica: the longest time in s for which its loop was kept from everything else."""
        async with Ticks() as ticks:
            found = await asyncio.gather(*(self.read(number) for number in range(often)))
        assert found == list(range(often))
        return ticks.longest_s


@pytest.fixture(scope="module")
def reader() -> Iterator[Any]:
    """The handle of an application of two deployments, in a Ray of its own."""
    ray.init(**LOCAL_RAY)
    options = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 1000}
    maker = serve.deployment(**options)(Maker).bind()
    serve.start(proxy_location="Disabled")
    handle = serve.run(serve.deployment(**options)(Reader).bind(maker), name="test", route_prefix=None)
    safe_refs.init()
    yield handle
    serve.shutdown()
    ray.shutdown()


def test_payloads_pass_between_deployments_and_leave_nothing(reader: Any) -> None:
    """Hundreds of requests at once: each is answered with its own value, and then no lease and no byte is left."""
    before = _ray.store_usage().used_bytes
    replies = [reader.read.remote(number) for number in range(REQUESTS)]
    assert [reply.result(timeout_s=60) for reply in replies] == list(range(REQUESTS))
    del replies
    assert safe_refs.leases() == []
    after = _ray.wait_for_store(before + RAYS_MARKS, SETTLE_S).used_bytes
    assert after <= before + RAYS_MARKS


def test_no_loop_waits_for_the_registry(reader: Any) -> None:
    """A replica answers others while the registry is silent, and is never kept for long by a hundred reads at once."""
    with stopped("default", 0):
        waiting = reader.read.remote(7)
        assert reader.ping.remote().result(timeout_s=20) == "pong"
    assert waiting.result(timeout_s=60) == 7
    assert reader.slowest.remote(100).result(timeout_s=60) < 1
    wait_until(lambda: safe_refs.leases() == [])
