"""`durable=True`: the registry holds copies of its own, that outlive the process, job and driver that made the objects."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from safe_refs import LeaseExpiredError, OwnerGoneError, RegistryUnavailableError, UnsupportedReferenceError, _ray, aio
from safe_refs.envelope import LeaseAddress
from safe_refs.registry import adopting, outbox, site
from safe_refs.registry.pinning import Pin
from safe_refs.registry.records import Terms, Wish
from tests.conftest import PRELUDE, Driver, as_actor, is_empty
from tests.test_actors import wait_until

MB = 2**20

MAKER = (
    PRELUDE
    + """
import numpy as np
def nested():
    deepest = ray.put("deepest")
    return ray.put({"left": ray.put([deepest, 1]), "right": [ray.put("leaf"), deepest]})
objects = {
    "kB": ray.put(np.arange(1000, dtype=np.uint8)),
    "MB": ray.put(np.full(2**20, 7, dtype=np.uint8)),
    "100 MB": ray.put(np.full(100 * 2**20, 9, dtype=np.uint8)),
    "nested": nested(),
}
payload = safe_refs.dumps(objects, durable=args[0] == "durable")
print(payload.hex(), flush=True)
if args[1] == "waits":
    sys.stdin.read()
"""
)


def value(ref: Any) -> Any:
    return ray.get(ref, timeout=30)


def made_by_a_driver(address: str, how: str, end: str) -> bytes:
    """A payload of another driver, which has ended by now, by its exit or by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, address, how, "waits" if end == "SIGKILL" else "exits"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as maker:
        assert maker.stdout is not None
        line = next(line for line in maker.stdout if not line.startswith("["))
        if end == "SIGKILL":
            os.kill(maker.pid, signal.SIGKILL)
        maker.wait(60)
    return bytes.fromhex(line.strip())


@pytest.mark.parametrize("end", ["exit", "SIGKILL"])
def test_what_a_driver_made_durable_is_read_by_another_after_its_end(cluster: str, end: str) -> None:
    """1 kB, 1 MB, 100 MB and objects in objects, all there when their maker, its job and its workers are gone."""
    payload = made_by_a_driver(cluster, "durable", end)
    assert wait_until(lambda: not _job_lives(), 30)
    loaded = safe_refs.loads(payload)
    assert value(loaded["kB"]).sum() == int(np.arange(1000, dtype=np.uint8).sum())
    assert int(value(loaded["MB"]).sum(dtype=np.int64)) == 7 * MB
    assert int(value(loaded["100 MB"]).sum(dtype=np.int64)) == 900 * MB
    nested = value(loaded["nested"])
    deepest, number = value(nested["left"])
    assert (value(deepest), number) == ("deepest", 1)
    leaf, again = nested["right"]
    assert value(leaf) == "leaf"
    assert again == deepest, "what two objects share is copied once"
    del loaded, nested, deepest, leaf, again
    assert safe_refs.release(payload) == 1


def _job_lives() -> bool:
    """Whether the job that made the only lease is still there, by Ray."""
    (row,) = safe_refs.leases(sizes=False)
    jobs = {job["JobID"]: job["IsDead"] for job in ray._private.state.jobs()}  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    return not jobs.get(row.job, True)


@pytest.mark.parametrize("end", ["exit", "SIGKILL"])
def test_without_durable_the_end_of_the_maker_is_told_at_once(cluster: str, end: str) -> None:
    """The control: `OwnerGoneError`, and no hang."""
    payload = made_by_a_driver(cluster, "plain", end)
    assert wait_until(lambda: _is_gone(payload), 10)
    begun = time.monotonic()
    assert _is_gone(payload)
    assert time.monotonic() - begun < 1


def _is_gone(payload: bytes) -> bool:
    try:
        safe_refs.loads(payload)
    except OwnerGoneError:
        return True
    return False


