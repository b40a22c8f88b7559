"""`dumps` and `loads` in the middle of Ray's own serialization of arguments, return values and `ray.put`, and when Ray opens them.

Ray's state of a serialization belongs to the thread, and is not made for calls to Ray in the middle of it. safe_refs puts it aside
meanwhile: the references around a parcel (see `tests.support.parcels`) go where they would go without it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import serializing
from tests.support.parcels import SWITCHED, Fails, Keeper, Parcel, give, read, values
from tests.support.processes import run_python
from tests.support.store import is_empty
from tests.support.values import MB, got

Program = Any


@pytest.fixture(params=[pytest.param("0", marks=pytest.mark.long), "1"])
def switched(cluster: str, request: pytest.FixtureRequest) -> Program:
    """Runs code as another driver, with Ray's switch in one of its positions, in its workers too."""
    return lambda code: run_python(SWITCHED + code, cluster, request.param)


def test_parcels_in_arguments_return_values_and_puts(switched: Program) -> None:
    """References before, behind and between parcels come over, and so does what is in them, however deep; all ends by release."""
    seen = switched(
        """
seen = {
    "a task's argument": values(read.remote(mixed())) == MIXED,
    "an actor's argument": values(Keeper.remote(mixed())) == MIXED,
    "ray.put": values(ray.put(mixed())) == MIXED,
    "a return value": values(give.remote(mixed)) == MIXED,
    "a default argument": values(give.remote(lambda box=Parcel(ray.put("default")): box)) == "default",
}
gc.collect()
safe_refs.shutdown()
print(json.dumps([seen, store.left(15)]))
        """
    )
    assert seen == [dict.fromkeys(seen[0], True), ""]


def submit(before: Any, parcel: Parcel) -> Any:
    """A task with a reference that only its arguments hold, before a parcel."""
    return read.remote([ray.put(before), parcel])


def test_a_reference_before_a_parcel_lives_until_the_task_is_done(registry: str) -> None:
    """Also where the parcel's `dumps` is the first that asks the registry, and starts it."""
    assert ray.get(submit("v" * MB, Parcel(ray.put("in"))), timeout=60) == ["v" * MB, "in"]
    safe_refs.shutdown()
    assert is_empty(15)


@pytest.mark.parametrize("terms", [{"wait": False}, {"durable": True}, {"uses": 1}])
def test_on_any_terms(cluster: str, terms: dict[str, Any]) -> None:
    """Without waiting, durable, or for one use."""
    assert ray.get(submit("v" * MB, Parcel(ray.put("in" * MB), **terms)), timeout=60) == ["v" * MB, "in" * MB]
    safe_refs.flush()
    safe_refs.shutdown()


def test_an_error_in_a_parcel_leaves_nothing_behind(cluster: str) -> None:
    """A task that can't be submitted, and the next one, have nothing to do with each other."""
    ref = ray.put("v")
    with pytest.raises(ValueError, match="not today"):
        read.remote([ray.put("lost" * MB), Parcel([ref, Fails(ref)])])
    assert ray.get(submit("next", Parcel(ref)), timeout=30) == ["next", "v"]
    del ref
    safe_refs.shutdown()
    assert is_empty(15)


