"""A process that is a Ray Client (`ray://`) uses safe_refs as any other: payloads go in and out, and what it leaves ends in order.

The server of clients runs beside the session's Ray, on loopback; each client is a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseExpiredError, LeaseLostError, OwnerGoneError, SafeRef, envelope
from tests.conftest import as_actor
from tests.test_actors import Counter, dies, lives, stays, wait_until

NAMESPACE = "safe_refs-tests"
# Seconds for which the server waits for a client that is gone without a word; 30 unless told otherwise. The client tells it.
GRACE_S = 2
LONG_GRACE_S = 120  # for clients that end in order, whose servers don't wait
STARTS_S = 60.0
NOTICED_S = 30.0

Client = Callable[..., Any]

PRELUDE = """
import asyncio, gc, json, os, pickle, sys, time
import ray
import safe_refs
from safe_refs import SafeRef, aio
port, *args = sys.argv[1:]
for _ in range(5):
    try:
        ray.init("ray://127.0.0.1:" + port, logging_level="error", log_to_driver=False)
        break
    except ConnectionError:  # now and then Ray's server for a client fails to start
        time.sleep(1)
from ray.util.client.common import ClientActorHandle, ClientObjectRef

def error_of(call, *args):
    try:
        call(*args)
    except safe_refs.SafeRefsError as error:
        return type(error).__name__
    return None
"""


class Owner:
    """Owns what it makes, and keeps none of it."""

    def give(self, value: Any) -> list[Any]:
        return [ray.put(value)]

    def pinned(self, value: Any) -> bytes:
        return safe_refs.dumps(ray.put(value))

    def counter(self) -> list[Any]:
        return [as_actor(Counter).remote()]


@pytest.fixture(scope="module")
def server(ray_cluster: str) -> Iterator[tuple[int, int]]:
    """What starts a server for each Ray Client of the session's Ray, as in `ray start --ray-client-server-port`; its port and pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.util.client.server", "--mode", "proxy", "--host", "127.0.0.1"]
    # No client here has a runtime environment, so that no agent for these is needed.
    command += ["--port", str(number), "--address", ray_cluster, "--runtime-env-agent-address="]
    # It forks while its own threads use gRPC, which now and then ends the child: its client waits 40 s in vain, and has to connect
    # again. Without gRPC's hand in it that has not been seen.
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        assert wait_until(lambda: server.poll() is not None or answers(number), STARTS_S)
        assert server.poll() is None
        yield number, server.pid
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def port(server: tuple[int, int]) -> int:
    """Where clients connect."""
    return server[0]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and so on."""
    theirs = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return theirs + [each for child in theirs for each in descendants(child)]


def start(port: int, code: str, *args: str, grace_s: int = GRACE_S) -> subprocess.Popen[str]:
    """Begin a client's program."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(port), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": str(grace_s)},
    )


@pytest.fixture
def client(port: int) -> Client:
    """Run code as a client, to its end, and return what it prints as JSON."""

    def run(code: str, *args: str, timeout: float = 120) -> Any:
        program = start(port, code, *args)
        try:
            out, err = program.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            program.kill()
            raise
        assert program.returncode == 0, f"the client failed:\n{out}\n{err}"
        lines = out.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    return run


@pytest.fixture
def owner(cluster: str) -> Iterator[Any]:
    """An actor of the cluster that outlives every client, and that clients find by the name `owner`."""
    assert cluster
    actor = as_actor(Owner).options(name="owner", namespace=NAMESPACE, lifetime="detached").remote()
    yield actor
    ray.kill(actor)


