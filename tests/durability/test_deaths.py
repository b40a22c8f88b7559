"""What becomes of durable leases when those die who hold, own, make or wait for the copies; and when the store is full."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import OwnerGoneError
from safe_refs._ray import store as ray_store
from safe_refs.registry.calls import Call
from safe_refs.replication.part import Replication
from tests.support import store
from tests.support.copies import copying, kill_copy_owner, pid_of_copy_owner
from tests.support.processes import NODES, PRELUDE, run_python
from tests.support.shards import Start, ask, kill, wait_until_whole
from tests.support.tasks import wait_for
from tests.support.values import error_of, got
from tests.support.waiting import wait_until


def owners(name: str, payload: bytes) -> list[bytes]:
    """For each shard, the owner of what it holds of a lease by itself; empty where it holds nothing."""
    lease = bytes.fromhex(safe_refs.inspect(payload).lease_id or "")
    found = []
    for shard in (0, 1):
        records = ask(name, shard, Call(Replication.records, [lease])).live
        found.append(records[0].owners[0] if records else b"")
    return found


def read(payload: bytes) -> Any:
    """What a payload's only reference gives; None where its owner is dead."""
    try:
        return got(safe_refs.loads(payload))
    except ray.exceptions.OwnerDiedError:
        return None


@pytest.mark.long
def test_each_replica_has_a_copy_of_its_own_and_gets_another_when_that_is_lost(start: Start) -> None:
    """The owner of one replica's copies is killed: the other's are there, and the first has some of its own again soon."""
    name = start(2, 2)
    payload = safe_refs.dumps(ray.put(["copied", 1]), durable=True)
    first, second = owners(name, payload)
    assert first
    assert second
    assert first != second
    kill_copy_owner(name, 0)
    wait_until(lambda: read(payload) == ["copied", 1], 20)
    wait_until(lambda: owners(name, payload)[0] not in (b"", first, second), 60, "it is copied again")
    kill_copy_owner(name, 1)
    wait_until(lambda: read(payload) == ["copied", 1], 20)
    wait_until(lambda: second not in owners(name, payload) and b"" not in owners(name, payload), 60)
    assert read(payload) == ["copied", 1]
    assert safe_refs.release(payload) == 1


@pytest.mark.long
def test_a_shard_that_comes_back_has_copies_made_of_its_own(start: Start) -> None:
    """It gets the lease from the other, with that one's copies, and is durable by itself a little later."""
    name = start(2, 2)
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    _, second = owners(name, payload)
    kill(name, 0)
    wait_until_whole(name)
    assert got(safe_refs.loads(payload)) == "copied"
    wait_until(lambda: owners(name, payload)[0] not in (b"", second), 60)
    assert owners(name, payload)[1] == second
    kill_copy_owner(name, 1)
    wait_until(lambda: read(payload) == "copied", 30)
    assert safe_refs.release(payload) == 1


@pytest.mark.long
def test_a_copy_that_was_loaded_outlives_its_shard(start: Start) -> None:
    """At once with `anchored=True`: whichever replica's shard is killed right after the load, the reference reads, also later."""
    name = start(2, 2)
    for shard in (0, 1):
        payload = safe_refs.dumps(ray.put(["copied", shard, bytes(200_000)]), durable=True)
        copy = safe_refs.loads(payload, anchored=True)
        kill(name, shard)
        wait_until_whole(name)
        assert safe_refs.release(payload) == 1
        assert got(copy)[:2] == ["copied", shard]