class Maker:
    """Makes objects, borrows others, and drops both."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> int:
        self.kept = refs
        return os.getpid()

    def dumps(self) -> bytes:
        own = ray.put(["own", ray.put("own, inside")])
        mixed = ray.put({"own": own, "borrowed": self.kept[0]})
        payload = safe_refs.dumps(mixed, durable=True)
        self.kept.clear()
        return payload


@pytest.mark.usefixtures("cluster")
def test_owned_and_borrowed_objects_inside_an_object_are_there_after_all_originals_are_dropped() -> None:
    """Also when their maker is killed, 10 s later."""
    borrowed = ray.put("borrowed")
    maker = as_actor(Maker).remote()
    ray.get(maker.keep.remote([borrowed]), timeout=60)
    payload = ray.get(maker.dumps.remote(), timeout=60)
    del borrowed
    gc.collect()
    ray.kill(maker)
    time.sleep(10)  # by then Ray has long freed what nobody holds
    mixed = value(safe_refs.loads(payload))
    own, inside = value(mixed["own"])
    assert (own, value(inside)) == ("own", "own, inside")
    assert value(mixed["borrowed"]) == "borrowed"
    del mixed, inside
    safe_refs.release(payload)


@pytest.mark.usefixtures("cluster")
def test_the_original_is_let_go_of() -> None:
    """When `dumps` has returned only the copy is pinned, and after `release` nothing."""
    ref = ray.put(np.ones(20 * MB, dtype=np.uint8))
    payload = safe_refs.dumps(ref, durable=True)
    (row,) = safe_refs.leases()
    assert row.durable
    assert row.size_bytes is not None
    assert row.size_bytes >= 20 * MB
    del ref
    gc.collect()
    assert wait_until(lambda: _ray.store_usage().used_bytes < 30 * MB)
    loaded = safe_refs.loads(payload)
    safe_refs.release(payload)
    assert value(loaded).sum() == 20 * MB, "who has resolved it keeps it"
    del loaded
    assert is_empty(15)


@pytest.mark.usefixtures("cluster")
def test_a_durable_payload_says_so() -> None:
    """In its envelope, and in the listing of leases."""
    payload = safe_refs.dumps([ray.put(1)], durable=True, label="kept", ttl=60)
    assert safe_refs.inspect(payload).terms == {"durable": True, "ttl": 60, "label": "kept"}
    (row,) = safe_refs.leases()
    assert (row.durable, row.label) == (True, "kept")
    plain = safe_refs.dumps([ray.put(1)], label="plain")
    assert not safe_refs.leases(label="plain")[0].durable
    assert safe_refs.release([payload, plain]) == 2


@pytest.mark.usefixtures("cluster")
def test_terms_and_ends_are_those_of_other_leases() -> None:
    """A ttl runs from when the registry holds the copies; what has ended can't be made durable."""
    payload = safe_refs.dumps(ray.put("short"), durable=True, ttl=1.0)
    assert value(safe_refs.loads(payload)) == "short"
    assert wait_until(lambda: safe_refs.stats().live_leases == 0)  # type: ignore[union-attr]
    with pytest.raises(LeaseExpiredError):
        safe_refs.loads(payload)
    handle = safe_refs.pin(ray.put(1))
    handle.release()
    with pytest.raises(safe_refs.LeaseReleasedError):
        handle.make_durable()


@pytest.mark.usefixtures("cluster")
def test_a_lease_that_exists_becomes_durable(driver: Driver) -> None:
    """`SafeRef.make_durable`, by another process than the one that made it; then the maker may end."""

    class Owner:
        def pin(self) -> str:
            refs: list[Any] = [ray.put("first"), ray.put([ray.put("second")])]
            return str(safe_refs.pin(refs)[0])

    owner = as_actor(Owner).remote()
    text = ray.get(owner.pin.remote(), timeout=60)
    handle = safe_refs.SafeRef.parse(text)
    handle.make_durable()
    handle.make_durable()  # and again, which changes nothing
    ray.kill(owner)
    first = driver(
        """
        handle = safe_refs.SafeRef.parse(args[0])
        time.sleep(3)
        print(json.dumps(handle.get(timeout=20)))
        """,
        text,
    )
    assert first == "first"
    second: Any = safe_refs.SafeRef[Any](handle.address, 1).get(timeout=20)
    assert value(second[0]) == "second"
    del second
    assert handle.release() == 1