def error_of(payload: bytes) -> type[Exception] | None:
    try:
        safe_refs.loads(payload)
    except safe_refs.LeaseError as error:
        return type(error)
    return None


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
        seen["row"] = [info.label, info.references, info.hangs_on, info.size_bytes > 0, info.pid == os.getpid(), info.source]
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
        until = time.monotonic() + 20  # what a failed dumps may have left on its way is cleared up in the background
        while (left := safe_refs.stats().live_leases) and time.monotonic() < until:
            time.sleep(0.02)
        seen["left over"] = left
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
        payload, large, text, kinds = told(program)
        assert kinds == "oa"
        loaded = safe_refs.loads(bytes.fromhex(payload))
        assert (type(loaded["ref"]), type(loaded["actor"])) == (ray.ObjectRef, ray.actor.ActorHandle)
        assert loaded["actor"] is loaded["again"]
        assert ray.get(loaded["ref"], timeout=20) == "from a client"
        assert ray.get(loaded["actor"].add.remote(), timeout=60) == 1
        pid = ray.get(loaded["actor"].pid.remote(), timeout=60)
        assert ray.get(safe_refs.loads(bytes.fromhex(large), take=True), timeout=20) == list(range(650))
        assert SafeRef.parse(text).get(20) == "by its text"
        assert all(info.hangs_on is None for info in safe_refs.leases(sizes=False))
        loaded.clear()
        gc.collect()
        assert stays(pid)
        assert safe_refs.release([bytes.fromhex(payload), text]) == 2
        assert dies(pid)
    finally:
        end(program)


def told(program: subprocess.Popen[str], timeout_s: float = 90) -> Any:
    """The line that a client's program has printed."""
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], timeout_s)
    line = program.stdout.readline() if ready else ""
    if not line:
        program.kill()
        raise AssertionError(f"the client told nothing:\n{program.communicate()[1]}")
    return json.loads(line)


def end(program: subprocess.Popen[str]) -> None:
    """Let a client's program come to its end, or kill it."""
    try:
        program.communicate("\n", timeout=60)
    except subprocess.TimeoutExpired:
        program.kill()
        program.communicate()
        raise


MAKES_AND_LEAVES = """
class Counter:
    def pid(self):
        return os.getpid()

owner = ray.get_actor("owner", namespace=args[0])
own = safe_refs.dumps(ray.put("a client's own"), label="own")
own_actor = safe_refs.dumps(ray.remote(num_cpus=0)(Counter).remote(), label="own actor")
kept = safe_refs.dumps({"ref": ray.put(["a client's", ray.put("inside")])}, durable=True, label="kept")
# Kept to the end: the owners are to learn of the registry from the server that lets go of them.
theirs = ray.get([owner.give.remote("for a while"), owner.give.remote("for good"), owner.counter.remote()])
short = safe_refs.dumps(theirs[0], ttl=float(args[1]), label="short")
long = safe_refs.dumps(theirs[1], label="long")
actor = safe_refs.dumps(theirs[2], label="actor")
rows = {row.label: row.hangs_on is not None for row in safe_refs.leases(sizes=False) if row.label}
print(json.dumps([own.hex(), own_actor.hex(), kept.hex(), short.hex(), long.hex(), actor.hex(), rows]), flush=True)
sys.stdin.readline()
"""
ENDS = {"shutdown": "ray.shutdown()\n", "script": "", "killed": ""}
TTL_S = 15.0


@pytest.mark.long
@pytest.mark.parametrize("end_of_it", list(ENDS))
@pytest.mark.ray_marks(32)
def test_a_client_that_disconnects_ends_what_it_owned_and_nothing_else(end_of_it: str, port: int, owner: Any) -> None:
    """Its own objects end with its server (`OwnerGoneError`), unless it made them durable; others' end on their leases' terms.

    The server of a client that ends in order ends at once; that of one that is killed waits for it to come back first, for as long as
    the client said when it connected (`RAY_CLIENT_RECONNECT_GRACE_PERIOD`, 30 s by default; 2 s here). Either way it lets go in
    order, so that the owners learn of the registry.
    """
    others = [safe_refs.dumps(ray.put("a driver's")), ray.get(owner.pinned.remote("an actor's"), timeout=60)]
    killed = end_of_it == "killed"
    grace_s = GRACE_S if killed else LONG_GRACE_S
    program = start(port, MAKES_AND_LEAVES + ENDS[end_of_it], NAMESPACE, str(TTL_S), grace_s=grace_s)
    try:
        *made, rows = told(program)
    except BaseException:
        program.kill()
        raise
    own, own_actor, kept, short, long, actor = (bytes.fromhex(each) for each in made)
    assert rows == {"own": False, "own actor": False, "kept": False, "short": True, "long": True, "actor": True}
    left_at = time.monotonic()
    if killed:
        program.kill()
        program.communicate()
    else:
        end(program)

    assert wait_until(lambda: error_of(own) is OwnerGoneError, NOTICED_S)
    noticed_s = time.monotonic() - left_at
    assert noticed_s > GRACE_S or not killed
    assert wait_until(lambda: error_of(own_actor) is OwnerGoneError, NOTICED_S)

    assert ray.get(safe_refs.loads(short)[0], timeout=20) == "for a while"
    left_s = safe_refs.expires_in_s(short)
    assert left_s is not None
    expires_at = time.monotonic() + left_s
    assert ray.get(safe_refs.loads(long)[0], timeout=20) == "for good"
    pid = ray.get(safe_refs.loads(actor)[0].pid.remote(), timeout=60)
    assert [ray.get(safe_refs.loads(each), timeout=20) for each in others] == ["a driver's", "an actor's"]
    outer, inner = ray.get(safe_refs.loads(kept)["ref"], timeout=20)
    assert (outer, ray.get(inner, timeout=20)) == ("a client's", "inside")
    del inner
    assert wait_until(lambda: all(info.hangs_on is None for info in safe_refs.leases(sizes=False)), NOTICED_S)
    assert wait_until(lambda: error_of(short) is LeaseExpiredError, left_s + 2)
    assert time.monotonic() > expires_at - 0.5
    assert ray.get(safe_refs.loads(long)[0], timeout=20) == "for good"
    assert lives(pid)
    assert safe_refs.release([kept, long, actor, *others]) == 5
    assert dies(pid)
    figures = safe_refs.stats()
    assert figures is not None
    assert (figures.live_leases, figures.lost) == (0, 0)


