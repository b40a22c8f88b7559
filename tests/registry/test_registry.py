"""The registry actor: found by all, started once, restarted empty, and never a hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import ray

import safe_refs
from safe_refs import _settings, assembly
from safe_refs._ray import cluster
from safe_refs.registry.records import Terms
from safe_refs.registry.requests import Plan
from tests.support.actors import Reader
from tests.support.cluster import as_actor
from tests.support.processes import PRELUDE, Driver, run_python
from tests.support.shards import actor, place
from tests.support.values import MB, error_of
from tests.support.waiting import wait_until


@pytest.mark.long
def test_processes_that_race_to_start_it_get_the_same_registry(registry: str, ray_cluster: str) -> None:
    """Drivers of several jobs whose first `dumps` come at once all end up with one registry, which is in its first generation."""
    code = PRELUDE + (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "info = safe_refs.inspect(safe_refs.dumps(ray.put(1), ttl=60))\n"
        "print(json.dumps([info.generation, info.handles[0].address.epoch.hex()]), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, ray_cluster], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        seen = [json.loads(racer.stdout.readline()) for racer in racers if racer.stdout is not None]
        figures = safe_refs.stats()
    finally:
        for racer in racers:
            racer.communicate("\n", timeout=30)
    assert len({epoch for _, epoch in seen}) == 1
    assert {generation for generation, _ in seen} == {1}
    assert figures is not None
    assert figures.live_leases == 3


def test_the_registry_is_detached_named_weightless_and_on_the_head_node(registry: str, driver: Driver) -> None:
    """It outlives the driver that started it, costs no CPU, and is found under its name by the next one."""
    started = driver(
        f"""
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "{registry}"
        free = ray.available_resources().get("CPU")
        print(json.dumps([safe_refs.init().generation, ray.available_resources().get("CPU") == free]))
        """
    )
    assert started == [1, True]
    figures = safe_refs.stats()
    assert figures is not None
    assert figures.generation == 1
    assert place(registry, 0)[0] == cluster.nodes()[0]


def test_it_is_found_from_tasks_and_actors(registry: str) -> None:
    """Payloads made in a task open in an actor and the other way round; the task's pin is a lease of the same registry."""

    @ray.remote(num_cpus=0)
    def make() -> bytes:
        return safe_refs.dumps(ray.put("made in a task"))

    set_registry = {"env_vars": {"SAFE_REFS_REGISTRY": registry}}
    payload = ray.get(make.options(runtime_env=set_registry).remote(), timeout=60)
    reader = as_actor(Reader).remote()
    ray.get(reader.load.remote([payload]), timeout=60)
    assert ray.get(reader.get.remote(), timeout=60) == "made in a task"
    assert safe_refs.inspect(payload).registry == registry
    assert safe_refs.release(payload) == 1


def test_a_crash_is_reported_as_lost_and_the_next_generation_goes_on(registry: str) -> None:
    """SIGKILL: old payloads fail as lost; the next `dumps` starts it anew, and from then on old ones name both generations."""
    old = safe_refs.dumps(ray.put(b"o" * MB))
    os.kill(place(registry, 0)[1], signal.SIGKILL)
    with pytest.raises(safe_refs.LeaseLostError, match="generation 1"):
        safe_refs.loads(old)
    new = safe_refs.dumps(ray.put("new"))
    assert safe_refs.inspect(new).generation == 2
    with pytest.raises(safe_refs.LeaseLostError, match="generation 1") as caught:
        safe_refs.loads(old)
    assert (caught.value.generation, caught.value.current_generation) == (1, 2)
    assert ray.get(safe_refs.loads(new), timeout=20) == "new"
    assert safe_refs.release([old, new]) == 1


def test_a_pin_into_a_registry_that_restarted_unnoticed_names_the_new_generation(registry: str) -> None:
    """A process that last spoke to an earlier generation makes payloads that open."""
    safe_refs.release(safe_refs.dumps(ray.put(1)))
    os.kill(place(registry, 0)[1], signal.SIGKILL)
    payload = safe_refs.dumps({"r": ray.put(5), "filler": b"f" * 300_000})
    assert safe_refs.inspect(payload).generation == 2
    loaded = safe_refs.loads(payload)
    assert (ray.get(loaded["r"], timeout=20), len(loaded["filler"])) == (5, 300_000)
    safe_refs.release(payload)


def test_a_killed_registry_is_started_anew_and_never_serves_old_leases(registry: str) -> None:
    """`ray.kill`: loading fails as lost at once while none runs, and after the next `dumps` has started another."""
    old = safe_refs.dumps(ray.put("old"))
    ray.kill(actor(registry, 0), no_restart=True)
    started = time.monotonic()
    wait_until(lambda: error_of(old) is safe_refs.LeaseLostError)  # Ray kills in its own time
    with pytest.raises(safe_refs.LeaseLostError):
        safe_refs.renew(old, 5)
    assert safe_refs.release(old) == 0
    assert time.monotonic() - started < 10
    new = safe_refs.dumps(ray.put("new"))
    assert safe_refs.inspect(new).generation == 2
    with pytest.raises(safe_refs.LeaseLostError) as caught:
        safe_refs.loads(old)
    assert caught.value.current_generation == 2
    assert ray.get(safe_refs.loads(new), timeout=20) == "new"
    safe_refs.release(new)