@pytest.mark.usefixtures("cluster")
def test_pin_scope_dumps_many_dump_pickler_and_aio_take_durable(tmp_path: Path) -> None:
    """Each of them makes a durable lease."""
    refs = [ray.put(number) for number in range(5)]
    handle = safe_refs.pin(refs[0], durable=True)
    many = safe_refs.dumps_many(refs, durable=True)
    with (tmp_path / "payload").open("wb") as file:
        safe_refs.dump(refs[1], file, durable=True)
        safe_refs.Pickler(file, durable=True).dump(refs[2])

    async def awaited(one: Any, other: Any) -> Any:
        return await aio.dumps(one, durable=True), await aio.pin(other, durable=True)

    payload, other = asyncio.run(awaited(*refs[3:]))
    rows = safe_refs.leases()
    assert len(rows) == 10
    assert all(row.durable for row in rows)
    with safe_refs.scope(durable=True) as scope:
        kept = scope.keep(safe_refs.dumps(refs[0]))
        plain = scope.keep(safe_refs.dumps(refs[0], durable=False))
        assert [row.durable for row in safe_refs.leases()[-2:]] == [True, False]
    del refs
    gc.collect()
    assert [value(ref) for ref in safe_refs.loads_many(many)] == [0, 1, 2, 3, 4]
    assert (handle.get(), other.get(), value(safe_refs.loads(payload))) == (0, 4, 3)
    with (tmp_path / "payload").open("rb") as written:
        first = written.read()
        written.seek(0)
        assert value(safe_refs.load(written)) == 1
        second = written.read()
        assert value(safe_refs.loads(second)) == 2
    assert safe_refs.release(many) == 5
    assert safe_refs.release([handle, first, second, payload, other, kept, plain]) == 7


@pytest.mark.usefixtures("cluster")
def test_pending_failed_and_cancelled_tasks(tmp_path: Path) -> None:
    """A pending object is copied when it is there; a failed task's error, and a cancellation, are what the copy gives."""
    gate = tmp_path / "gate"

    @ray.remote(num_cpus=0)
    def late(gate: str) -> str:
        while not Path(gate).exists():
            time.sleep(0.02)
        return "late"

    @ray.remote(num_cpus=0, max_retries=0)
    def fails() -> None:
        raise KeyError("the task's own")

    @ray.remote(num_cpus=0, max_retries=0)
    def times_out() -> None:
        raise ray.exceptions.GetTimeoutError("the task's own, too")

    waiting, failed, cancelled = late.remote(str(gate)), fails.remote(), late.remote(str(tmp_path / "never"))
    with pytest.raises(RegistryUnavailableError, match=r"not durable after 0\.5 s"):
        safe_refs.pin(waiting).make_durable(timeout=0.5)
    ray.cancel(cancelled)
    gate.touch()
    payload = safe_refs.dumps([waiting, failed, cancelled, times_out.remote()], durable=True)
    del waiting, failed, cancelled
    one, two, three, four = safe_refs.loads(payload)
    with pytest.raises(ray.exceptions.GetTimeoutError, match="the task's own, too"):
        value(four)
    assert value(one) == "late"
    with pytest.raises(KeyError, match="the task's own"):
        value(two)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        value(three)
    del one, two, three, four
    assert safe_refs.shutdown() == 2


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_copied_is_refused_and_nothing_stays() -> None:
    """An actor that dies with its creator, in the payload or in an object of it; not waiting for copies."""

    class Actor:
        def hello(self) -> str:
            return "hello"

    actor = as_actor(Actor).remote()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps([ray.put(1), actor], durable=True)
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.pin(actor, durable=True)
    with safe_refs.pin(actor) as handle, pytest.raises(UnsupportedReferenceError, match="detached"):
        handle.make_durable()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps(ray.put({"actor": actor}), durable=True)
    with pytest.raises(ValueError, match="wait=False"):
        safe_refs.dumps(ray.put(1), durable=True, wait=False)
    detached = as_actor(Actor).options(lifetime="detached", name="mortal", namespace="safe_refs-tests").remote()
    payload = safe_refs.dumps([detached, ray.put([detached])], durable=True)
    first, second = safe_refs.loads(payload)
    assert value(first.hello.remote()) == "hello"
    assert value(value(second)[0].hello.remote()) == "hello"
    safe_refs.release(payload)
    ray.kill(detached)


