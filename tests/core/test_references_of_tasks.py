"""References to what isn't there yet, or never will be: a lease holds the future, a reader waits for it, or gets its own error."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.cluster import as_actor
from tests.support.processes import Driver, run_python
from tests.support.store import is_empty
from tests.support.tasks import MistakeError, begun, crash, fail, items, stream, when_told
from tests.support.values import MB
from tests.support.waiting import wait_until

READ = """
from pathlib import Path
from tests.support.tasks import MistakeError
ref = safe_refs.loads(bytes.fromhex(args[0]))["ref"]
"""


@pytest.mark.long
def test_a_pending_reference_makes_its_reader_wait(cluster: str, driver: Driver, tmp_path: Path) -> None:
    """Another job gets a reference to a task at work, though the maker has dropped its own; the value comes when it is there."""
    told = tmp_path / "told"
    payload = safe_refs.dumps({"ref": when_told.remote(str(told))})
    gc.collect()
    got = driver(
        READ
        + """
ready, _ = ray.wait([ref], timeout=0.5)
Path(args[1]).touch()
print(json.dumps([len(ready), len(ray.get(ref, timeout=30)), safe_refs.release(args and bytes.fromhex(args[0]))]))
""",
        payload.hex(),
        str(told),
    )
    assert got == [0, MB, 1]
    assert is_empty(within_s=5)


def test_a_handle_of_a_pending_reference_waits_for_its_value(cluster: str, tmp_path: Path) -> None:
    """`get` for as long as it is told to; `await` without blocking the loop."""
    told = tmp_path / "told"
    handle = safe_refs.pin(when_told.remote(str(told)))
    with pytest.raises(ray.exceptions.GetTimeoutError):
        handle.get(timeout=0.2)

    async def awaited() -> int:
        async def value() -> bytes:
            found: bytes = await handle
            return found

        waiting = asyncio.ensure_future(value())
        assert not (await asyncio.wait([waiting], timeout=0.3))[0]
        told.touch()
        return len(await asyncio.wait_for(waiting, 30))

    assert asyncio.run(awaited()) == MB
    assert len(handle.get(timeout=30)) == MB
    assert handle.release() == 1
    assert is_empty(within_s=5)


def test_what_was_resolved_while_pending_outlives_the_lease(cluster: str, tmp_path: Path) -> None:
    """Released before the value was there: a reference that was resolved gets it all the same, and then it goes."""
    told = tmp_path / "told"
    payload = safe_refs.dumps(when_told.remote(str(told)))
    ref = safe_refs.loads(payload)
    assert safe_refs.release(payload) == 1
    told.touch()
    assert len(ray.get(ref, timeout=30)) == MB
    del ref
    assert is_empty(within_s=5)


@pytest.mark.long
def test_a_value_that_comes_after_the_release_is_not_kept() -> None:
    """Nobody waits for it any more, and nothing of it stays.

    On a busy machine Ray itself keeps the value of a task to which nobody has a reference any more, in one of 5 to 40 cases (seen on
    Ray 2.60, without safe_refs), for as long as the cluster lives. So this has a Ray of its own, and tries a few times.
    """
    left = run_python(
        """
        import json, tempfile
        from pathlib import Path
        import ray, safe_refs
        from safe_refs._ray import store
        from tests.support.cluster import LOCAL_RAY
        from tests.support.tasks import wait_for
        from tests.support.values import MB

        class Maker:
            def make(self, told):
                wait_for(told)
                return b"v" * MB

            def has_made(self):
                return True

        ray.init(**LOCAL_RAY)
        folder, left = tempfile.mkdtemp(), []
        while 0 not in left and len(left) < 5:
            maker, told = ray.remote(num_cpus=0)(Maker).remote(), f"{folder}/{len(left)}"
            payload = safe_refs.dumps(maker.make.remote(told))
            assert safe_refs.release(payload) == 1
            before = store.store_usage().used_bytes
            Path(told).touch()
            assert ray.get(maker.has_made.remote(), timeout=30)  # one call after the other
            left.append(store.wait_for_store(before, 5).used_bytes - before)
        print(json.dumps(left))
        """
    )
    assert left[-1] == 0, left


def test_a_reader_gets_the_error_of_a_failed_task(cluster: str, driver: Driver) -> None:
    """As Ray gives it: a `RayTaskError` that is an instance of the task's own class, in another job too."""
    payload = safe_refs.dumps({"ref": fail.remote()})
    gc.collect()
    with pytest.raises(MistakeError, match="not today") as caught:
        ray.get(safe_refs.loads(payload)["ref"], timeout=30)
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    got = driver(
        READ
        + """
try:
    ray.get(ref, timeout=30)
except MistakeError as error:
    print(json.dumps([isinstance(error, ray.exceptions.RayTaskError), error.cause.number]))
""",
        payload.hex(),
    )
    assert got == [True, 42]
    assert safe_refs.release(payload) == 1