@pytest.mark.long
def test_a_copy_owner_that_is_killed_at_any_moment_costs_no_dumps(start: Start) -> None:
    """The maker has sent it the request itself, or not; it had the object, or a copy: the next one copies again.

    If it was killed after the shard had taken the copies, they have died with it, and the maker or the reader learns that.
    """
    name = start(1, 1)
    safe_refs.release(safe_refs.dumps(ray.put("first"), durable=True))
    before = ray_store.store_usage()
    good = 0
    for number in range(5):
        killer = threading.Timer(number * 0.004, os.kill, (pid_of_copy_owner(name, 0), signal.SIGKILL))
        killer.start()
        try:
            payload = safe_refs.dumps(ray.put([number, bytes(200_000)]), durable=True)
            killer.join()
            found = read(payload)
            assert found in (None, [number, bytes(200_000)])
            good += found is not None
            safe_refs.release(payload)
        except OwnerGoneError as error:
            killer.join()
            error.with_traceback(None)
    assert good >= 2
    # A copy that its owner died over before Ray had pinned it stays as cache, until its room is needed.
    left = ray_store.wait_for_store(before.used_bytes, 5)
    if left.primary_bytes <= before.primary_bytes:
        store.allow(max(0, left.used_bytes - before.used_bytes))


@pytest.mark.long
def test_without_replicas_the_death_of_the_owner_is_reported(start: Start) -> None:
    """There is one copy, and it dies with the process that owns it: `OwnerGoneError`, soon, which doesn't advise `durable=True`."""
    name = start(1, 1)
    payload = safe_refs.dumps(ray.put("copied"), durable=True)
    kill_copy_owner(name, 0)
    wait_until(lambda: error_of(payload) is OwnerGoneError)
    with pytest.raises(
        OwnerGoneError, match=r"the copies of durable lease .* died .* \(the actor SafeRefsCopyOwner was"
    ) as caught:
        safe_refs.loads(payload)
    assert caught.value.durable
    assert "durable=True" not in str(caught.value)
    again = safe_refs.dumps(ray.put("again"), durable=True)
    assert got(safe_refs.loads(again)) == "again", "there is another owner by now"
    safe_refs.release(again)


WAITER = (
    PRELUDE
    + """
refs = ray.get(ray.get_actor("holder", namespace="safe_refs-tests").give.remote(args[0]), timeout=60)
print("waits", flush=True)
safe_refs.dumps(refs, durable=True)
"""
)


class Holder:
    """Owns an object that isn't there yet."""

    def give(self, gate: str) -> list[Any]:
        def late() -> bytes:
            wait_for(gate)
            return b"late" * 1000

        self._made = [ray.remote(num_cpus=0)(late).remote()]
        return self._made

    def made(self) -> list[Any]:
        return self._made


@pytest.mark.long
def test_a_maker_that_is_killed_while_copies_are_awaited_leaves_nothing(cluster: str, tmp_path: Path) -> None:
    """Nobody has the payload: the copies are not made, and the lease is not left behind for long."""
    holder: Any = ray.remote(num_cpus=0)(Holder).options(name="holder", namespace="safe_refs-tests").remote()
    gate = tmp_path / "gate"
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, cluster, str(gate)], stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        assert any(line.strip() == "waits" for line in maker.stdout)
        wait_until(lambda: bool(safe_refs.leases(sizes=False)), 30)
        wait_until(lambda: copying() == 1, 30)
        maker.kill()
    wait_until(lambda: copying() == 0, 60, "nobody asks for it any more")
    gate.touch()
    assert got(got(holder.made.remote())[0]) == b"late" * 1000
    assert not any(row.durable for row in safe_refs.leases(sizes=False))
    safe_refs.shutdown(
        force=True
    )  # what a maker that is killed within `dumps` has pinned stays, as it does without `durable`
    ray.kill(holder)
    gc.collect()