def test_a_registry_that_does_not_answer_is_an_error_in_time_and_nothing_stays(registry: str) -> None:
    """Stopped: every call raises `RegistryUnavailableError` within its timeout; a `dumps` that failed holds nothing afterwards."""
    payload = safe_refs.dumps(ray.put("before"))
    number = place(registry, 0)[1]
    os.kill(number, signal.SIGSTOP)
    try:
        for call in (
            lambda: safe_refs.loads(payload, timeout=0.5),
            lambda: safe_refs.release(payload, timeout=0.5),
            lambda: safe_refs.leases(timeout=0.5),
        ):
            started = time.monotonic()
            with pytest.raises(safe_refs.RegistryUnavailableError, match=r"did not answer within 0\.5 s"):
                call()
            assert time.monotonic() - started < 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAFE_REFS_TIMEOUT", "0.5")
            with pytest.raises(safe_refs.RegistryUnavailableError):
                safe_refs.dumps(ray.put(b"x" * MB), label="failed")
    finally:
        os.kill(number, signal.SIGCONT)
    wait_until(lambda: safe_refs.leases(label="failed") == [])
    # The release that seemed to fail was carried out in the end, too.
    wait_until(lambda: safe_refs.leases() == [])


def test_calls_can_be_repeated(registry: str) -> None:
    """Ray may repeat a call: pinning twice is one lease, and a pin after its release is refused and holds nothing."""
    lease, session = os.urandom(16), assembly.client()
    plan = Plan(lease, [ray.put(1)], Terms(), session.origin())
    for _ in range(2):
        session.sender.pin(registry, plan, _settings.deadline(20))
    assert len(safe_refs.leases()) == 1
    assert [safe_refs.release(lease.hex()) for _ in range(2)] == [1, 0]
    with pytest.raises(safe_refs.LeaseReleasedError):
        session.sender.pin(registry, plan, _settings.deadline(20))
    assert safe_refs.leases() == []


def test_registries_of_different_names_live_side_by_side(registry: str) -> None:
    """A payload names its registry, so that it opens and is released whatever the process is set to."""
    first = safe_refs.dumps(ray.put(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_REFS_REGISTRY", registry + "-b")
        second = safe_refs.dumps(ray.put(2))
        assert ray.get(safe_refs.loads(first), timeout=20) == 1
        assert len(safe_refs.leases()) == 1
        assert len(safe_refs.leases(registry=registry)) == 1
        assert safe_refs.release([first, second]) == 2
        assert safe_refs.shutdown() == 0


def test_without_a_ray_connection_it_says_so(registry: str) -> None:
    """A process that isn't connected can inspect and carry payloads; resolving says what is missing, and starts no Ray."""
    payload = safe_refs.dumps(ray.put(1))
    code = """
import sys, safe_refs
payload = bytes.fromhex(sys.argv[1])
assert len(safe_refs.inspect(payload).handles) == 1
safe_refs.loads(payload, resolve=False)
for import_ray in (False, True):
    if import_ray:
        import ray
    for call in (safe_refs.loads, safe_refs.release, lambda payload: safe_refs.leases()):
        try:
            call(payload)
        except safe_refs.RegistryUnavailableError as error:
            assert "ray.init" in str(error), error
        else:
            raise SystemExit("no error")
import ray
assert not ray.is_initialized()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, payload.hex()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "done\n", done.stderr
    safe_refs.release(payload)


@pytest.mark.long
def test_two_clusters_with_equal_object_ids_are_distinguished() -> None:
    """A payload of an earlier cluster is refused in the next one, where the same object id names another object."""
    start = """
import json, sys, ray, safe_refs
ray.init(address="local", num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
         logging_level="error",
         _node_ip_address="127.0.0.1")
"""
    first = """
old = ray.put("old")
print(json.dumps([old.hex(), safe_refs.dumps(old).hex()]))
ray.shutdown()
"""
    second = """
payload, out = bytes.fromhex(sys.argv[1]), {}
for name, call in (("loads", safe_refs.loads), ("release", safe_refs.release), ("renew", lambda p: safe_refs.renew(p, 5))):
    try:
        call(payload)
        out[name] = "no error"
    except safe_refs.WrongClusterError as error:
        out[name] = type(error).__name__
new = ray.put("new")
again = safe_refs.dumps(new)
out["id"] = new.hex()
out["value"] = ray.get(safe_refs.loads(again))
out["generation"] = safe_refs.inspect(again).generation
out["released"] = safe_refs.release(again)
ray.shutdown()
print(json.dumps(out))
"""
    old_id, payload = run_python(start + first)
    assert run_python(start + second, payload) == {
        **dict.fromkeys(("loads", "release", "renew"), "WrongClusterError"),
        "id": old_id,
        "value": "new",
        "generation": 1,
        "released": 1,
    }