def test_a_task_may_fail_after_its_reference_has_left(cluster: str, tmp_path: Path) -> None:
    """The reader that waits for it gets the error."""
    told = tmp_path / "told"
    payload = safe_refs.dumps(fail.remote(str(told)))
    gc.collect()
    ref = safe_refs.loads(payload)
    assert ray.wait([ref], timeout=0.2)[0] == []
    told.touch()
    with pytest.raises(MistakeError):
        ray.get(ref, timeout=30)
    assert safe_refs.release(payload) == 1


def doomed_actor() -> Any:
    class Doomed:
        def end(self) -> None:
            os._exit(1)

    return as_actor(Doomed).remote().end.remote()


def cancelled(path: str) -> Any:
    ref = when_told.remote(path)
    ray.cancel(ref)
    while not ray.wait([ref], timeout=5)[0]:
        ray.cancel(ref)  # one that comes in the moment in which the task starts may be lost
    return ref


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: fail.remote(), MistakeError),
        (lambda path: when_told.remote(fail.remote()), MistakeError),
        (lambda path: crash.remote(), ray.exceptions.WorkerCrashedError),
        (lambda path: doomed_actor(), ray.exceptions.ActorDiedError),
        (cancelled, ray.exceptions.TaskCancelledError),
    ],
    ids=["failed", "its argument failed", "crashed", "actor died", "cancelled"],
)
def test_every_way_to_read_gives_the_tasks_own_error(cluster: str, tmp_path: Path, make: Any, error: Any) -> None:
    """`ray.get` of what `loads` gave, a handle's `get`, and `await`: none hangs, and none hides the error behind one of ours."""
    ref = make(str(tmp_path / "never"))
    payload = safe_refs.dumps([ref])
    handle = safe_refs.pin(ref)
    del ref
    gc.collect()
    with pytest.raises(error):
        ray.get(safe_refs.loads(payload)[0], timeout=60)
    with pytest.raises(error):
        handle.get(timeout=60)

    async def awaited() -> Any:
        return await handle

    with pytest.raises(error):
        asyncio.run(asyncio.wait_for(awaited(), 60))
    assert safe_refs.release([payload, handle]) == 2


def cancel(ref: Any) -> None:
    """Cancel a task; again, if Ray has lost it."""

    def is_over() -> bool:
        ray.cancel(ref)
        return bool(ray.wait([ref], timeout=2)[0])

    wait_until(is_over)


def test_a_task_that_is_cancelled_while_it_is_waited_for(cluster: str, driver: Driver, tmp_path: Path) -> None:
    """The maker cancels it when the payload has long left: the reader, of another job, gets `TaskCancelledError`."""
    ref = when_told.remote(str(tmp_path / "never"))
    payload = safe_refs.dumps({"ref": ref})
    loaded = safe_refs.loads(payload)["ref"]
    wait_until(begun(tmp_path / "never").exists)
    cancel(ref)
    del ref
    got = driver(
        READ
        + """
try:
    ray.get(ref, timeout=30)
except ray.exceptions.TaskCancelledError:
    print(json.dumps("cancelled"))
""",
        payload.hex(),
    )
    assert got == "cancelled"
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(loaded, timeout=30)
    assert safe_refs.release(payload) == 1


