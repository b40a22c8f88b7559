"""A process that is a Ray Client (`ray://`) uses safe_refs as any other: payloads go in and out."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import SafeRef, envelope
from tests.support.actors import Counter, Reader
from tests.support.clients import NAMESPACE, Client, end, said, start
from tests.support.cluster import as_actor
from tests.support.processes import dies, goes_on


def test_the_whole_of_it_works_in_a_client(client: Client, cluster: str) -> None:
    """What a client makes a client loads: references once each, handles, many at once, without waiting, in asyncio; and all ends."""
    assert cluster
    seen = client(
        """
        ref = ray.put({"n": 1})
        payload = safe_refs.dumps([ref, {"again": ref}], ttl=60, label="of a client")
        first, other = safe_refs.loads(payload)
        seen = {
            "kinds": safe_refs.inspect(payload).kinds,
            "one": first is other["again"] and type(first) is ClientObjectRef and first == ref,
            "value": ray.get(first),
            "plain pickle": ray.get(pickle.loads(payload)[0]),
        }
        info, = safe_refs.leases()
        seen["row"] = [info.label, info.references, info.depends_on, info.size_bytes > 0, info.pid == os.getpid(), info.source]
        seen["job"] = info.job == ray.get_runtime_context().get_job_id()
        safe_refs.renew(payload, 90)
        seen["left"] = safe_refs.expires_in_s(payload)
        handle = safe_refs.pin(ref)
        again = SafeRef.parse(str(handle))
        seen["handle"] = [again.get(), again.resolve() == ref, again.kind]

        async def awaited():
            made = await aio.dumps(ref)
            loaded = await aio.loads(made)
            return [await again, await loaded, await aio.release([made, again])]

        seen["awaited"] = asyncio.run(awaited())
        seen["live"] = safe_refs.stats().live_leases
        seen["released"] = [safe_refs.release(payload), safe_refs.release(payload)]

        refs = [ray.put(n) for n in range(700)]
        large = safe_refs.dumps(refs)
        seen["large"] = ray.get(safe_refs.loads(large, take=True)[699])
        payloads = safe_refs.dumps_many([[ref] for ref in refs[:20]])
        seen["many"] = [len(safe_refs.loads_many(payloads)), safe_refs.release(payloads)]
        soon = safe_refs.dumps(ref, wait=False, uses=1)
        safe_refs.flush()
        seen["soon"] = ray.get(safe_refs.loads(soon))
        with safe_refs.scope():
            scoped = safe_refs.dumps(ref)
        seen["scoped"] = error_of(safe_refs.loads, scoped)
        actor = ray.remote(num_cpus=0)(type("Mortal", (), {})).remote()
        seen["mortal"] = error_of(lambda: safe_refs.dumps([ref, actor], durable=True))
        comes(lambda: safe_refs.stats().live_leases == 0)  # a dumps that failed is cleared up in the background
        seen["left over"] = safe_refs.stats().live_leases
        print(json.dumps(seen))
        """
    )
    assert seen.pop("left") == pytest.approx(90, abs=20)
    source = seen["row"].pop()
    assert "in <module> (Ray Client on " in source
    assert seen == {
        "kinds": "o",
        "one": True,
        "value": {"n": 1},
        "plain pickle": {"n": 1},
        "row": ["of a client", 1, None, True, True],
        "job": True,
        "handle": [{"n": 1}, True, "o"],
        "awaited": [{"n": 1}, {"n": 1}, 2],
        "live": 1,
        "released": [1, 0],
        "large": 699,
        "many": [20, 20],
        "soon": {"n": 1},
        "scoped": "LeaseReleasedError",
        "mortal": "UnsupportedReferenceError",
        "left over": 0,
    }


@pytest.mark.long
def test_from_the_cluster_into_a_client(client: Client, owner: Any) -> None:
    """A payload that was made in the cluster opens in a client, to a client's kinds of references; also many, and a handle's text."""
    actor = as_actor(Counter).remote()
    pid = ray.get(actor.pid.remote(), timeout=60)
    payload = safe_refs.dumps({"ref": ray.put("from the cluster"), "actor": actor})
    refs = [ray.put(n) for n in range(650)]
    large = safe_refs.dumps(refs)
    handle = safe_refs.pin(ray.put("by its text"))
    gone = safe_refs.dumps(ray.put("released"))
    safe_refs.release(gone)
    used = safe_refs.dumps(ray.put("used up"), uses=1)
    safe_refs.loads(used)
    owned = ray.get(owner.pinned.remote("an actor's"), timeout=60)
    del actor, refs
    gc.collect()
    seen = client(
        """
        payload, large, text, gone, used, owned = args
        loaded = safe_refs.loads(bytes.fromhex(payload))
        many = safe_refs.loads(bytes.fromhex(large), take=True)
        print(json.dumps({
            "types": [type(loaded["ref"]) is ClientObjectRef, type(loaded["actor"]) is ClientActorHandle],
            "values": [ray.get(loaded["ref"]), ray.get(loaded["actor"].add.remote()), ray.get(loaded["actor"].pid.remote())],
            "many": [len(many), ray.get(many[649])],
            "text": SafeRef.parse(text).get(),
            "owned": ray.get(safe_refs.loads(bytes.fromhex(owned))),
            "gone": [error_of(safe_refs.loads, bytes.fromhex(each)) for each in (gone, used)],
            "released": safe_refs.release([bytes.fromhex(payload), text, bytes.fromhex(owned)]),
        }))
        """,
        *(payload.hex(), large.hex(), str(handle), gone.hex(), used.hex(), owned.hex()),
    )
    assert seen == {
        "types": [True, True],
        "values": ["from the cluster", 1, pid],
        "many": [650, 649],
        "text": "by its text",
        "owned": "an actor's",
        "gone": ["LeaseReleasedError", "LeaseUsedUpError"],
        "released": 3,
    }
    assert dies(pid)


@pytest.mark.long
def test_a_client_carries_no_handle_that_keeps_nothing_alive(client: Client, cluster: str) -> None:
    """A client can't see what `ray.get_actor` gave it. The registry sees it, and refuses, unless the actor is detached."""
    kept = as_actor(Reader).options(name="kept", namespace=NAMESPACE).remote()
    detached = as_actor(Reader).options(name="detached", namespace=NAMESPACE, lifetime="detached").remote()
    ray.get([kept.pid.remote(), detached.pid.remote()], timeout=60)
    seen = client(
        """
        said = []
        for name in ("kept", "detached"):
            try:
                said.append(safe_refs.release(safe_refs.dumps([ray.get_actor(name, namespace=sys.argv[-1])], wait=True)))
            except safe_refs.UnsupportedReferenceError as error:
                said.append("refused" if "Reader" in str(error) else str(error))
        print(json.dumps(said))
        """,
        NAMESPACE,
    )
    assert seen == ["refused", 1]
    ray.kill(detached)