@pytest.mark.usefixtures("cluster")
def test_who_is_cancelled_waits_no_more_and_blocks_nobody(tmp_path: Path) -> None:
    """Many that wait for copies leave the loop's threads to others; a cancelled one leaves nothing held."""
    gate = str(tmp_path / "gate")

    @ray.remote(num_cpus=0)
    def late(gate: str) -> str:
        while not Path(gate).exists():
            time.sleep(0.02)
        return "late"

    async def main(ref: Any) -> float:
        waiting = [asyncio.ensure_future(aio.dumps([ref], durable=True)) for _ in range(50)]
        await asyncio.sleep(1.0)
        other = await aio.dumps([ray.put(1)])
        begun = time.monotonic()
        assert await aio.release(other) == 1
        took = time.monotonic() - begun
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return took

    ref = late.remote(gate)
    begun = time.monotonic()
    assert asyncio.run(main(ref)) < 5
    assert time.monotonic() - begun < 30
    assert wait_until(lambda: not safe_refs.leases(sizes=False), 30)
    Path(gate).touch()


@pytest.mark.usefixtures("cluster")
def test_what_was_given_up_or_refused_keeps_nothing() -> None:
    """Neither the original, nor what had been copied by then, and no task that hangs; others go on meanwhile."""

    class Sleeper:
        def __reduce__(self) -> Any:
            return time.sleep, (600,)

    class Actor:
        pass

    held: list[Any] = [ray.put(np.ones(10 * MB, dtype=np.uint8)), *(ray.put(Sleeper()) for _ in range(8))]
    handle = safe_refs.pin(held)[0]
    with pytest.raises(RegistryUnavailableError, match="not durable"):
        handle.make_durable(timeout=2)
    other = safe_refs.dumps(ray.put("goes on"), durable=True)
    assert value(safe_refs.loads(other)) == "goes on"
    assert safe_refs.release([handle, other]) == 2
    del held
    actor = as_actor(Actor).remote()
    with pytest.raises(UnsupportedReferenceError):
        safe_refs.dumps([ray.put(np.ones(10 * MB, dtype=np.uint8)), ray.put([actor])], durable=True)
    del actor
    gc.collect()
    assert is_empty(30)
    mortal: Any = as_actor(Actor).options(name="mortal-actor", namespace="safe_refs-tests").remote()
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        safe_refs.dumps(ray.get_actor("mortal-actor", namespace="safe_refs-tests"), durable=True)
    handle = safe_refs.pin(mortal)
    with pytest.raises(UnsupportedReferenceError, match="detached"):
        handle.make_durable()
    handle.release()
    soon = safe_refs.pin(ray.put("soon"), wait=False)
    soon.make_durable()
    assert soon.get() == "soon"
    soon.release()


def begin(ref: Any, ttl: float | None = None) -> tuple[Pin, adopting.Bells]:
    """What `dumps` does first: tell the adopter of what it is about to pin."""
    here = site.site()
    wish = Wish(_ray.surroundings(), ttl)
    return adopting.begin("default", Pin(os.urandom(16), [ref], Terms(), site.origin(here), wish), here)


@pytest.mark.usefixtures("cluster")
def test_the_copying_begins_beside_the_pin_and_comes_to_nothing_without_it() -> None:
    """The maker tells a running adopter of what it owns itself; a copy whose pin never comes, or comes late, isn't kept."""
    safe_refs.release(safe_refs.dumps(ray.put("first"), durable=True))
    ref = ray.put(np.ones(10 * MB, dtype=np.uint8))
    pin, bells = begin(ref)
    assert pin.wish is not None
    assert pin.wish.told == (0,)
    (bell,) = bells
    assert value(bell) == b""
    adopter: Any = ray.get_actor("registry:default:adopter", namespace="safe_refs")
    assert value(adopter.adopting.remote()) == 0
    assert wait_until(lambda: value(adopter.owned.remote()) == 0, 20)
    here = site.site()
    epoch, generation = outbox.pin("default", pin, 30, here)
    address = LeaseAddress("default", here.connection.cluster, epoch, generation, pin.lease, False)
    adopting.make_durable([address], 30, None, bells)
    (row,) = safe_refs.leases()
    assert row.durable
    assert outbox.release([address], 30) == 1

    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(1)]

    owner = as_actor(Owner).remote()
    pin, bells = begin(value(owner.put.remote())[0])
    assert (pin.wish, bells) == (Wish(_ray.surroundings(), None), {}), "what may have to be anchored isn't told"


