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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from safe_refs import LeaseExpiredError, OwnerGoneError, aio
from safe_refs._ray import store
from tests.support.actors import Borrower, Owner, borrower
from tests.support.cluster import as_actor
from tests.support.copies import pid_of_copy_owner
from tests.support.processes import PRELUDE, Driver, dies
from tests.support.store import is_empty
from tests.support.values import MB, error_of, got
from tests.support.waiting import stays, wait_until

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


@pytest.mark.parametrize("end", [pytest.param("exit", marks=pytest.mark.long), "SIGKILL"])
@pytest.mark.long
def test_what_a_driver_made_durable_is_read_by_another_after_its_end(cluster: str, end: str) -> None:
    """1 kB, 1 MB, 100 MB and objects in objects, all there when their maker, its job and its workers are gone."""
    payload = made_by_a_driver(cluster, "durable", end)
    wait_until(lambda: not _job_lives(), 30)
    loaded = safe_refs.loads(payload)
    assert got(loaded["kB"]).sum() == int(np.arange(1000, dtype=np.uint8).sum())
    assert int(got(loaded["MB"]).sum(dtype=np.int64)) == 7 * MB
    assert int(got(loaded["100 MB"]).sum(dtype=np.int64)) == 900 * MB
    nested = got(loaded["nested"])
    deepest, number = got(nested["left"])
    assert (got(deepest), number) == ("deepest", 1)
    leaf, again = nested["right"]
    assert got(leaf) == "leaf"
    assert again == deepest, "what two objects share is copied once"
    del loaded, nested, deepest, leaf, again
    assert safe_refs.release(payload) == 1


def _job_lives() -> bool:
    """Whether the job that made the only lease is still there, by Ray."""
    (row,) = safe_refs.leases(sizes=False)
    jobs = {job["JobID"]: job["IsDead"] for job in ray._private.state.jobs()}  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    return not jobs.get(row.job, True)


@pytest.mark.parametrize("end", ["exit", "SIGKILL"])
def test_without_durable_the_end_of_the_maker_is_reported_at_once(cluster: str, end: str) -> None:
    """The control: `OwnerGoneError`, and no hang."""
    payload = made_by_a_driver(cluster, "plain", end)
    wait_until(lambda: error_of(payload) is OwnerGoneError, 10)
    begun = time.monotonic()
    assert error_of(payload) is OwnerGoneError
    assert time.monotonic() - begun < 1


def mixed_of_own_and_borrowed(self: Borrower) -> bytes:
    """A payload of an object with an object of this process's and a borrowed one inside; it drops both."""
    own = ray.put(["own", ray.put("own, inside")])
    payload = safe_refs.dumps(ray.put({"own": own, "borrowed": self.refs[0]}), durable=True)
    self.drop()
    return payload


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_owned_and_borrowed_objects_inside_an_object_are_there_after_all_originals_are_dropped() -> None:
    """Also when their maker is killed, 10 s later."""
    borrowed = ray.put("borrowed")
    maker = borrower()
    ray.get(maker.keep.remote([borrowed]), timeout=60)
    payload = ray.get(maker.__ray_call__.remote(mixed_of_own_and_borrowed), timeout=60)
    del borrowed
    gc.collect()
    ray.kill(maker)
    stays(lambda: len(safe_refs.leases(sizes=False)) == 1, 10)  # by then Ray has long freed what nobody holds
    mixed = got(safe_refs.loads(payload))
    own, inside = got(mixed["own"])
    assert (own, got(inside)) == ("own", "own, inside")
    assert got(mixed["borrowed"]) == "borrowed"
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
    wait_until(lambda: store.store_usage().used_bytes < 30 * MB)
    loaded = safe_refs.loads(payload)
    safe_refs.release(payload)
    assert got(loaded).sum() == 20 * MB, "who has resolved it keeps it"
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
    assert got(safe_refs.loads(payload)) == "short"
    wait_until(lambda: safe_refs.stats().live_leases == 0)  # type: ignore[union-attr]
    with pytest.raises(LeaseExpiredError):
        safe_refs.loads(payload)
    handle = safe_refs.pin(ray.put(1))
    handle.release()
    with pytest.raises(safe_refs.LeaseReleasedError):
        handle.make_durable()


@pytest.mark.usefixtures("cluster")
def test_a_lease_that_exists_becomes_durable(driver: Driver) -> None:
    """`SafeRef.make_durable`, by another process than the one that made it; then the maker may end."""

    def pin(self: Owner) -> str:
        (inside,) = self.give("second")
        return str(safe_refs.pin(self.give("first", [inside]))[0])

    owner = as_actor(Owner).remote()
    text = ray.get(owner.__ray_call__.remote(pin), timeout=60)
    handle = safe_refs.SafeRef.parse(text)
    handle.make_durable()
    handle.make_durable()  # and again, which changes nothing
    ray.kill(owner)
    first = driver(
        """
        handle = safe_refs.SafeRef.parse(args[0])
        from tests.support.waiting import stays
        stays(lambda: len(safe_refs.leases(sizes=False)) == 1, 3)
        print(json.dumps(handle.get(timeout=20)))
        """,
        text,
    )
    assert first == "first"
    second: Any = safe_refs.SafeRef[Any](handle.address, 1).get(timeout=20)
    assert got(second[0]) == "second"
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
    assert [got(ref) for ref in safe_refs.loads_many(many)] == [0, 1, 2, 3, 4]
    assert (handle.get(), other.get(), got(safe_refs.loads(payload))) == (0, 4, 3)
    with (tmp_path / "payload").open("rb") as written:
        first = written.read()
        written.seek(0)
        assert got(safe_refs.load(written)) == 1
        second = written.read()
        assert got(safe_refs.loads(second)) == 2
    assert safe_refs.release(many) == 5
    assert safe_refs.release([handle, first, second, payload, other, kept, plain]) == 7


@pytest.mark.usefixtures("cluster")
def test_the_registrys_end_leaves_copies_to_whom_have_them() -> None:
    """After `shutdown` a copy that was resolved is still good, and the process that owns it ends when nobody has one."""
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    loaded = safe_refs.loads(payload)
    pid = pid_of_copy_owner()
    assert safe_refs.shutdown() == 1
    assert got(loaded) == "copied"
    del loaded
    assert dies(pid)


@pytest.mark.long
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
    assert got(there.remote([ref])) == 3
    del ref
    assert safe_refs.release(payload) == 1
