"""What becomes of a client's leases when it disconnects, or it or its server is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import LeaseExpiredError, LeaseLostError, OwnerGoneError
from tests.support.clients import GRACE_S, LONG_GRACE_S, NAMESPACE, descendants, end, said, start
from tests.support.processes import dies, lives
from tests.support.shards import stopped
from tests.support.stalls import LITTLE_S, TIMEOUT_S, stalled
from tests.support.values import error_of
from tests.support.waiting import wait_until

NOTICED_S = 30.0
SERVER_S = 3.0  # that the first call may take longer: the client has to learn who its server is


MAKES_AND_LEAVES = """
class Counter:
    def pid(self):
        return os.getpid()

owner = ray.get_actor("owner", namespace=args[0])
own = safe_refs.dumps(ray.put("a client's own"), label="own")
own_actor = safe_refs.dumps(ray.remote(num_cpus=0)(Counter).remote(), label="own actor")
kept = safe_refs.dumps({"ref": ray.put(["a client's", ray.put("inside")])}, durable=True, label="kept")
# Kept to the end: the owners are to learn of the registry from the server that lets go of them.
theirs = ray.get([owner.give.remote("for a while"), owner.give.remote("for good"), owner.give_counter.remote()])
short = safe_refs.dumps(theirs[0], ttl=float(args[1]), label="short")
long = safe_refs.dumps(theirs[1], label="long")
actor = safe_refs.dumps(theirs[2], label="actor")
rows = {row.label: row.depends_on is not None for row in safe_refs.leases(sizes=False) if row.label}
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
    before = safe_refs.stats()
    assert before is not None
    killed = end_of_it == "killed"
    grace_s = GRACE_S if killed else LONG_GRACE_S
    program = start(port, MAKES_AND_LEAVES + ENDS[end_of_it], NAMESPACE, str(TTL_S), grace_s=grace_s)
    try:
        *made, rows = said(program)
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

    wait_until(lambda: error_of(own) is OwnerGoneError, NOTICED_S)
    noticed_s = time.monotonic() - left_at
    assert noticed_s > GRACE_S or not killed
    wait_until(lambda: error_of(own_actor) is OwnerGoneError, NOTICED_S)

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
    wait_until(lambda: all(info.depends_on is None for info in safe_refs.leases(sizes=False)), NOTICED_S)
    wait_until(lambda: error_of(short) is LeaseExpiredError, left_s + 2)
    assert time.monotonic() > expires_at - 0.5
    assert ray.get(safe_refs.loads(long)[0], timeout=20) == "for good"
    assert lives(pid)
    assert safe_refs.release([kept, long, actor, *others]) == 5
    assert dies(pid)
    figures = safe_refs.stats()
    assert figures is not None
    assert (figures.live_leases, figures.lost - before.lost) == (0, 0)  # an earlier test's are not forgotten


@pytest.mark.long
@pytest.mark.parametrize("how", ["ray.shutdown", "ray.util.disconnect"])
def test_a_client_that_disconnects_flushes_first(how: str, port: int, owner: Any) -> None:
    """It pins others' objects without waiting, while the registry doesn't answer, and disconnects: the registry holds them."""
    safe_refs.init()
    program = start(
        port,
        """
        import ray.util
        safe_refs.release(safe_refs.dumps(ray.put(0)))  # it knows the registry
        ref = ray.get(ray.get_actor("owner", namespace=args[0]).give.remote(7))[0]
        print(json.dumps("ready"), flush=True)
        sys.stdin.readline()
        payload = safe_refs.dumps(ref, wait=False)
        print(json.dumps(payload.hex()), flush=True)
        """
        + how
        + "()\n        print(json.dumps(ray.is_initialized()), flush=True)",
        NAMESPACE,
        grace_s=LONG_GRACE_S,
    )
    try:
        assert said(program) == "ready"
        with stopped("default", 0):
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
            payload = bytes.fromhex(said(program))
            time.sleep(1)
        assert said(program) is False
        assert ray.get(safe_refs.loads(payload), timeout=20) == 7
    finally:
        end(program)
    wait_until(lambda: all(info.depends_on is None for info in safe_refs.leases(sizes=False)), NOTICED_S)
    assert ray.get(safe_refs.loads(payload), timeout=20) == 7
    safe_refs.release(payload)


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
    own, hanging = (bytes.fromhex(each) for each in said(program))
    assert program.stdin is not None
    for each in set(descendants(pid)) - before:
        os.kill(each, signal.SIGKILL)
    out, err = program.communicate("\n", timeout=90)
    assert program.returncode == 0, err
    errors, times = json.loads(out)[::2], json.loads(out)[1::2]
    assert errors == ["RegistryUnavailableError"] * 4
    assert max(times) < 2 + 5, times

    wait_until(lambda: error_of(own) is OwnerGoneError, NOTICED_S)
    wait_until(lambda: error_of(hanging) is LeaseLostError, NOTICED_S)
    with pytest.raises(LeaseLostError, match="it depended on the Ray Client server of job"):
        safe_refs.loads(hanging)


@pytest.mark.long
def test_a_client_ends_in_time_while_the_control_service_is_silent(
    port: int, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server waits for Ray's control service, and the client no longer than its timeout; later, the same calls work."""
    assert cluster
    payload = safe_refs.dumps(ray.put("v"), ttl=600)
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", "2")
    program = start(
        port,
        """
        ref = ray.put(1)
        print(json.dumps("connected"), flush=True)
        payload = bytes.fromhex(sys.stdin.readline())
        def tried(call):
            begun, said = time.monotonic(), "ok"
            try:
                call()
            except safe_refs.RegistryUnavailableError:
                said = "unavailable"
            return [said, time.monotonic() - begun]
        calls = [lambda: safe_refs.loads(payload), lambda: safe_refs.dumps(ref, ttl=60, wait=True), safe_refs.stats]
        print(json.dumps([tried(call) for call in calls]), flush=True)
        sys.stdin.readline()
        print(json.dumps([tried(call) for call in calls]), flush=True)
        """,
    )
    try:
        assert said(program) == "connected"
        with stalled():
            assert program.stdin is not None
            program.stdin.write(payload.hex() + "\n")
            program.stdin.flush()
            meanwhile = said(program)
        program.stdin.write("\n")
        program.stdin.flush()
        later = said(program)
    finally:
        end(program)
    assert [took_s for _, took_s in meanwhile if took_s > TIMEOUT_S + SERVER_S + LITTLE_S] == []
    assert [outcome for outcome, _ in later] == ["ok"] * 3
    safe_refs.shutdown(force=True)  # the client's leases end a little after its server