@pytest.mark.long
def test_items_of_a_streaming_generator_leave_one_by_one(cluster: str, driver: Driver, tmp_path: Path) -> None:
    """While the generator is at work each item can be passed on and read elsewhere; those passed on outlive the generator."""
    generator = stream.remote(str(tmp_path), 4)
    payloads = []
    for number in range(3):
        (tmp_path / str(number)).touch()
        payloads.append(safe_refs.dumps({"ref": next(generator)}))
        gc.collect()
        assert ray.get(safe_refs.loads(payloads[-1])["ref"], timeout=30) == bytes([number]) * MB
    del generator
    (tmp_path / "3").touch()
    gc.collect()
    for number, payload in enumerate(payloads):
        got = driver(
            READ + "value = ray.get(ref, timeout=30)\nprint(json.dumps([len(value), value[0]]))", payload.hex()
        )
        assert got == [MB, number]
    assert safe_refs.release(payloads[:2]) == 2
    assert ray.get(safe_refs.loads(payloads[2])["ref"], timeout=30) == bytes([2]) * MB
    assert safe_refs.release(payloads) == 1
    assert is_empty(within_s=5)


def test_all_items_of_a_generator_in_one_lease(cluster: str, tmp_path: Path) -> None:
    """`list(generator)` in an object, or the generator itself to `pin`, which waits for them: one lease for all."""
    for number in range(3):
        (tmp_path / str(number)).touch()
    payload = safe_refs.dumps({"items": list(stream.remote(str(tmp_path), 3))})
    handles = safe_refs.pin(stream.remote(str(tmp_path), 3))
    gc.collect()
    assert [ray.get(ref, timeout=30)[0] for ref in safe_refs.loads(payload)["items"]] == [0, 1, 2]
    assert [handle.get(30)[0] for handle in handles] == [0, 1, 2]
    assert safe_refs.release([payload, *handles]) == 2
    assert is_empty(within_s=5)


def test_a_generator_that_breaks_gives_its_error_as_an_item(cluster: str, tmp_path: Path) -> None:
    """As in Ray: the last reference is the error's, and can be passed on."""
    (tmp_path / "0").touch()
    payloads = [safe_refs.dumps(ref) for ref in stream.remote(str(tmp_path), 1, True)]
    gc.collect()
    assert ray.get(safe_refs.loads(payloads[0]), timeout=30) == b"\0" * MB
    with pytest.raises(MistakeError, match="the stream broke"):
        ray.get(safe_refs.loads(payloads[1]), timeout=30)
    assert safe_refs.release(payloads) == 2


@pytest.mark.filterwarnings("ignore:num_returns='dynamic' is deprecated")
def test_a_dynamic_generator_is_a_list_of_references_and_travels(cluster: str, tmp_path: Path) -> None:
    """The older kind (`num_returns="dynamic"`) holds all its references, which Ray passes on too: so does `dumps`, unchanged."""
    for number in range(3):
        (tmp_path / str(number)).touch()
    how: Any = {"num_cpus": 0, "num_returns": "dynamic"}
    generator: Any = ray.get(ray.remote(**how)(items).remote(str(tmp_path), 3), timeout=30)
    payload = safe_refs.dumps({"all": generator})
    assert len(generator) == 3
    del generator
    gc.collect()
    loaded = safe_refs.loads(payload)["all"]
    assert type(loaded) is ray.DynamicObjectRefGenerator
    assert [ray.get(ref, timeout=30)[0] for ref in loaded] == [0, 1, 2]
    assert safe_refs.release(payload) == 1
    del loaded
    assert is_empty(within_s=5)