@pytest.mark.long
def test_copies_of_replicas_lie_on_different_nodes_and_outlive_one() -> None:
    """With two replicas, a node that dies takes one copy along."""
    done = run_python(
        NODES
        + """
import numpy as np
safe_refs.init(shards=2, replicas=2)
payloads = [safe_refs.dumps([ray.put(np.full(2**20, n, dtype=np.uint8))], durable=True) for n in range(6)]
leases = [bytes.fromhex(safe_refs.inspect(payload).lease_id) for payload in payloads]
from safe_refs._ray import objects
from safe_refs.registry.calls import Call
from safe_refs.replication.part import Replication
from tests.support.shards import ask
from tests.support.waiting import comes

def places():  # for each lease, the nodes of its copies, shard by shard
    found = []
    for lease in leases:
        found.append([])
        for shard in (0, 1):
            try:
                records = ask("default", shard, Call(Replication.records, [lease])).live
                found[-1].append(objects.nodes_of(records[0].items[0], 5) if records else [])
            except (ValueError, ray.exceptions.RayError):  # it starts anew on another node
                found[-1].append([])
    return found

def read(payload):
    try:
        (ref,) = safe_refs.loads(payload)
        return int(ray.get(ref, timeout=20).sum(dtype=np.int64))
    except (safe_refs.SafeRefsError, ray.exceptions.RayError) as error:
        return repr(error)

before = places()
victim = next(node for node in others if any([node.node_id] in each for each in before))
cluster.remove_node(victim, allow_graceful=False)
right = [n * 2**20 for n in range(6)]
seen = []

def copied_again():
    global after
    seen.append([read(payload) for payload in payloads])
    after = places()
    return seen[-1] == right and all(each and victim.node_id not in each for both in after for each in both)

comes(copied_again, 60)
wrong = [row for row in seen if any(type(value) is int and value != good for value, good in zip(row, right))]
ray.shutdown()
cluster.shutdown()
print(json.dumps([before, seen[-1] == right, wrong, after, victim.node_id, seen[-1]]))
""",
        timeout=170,
    )
    before, right, wrong, after, victim, last = done
    assert all(first != second for first, second in before), "each replica has its copy on another node"
    assert right, last
    assert wrong == []
    assert all(each and victim not in each for both in after for each in both), "what the node had is copied again"


ONE_CPU = """
import gc, json, os, sys, tempfile, time
from pathlib import Path
folder = sys.argv[1]
os.environ["RAY_TMPDIR"] = folder
import numpy as np
import ray, safe_refs
from safe_refs._ray import cluster, objects, store
from tests.support.waiting import comes
ray.init(address="local", num_cpus=1, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False,
         logging_level="error", _node_ip_address="127.0.0.1", _temp_dir=folder)
MB = 2**20

def spilled():
    return sum(path.stat().st_size for path in Path(folder).rglob("ray_spilled_objects*/**/*") if path.is_file())

@ray.remote(num_cpus=1)
def make():
    data = ray.put(np.full(100 * MB, 5, dtype=np.uint8))
    return os.getpid(), safe_refs.dumps(data, durable=True)

pid, payload = ray.get(make.remote(), timeout=120)

class Actor:
    def pid(self):
        return os.getpid()

actors, pids = [], []
for _ in range(4):  # the worker that made it becomes an actor's
    actors.append(ray.remote(num_cpus=0)(Actor).remote())
    pids.append(ray.get(actors[-1].pid.remote(), timeout=60))
for actor in actors:
    ray.kill(actor)
gone = pid in pids
if not gone:
    os.kill(pid, 9)
churned = []
for number in range(6):
    churned.append(ray.put(np.full(60 * MB, number, dtype=np.uint8)))
comes(lambda: spilled() >= 100 * MB, 60)
most = spilled()
total = int(ray.get(safe_refs.loads(payload), timeout=60).sum(dtype=np.int64))
del churned
gc.collect()
ended = safe_refs.release(payload)
comes(lambda: not spilled(), 30)
print(json.dumps({"became an actor's": gone, "most": most, "total": total, "ended": ended, "left": spilled(),
                  "store": store.wait_for_store(10, 20).used_bytes}), flush=True)
"""


@pytest.mark.long
def test_on_a_node_of_one_cpu_a_task_makes_100_mb_durable_and_the_store_spills() -> None:
    """The task has the only CPU, its worker is killed, the store churns: still readable, and after release the disk is empty."""
    short = tempfile.mkdtemp(prefix="one-", dir="/tmp")  # Ray's sockets need a short path
    try:
        done = run_python(ONE_CPU, short, timeout=240)
    finally:
        shutil.rmtree(short, ignore_errors=True)
    assert done["total"] == 500 * 2**20, json.dumps(done)
    assert done["most"] >= 100 * 2**20, "the store had to spill"
    assert (done["ended"], done["left"]) == (1, 0)