@pytest.mark.usefixtures("cluster")
def test_a_reference_whose_owner_is_dead_is_told(driver: Driver) -> None:
    """`OwnerGoneError` from `dumps`, before there is a payload; or the copy is good, if the store had the object still."""

    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(np.ones(MB, dtype=np.uint8))]

    owner = as_actor(Owner).remote()
    (ref,) = ray.get(owner.put.remote(), timeout=60)
    ray.kill(owner)
    assert wait_until(lambda: _ray.is_surely_dead(_ray.owner_of(ref)), 30)
    with suppress(OwnerGoneError, safe_refs.LeaseLostError):
        saved = safe_refs.dumps(ref, durable=True)
        assert value(safe_refs.loads(saved, take=True)).sum() == MB
    assert wait_until(lambda: _is_lost(ref), 30)
    with pytest.raises((OwnerGoneError, safe_refs.LeaseLostError)):
        safe_refs.dumps(ref, durable=True)


def _is_lost(ref: Any) -> bool:
    try:
        value(ref)
    except ray.exceptions.ObjectLostError:
        return True
    return False


@pytest.mark.usefixtures("cluster")
def test_many_references_and_shared_ones() -> None:
    """A few hundred in one payload, some of them twice over: each is copied once."""
    shared = ray.put("shared")
    refs = [ray.put([number, shared]) for number in range(200)]
    payload = safe_refs.dumps([refs, shared], durable=True)
    del refs, shared
    gc.collect()
    loaded, again = safe_refs.loads(payload)
    values = ray.get(loaded, timeout=60)
    assert [number for number, _ in values] == list(range(200))
    assert {ref for _, ref in values} == {again}
    assert value(again) == "shared"
    del loaded, again, values
    safe_refs.release(payload)


@pytest.mark.usefixtures("cluster")
def test_the_registrys_end_leaves_copies_to_whom_have_them() -> None:
    """After `shutdown` a copy that was resolved is still good, and the process that owns it ends when nobody has one."""
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    loaded = safe_refs.loads(payload)
    adopter: Any = ray.get_actor("registry:default:adopter", namespace="safe_refs")
    pid: int = ray.get(adopter.where.remote(), timeout=30)[1]
    assert safe_refs.shutdown() == 1
    assert value(loaded) == "copied"
    del loaded
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20)


def test_a_class_beside_the_makers_script_is_found(cluster: str, tmp_path: Path) -> None:
    """The registry was started by another job; the tasks that copy import from where the maker does."""
    (tmp_path / "beside_it.py").write_text("class Thing:\n    pass")
    script = tmp_path / "maker.py"
    script.write_text(
        PRELUDE
        + """
import beside_it
print(json.dumps(safe_refs.dumps(ray.put(beside_it.Thing()), durable=True).hex()))
"""
    )
    safe_refs.init()
    done = subprocess.run(
        [sys.executable, str(script), cluster], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert safe_refs.release(bytes.fromhex(json.loads(done.stdout.strip().splitlines()[-1]))) == 1


@pytest.mark.long
def test_the_makers_runtime_environment_is_respected(cluster: str, tmp_path: Path) -> None:
    """A class that only the maker's working directory has is copied, by a task that runs there."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "only_theirs.py").write_text(
        "class Thing:\n    def __init__(self, number):\n        self.number = number\n"
    )
    code = """
import os, sys
import ray, safe_refs
address, folder = sys.argv[1:]
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
env = {"working_dir": folder, "env_vars": {"OF": "theirs"}}
ray.init(address=address, log_to_driver=False, logging_level="error", runtime_env=env)
sys.path.insert(0, folder)
@ray.remote(num_cpus=0)
def make():
    import only_theirs
    return only_theirs.Thing(3)
ref = make.remote()
print(safe_refs.dumps(ref, durable=True).hex())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, cluster, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    payload = bytes.fromhex(done.stdout.strip().splitlines()[-1])
    ref = safe_refs.loads(payload)

    @ray.remote(num_cpus=0)
    def read(refs: list[Any]) -> int:
        thing: Any = ray.get(refs[0])
        number: int = thing.number
        return number

    there = read.options(runtime_env={"env_vars": {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}})
    assert value(there.remote([ref])) == 3
    del ref
    assert safe_refs.release(payload) == 1