@pytest.mark.long
@pytest.mark.ray_marks(32)
def test_a_client_whose_server_is_killed_hears_so_and_its_leases_say_why(server: tuple[int, int], owner: Any) -> None:
    """A server that is killed can't let go in order: leases of others' objects that hang on it are lost. The client is told in time.

    Also while Ray tries to connect it again, for which its own calls wait (30 s unless told otherwise), whatever timeout they have.
    """
    port, pid = server
    before = set(descendants(pid))
    program = start(
        port,
        """
        owner = ray.get_actor("owner", namespace=args[0])
        own = safe_refs.dumps(ray.put("a client's own"))
        theirs = ray.get(owner.give.remote("an actor's"))  # kept: who lets go of it tells the owner of the registry
        hanging = safe_refs.dumps(theirs)
        print(json.dumps([own.hex(), hanging.hex()]), flush=True)
        sys.stdin.readline()
        seen = []
        calls = [
            lambda: safe_refs.loads(own, timeout=2),
            lambda: safe_refs.release(own, timeout=2),
            lambda: safe_refs.stats(timeout=2),
            lambda: safe_refs.leases(timeout=2),
        ]
        for call in calls:
            begun = time.monotonic()
            seen += [error_of(call), time.monotonic() - begun]
        print(json.dumps(seen), flush=True)
        os._exit(0)  # Ray's own end of a client waits for the server
        """,
        NAMESPACE,
        grace_s=LONG_GRACE_S,
    )
    own, hanging = (bytes.fromhex(each) for each in told(program))
    assert program.stdin is not None
    for each in set(descendants(pid)) - before:
        os.kill(each, signal.SIGKILL)
    out, err = program.communicate("\n", timeout=90)
    assert program.returncode == 0, err
    errors, times = json.loads(out)[::2], json.loads(out)[1::2]
    assert errors == ["RegistryUnavailableError"] * 4
    assert max(times) < 2 + 5, times

    assert wait_until(lambda: error_of(own) is OwnerGoneError, NOTICED_S)
    assert wait_until(lambda: error_of(hanging) is LeaseLostError, NOTICED_S)
    with pytest.raises(LeaseLostError, match="it hung on the process of worker"):
        safe_refs.loads(hanging)


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
        time.sleep(0.5)
        seen["expired"] = error_of(safe_refs.loads, short)
        figures = safe_refs.init("a client's", shards=2, replicas=2)
        seen["registry"] = [figures.shards, figures.replicas]
        payload = safe_refs.dumps([ref], uses=1)
        seen["loaded"] = [ray.get(safe_refs.loads(payload)[0]), error_of(safe_refs.loads, payload)]
        payload = safe_refs.dumps([ref])
        seen["ended"] = [safe_refs.shutdown(), error_of(safe_refs.loads, payload)]
        safe_refs.init("a client's", max_leases=1)
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