@pytest.mark.long
def test_from_a_client_into_the_cluster(port: int, cluster: str) -> None:
    """A payload that a client made opens in the cluster, to the real things, and in another client, while the client is there."""
    assert cluster
    program = start(
        port,
        """
        class Counter:
            def __init__(self):
                self.count = 0
            def add(self):
                self.count += 1
                return self.count
            def pid(self):
                return os.getpid()
        actor = ray.remote(num_cpus=0)(Counter).remote()
        payload = safe_refs.dumps({"ref": ray.put("from a client"), "actor": actor, "again": actor})
        large = safe_refs.dumps([ray.put(n) for n in range(650)])
        handle = safe_refs.pin(ray.put("by its text"))
        del actor
        gc.collect()
        print(json.dumps([payload.hex(), large.hex(), str(handle), safe_refs.inspect(payload).kinds]), flush=True)
        sys.stdin.readline()
        """,
    )
    try:
        payload, large, text, kinds = said(program)
        assert kinds == "oa"
        loaded = safe_refs.loads(bytes.fromhex(payload))
        assert (type(loaded["ref"]), type(loaded["actor"])) == (ray.ObjectRef, ray.actor.ActorHandle)
        assert loaded["actor"] is loaded["again"]
        assert ray.get(loaded["ref"], timeout=20) == "from a client"
        assert ray.get(loaded["actor"].add.remote(), timeout=60) == 1
        pid = ray.get(loaded["actor"].pid.remote(), timeout=60)
        assert ray.get(safe_refs.loads(bytes.fromhex(large), take=True), timeout=20) == list(range(650))
        assert SafeRef.parse(text).get(20) == "by its text"
        assert all(info.depends_on is None for info in safe_refs.leases(sizes=False))
        loaded.clear()
        gc.collect()
        assert goes_on(pid)
        assert safe_refs.release([bytes.fromhex(payload), text]) == 2
        assert dies(pid)
    finally:
        end(program)