class Asks:
    """Asks the registry all sorts of things while it is pickled, and while it is opened."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        handle = safe_refs.pin(self.ref)
        assert handle.resolve() == self.ref
        handle.renew(60)
        assert [each.label for each in safe_refs.leases(label="asks")] == []
        several = safe_refs.dumps_many([[self.ref], {}, [self.ref]], wait=False)
        safe_refs.flush()
        assert safe_refs.loads_many(several)[0] == [self.ref]
        assert safe_refs.release(several) == 2
        return opened_asks, (handle,)


def opened_asks(handle: Any) -> Asks:
    with handle:
        assert safe_refs.expires_in_s(handle) is not None
        safe_refs.loads(safe_refs.dumps([handle.resolve()]), take=True)
        return Asks(handle.resolve())


def test_whatever_is_asked_there(cluster: str) -> None:
    """`pin`, `renew`, `leases`, `dumps_many`, `flush` and the rest, too."""
    found: Any = ray.get(ray.put([ray.put("first"), Asks(ray.put("in")), ray.put("last")]), timeout=30)
    assert values([found[0], found[1].ref, found[2]]) == ["first", "in", "last"]
    assert safe_refs.leases() == []


def test_an_object_that_fetches_its_value_while_it_is_opened(cluster: str) -> None:
    """After Ray issues 16792 and 5720: what opens an object may call Ray itself, as well as safe_refs."""

    class Dereferences:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __reduce__(self) -> Any:
            return fetch, (safe_refs.dumps(self.inner, ttl=60), [self.inner])

    def fetch(payload: bytes, beside: list[Any]) -> Any:
        return ray.get([safe_refs.loads(payload, take=True), *beside], timeout=20)

    assert values(ray.put([ray.put("before"), Dereferences(ray.put("in")), ray.put("behind")])) == [
        "before",
        ["in", "in"],
        "behind",
    ]
    assert safe_refs.leases() == []


def test_users_serializers_may_dump_and_load(cluster: str) -> None:
    """Functions registered by `ray.util.register_serializer`, which is how Ray issue 5720 would do it today."""

    class Wrapped:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

    def serializer(wrapped: Wrapped) -> bytes:
        return safe_refs.dumps([wrapped.ref], ttl=60)

    def deserializer(payload: bytes) -> Wrapped:
        return Wrapped(safe_refs.loads(payload, take=True)[0])

    ray.util.register_serializer(Wrapped, serializer=serializer, deserializer=deserializer)
    try:
        found: Any = ray.get(ray.put([ray.put("before"), Wrapped(ray.put("in")), ray.put("behind")]), timeout=20)
    finally:
        ray.util.deregister_serializer(Wrapped)
    assert values([found[0], found[1].ref, found[2]]) == ["before", "in", "behind"]
    assert safe_refs.leases() == []


def test_many_threads_open_values_at_once(cluster: str) -> None:
    """Ray opens one value at a time in a process. Nobody who asks the registry meanwhile keeps the others from getting answers."""
    payload = safe_refs.dumps(ray.put("in"), ttl=120)
    values_to_open = [ray.put(Opener(payload)) for _ in range(20)]
    found: list[Any] = []

    def opens(ref: Any) -> None:
        found.append(ray.get(ray.get(ref, timeout=60), timeout=60))

    def loads() -> None:
        for _ in range(20):
            safe_refs.loads(payload)

    threads = [threading.Thread(target=opens, args=(ref,)) for ref in values_to_open]
    threads += [threading.Thread(target=loads) for _ in range(6)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert found == ["in"] * 20
    assert time.monotonic() - begun < 25  # no call has waited for its timeout of 30 s
    safe_refs.release(payload)


def test_values_that_are_awaited_meanwhile(cluster: str) -> None:
    """While a thread opens a value by `loads`, those that an event loop awaits arrive, and neither waits for the other."""
    payload = safe_refs.dumps(ray.put("in"), ttl=120)
    values_to_open = [ray.put(Opener(payload)) for _ in range(100)]
    keeper: Any = Keeper.remote({"n": 1})  # type: ignore[attr-defined] # Ray leaves an actor's class as it is, to mypy
    longest: list[float] = []

    def opens() -> None:
        for ref in values_to_open:
            begun = time.monotonic()
            ray.get(ref, timeout=60)
            longest.append(time.monotonic() - begun)

    thread = threading.Thread(target=opens)

    async def awaits() -> None:
        while thread.is_alive():
            await asyncio.gather(*[keeper.now.remote() for _ in range(5)])

    thread.start()
    asyncio.run(awaits())
    thread.join()
    assert len(longest) == 100
    assert max(longest) < 20  # a call that waits in vain waits for 30 s
    safe_refs.release(payload)


class Opener:
    """Is opened by `loads`."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        return safe_refs.loads, (self.payload,)


def test_a_value_that_is_awaited_says_at_once_that_it_cant_be_asked_for(cluster: str) -> None:
    """Ray opens it in the thread that gets all its answers: what asks the registry there gets a named error, and nobody waits."""
    ref = give.remote(lambda: [Parcel(ray.put("in"))])

    async def fetch(ref: Any) -> Any:
        return await ref

    begun = time.monotonic()
    with pytest.raises(ray.exceptions.RaySystemError, match="opening a value for an `await`"):
        asyncio.run(fetch(ref))
    assert time.monotonic() - begun < 20
    assert values(ref) == ["in"]  # by ray.get it comes
    del ref
    safe_refs.shutdown()


class Interrupted(BaseException):
    """What a signal handler raises."""


class Aside:
    """As it is opened, it puts Ray's serialization aside, until another thread has Ray's lock; then a signal comes."""

    def __reduce__(self) -> Any:
        return aside, ()


has_lock = threading.Event()


def aside() -> str:
    serializing.look()
    with serializing.put_aside():
        assert has_lock.wait(20)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    return "opened"


def test_a_signal_that_comes_as_rays_lock_is_taken_back(cluster: str) -> None:
    """Ctrl-C while another thread opens something that takes long: it is what the caller gets, and Ray works on."""
    lock: Any = ray._private.worker.global_worker.function_actor_manager.lock

    def take() -> None:
        with lock:
            has_lock.set()
            time.sleep(1)

    def on(*_: object) -> None:
        raise Interrupted

    ref = ray.put([Aside()])
    thread = threading.Thread(target=take)
    before = signal.signal(signal.SIGALRM, on)
    try:
        with lock:
            thread.start()
            with pytest.raises(Interrupted):
                ray.get(ref, timeout=20)
            assert lock._is_owned()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        thread.join()
    assert got(ray.put("next")) == "next"
    assert not vars(serializing.local).get("object_ref_stack")