@pytest.mark.long
def test_a_client_hears_what_others_hear(client: Client, cluster: str) -> None:
    """Each end has its name in a client, too; a registry of its own may have replicas; who isn't connected is told at once."""
    assert cluster
    payload = safe_refs.dumps(ray.put("x"))
    found = envelope.find(payload)
    address = found.header.address._replace(cluster=b"another".ljust(28))
    elsewhere = envelope.wrap(found.header._replace(address=address), [found.inner])
    seen = client(
        """
        elsewhere, = args
        ref = ray.put("x")
        seen = {"elsewhere": error_of(safe_refs.loads, bytes.fromhex(elsewhere))}
        short = safe_refs.dumps(ref, ttl=0.2)
        comes(lambda: error_of(safe_refs.loads, short) is not None)
        seen["expired"] = error_of(safe_refs.loads, short)
        figures = safe_refs.init("clients", shards=2, replicas=2)
        seen["registry"] = [figures.shards, figures.replicas]
        payload = safe_refs.dumps([ref], uses=1)
        seen["loaded"] = [ray.get(safe_refs.loads(payload)[0]), error_of(safe_refs.loads, payload)]
        payload = safe_refs.dumps([ref])
        seen["ended"] = [safe_refs.shutdown(), error_of(safe_refs.loads, payload)]
        safe_refs.init("clients", max_leases=1)
        kept = safe_refs.dumps(ref)
        seen["full"] = [error_of(safe_refs.dumps, ref), safe_refs.release(kept)]
        payload = safe_refs.dumps(ref)
        safe_refs.shutdown()
        ray.shutdown()
        begun = time.monotonic()
        seen["disconnected"] = [error_of(call, payload) for call in (safe_refs.loads, safe_refs.release)]
        seen["disconnected"] += [error_of(safe_refs.stats), error_of(safe_refs.dumps, ref), time.monotonic() - begun < 1]
        print(json.dumps(seen))
        """,
        elsewhere.hex(),
    )
    assert seen == {
        "elsewhere": "WrongClusterError",
        "expired": "LeaseExpiredError",
        "registry": [2, 2],
        "loaded": ["x", "LeaseUsedUpError"],
        "ended": [1, "LeaseLostError"],
        "full": ["RegistryFullError", 1],
        "disconnected": ["RegistryUnavailableError"] * 4 + [True],
    }
    assert safe_refs.release(payload) == 1
    seen = client(
        """
        ray.shutdown()
        ray.init("ray://127.0.0.1:" + port, logging_level="error", log_to_driver=False)  # another job
        payload = safe_refs.dumps(ray.put("x"))
        print(json.dumps([ray.get(safe_refs.loads(payload, take=True)), safe_refs.stats().live_leases]))
        """
    )
    assert seen == ["x", 0]


@pytest.mark.long
def test_threads_of_a_client_share_its_connection(client: Client, cluster: str) -> None:
    """Many threads dump, load and release at once.

    Each keeps its reference meanwhile: Ray's server of a client may let go of what the client drops and gets anew in the same moment.
    """
    assert cluster
    seen = client(
        """
        from concurrent.futures import ThreadPoolExecutor

        shared_ref = ray.put("shared")
        shared = safe_refs.dumps(shared_ref)

        def round(n):
            ref = ray.put(n)
            payload = safe_refs.dumps([ref])
            value = ray.get(safe_refs.loads(payload)[0])
            other = ray.get(safe_refs.loads(shared))
            return value == n and other == "shared" and safe_refs.release(payload) == 1

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(round, range(200)))
        safe_refs.release(shared)
        print(json.dumps([all(done), len(done), safe_refs.stats().live_leases]))
        """
    )
    assert seen == [True, 200, 0]


def test_safe_refs_brings_no_client_along() -> None:
    """`import safe_refs` imports neither Ray nor Ray Client."""
    code = "import sys, safe_refs; sys.exit(any(name.split('.')[0] in ('ray', 'grpc') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
