"""The registry actor: found by all, started once, restarted empty, and never a hang."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import _ray, config
from safe_refs.registry import outbox, site
from safe_refs.registry import shard as shards
from safe_refs.registry.pinning import Pin
from safe_refs.registry.records import Terms
from safe_refs.registry.topology import actor_name
from tests.conftest import PRELUDE, Driver, as_actor, check_nothing_left, is_empty, run_python

MB = 2**20


@pytest.fixture
def registry(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry of this test's own, so that it may be killed; gone afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", name)
    yield name
    safe_refs.shutdown()


def actor(registry: str) -> Any:
    return ray.get_actor(actor_name(registry), namespace=_ray.NAMESPACE)


def pid(registry: str) -> int:
    number: int = ray.get(actor(registry).__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    return number


def lost(payload: bytes) -> bool:
    try:
        safe_refs.loads(payload)
    except safe_refs.LeaseLostError:
        return True
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


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
    where = ray.get(
        actor(registry).__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()), timeout=30
    )
    assert where == _ray.nodes()[0]


def test_it_is_found_from_tasks_and_actors(registry: str) -> None:
    """Payloads made in a task open in an actor and the other way round; the task's pin is a lease of the same registry."""

    @ray.remote(num_cpus=0)
    def make() -> bytes:
        return safe_refs.dumps(ray.put("made in a task"))

    class Reader:
        def read(self, payload: bytes) -> Any:
            return ray.get(safe_refs.loads(payload), timeout=20)

    set_registry = {"env_vars": {"SAFE_REFS_REGISTRY": registry}}
    payload = ray.get(make.options(runtime_env=set_registry).remote(), timeout=60)
    reader = as_actor(Reader).remote()
    assert ray.get(reader.read.remote(payload), timeout=60) == "made in a task"
    assert safe_refs.inspect(payload).registry == registry
    assert safe_refs.release(payload) == 1


def test_a_crash_is_told_as_lost_and_the_next_generation_goes_on(registry: str) -> None:
    """SIGKILL: Ray restarts it empty; old payloads fail as lost, with both generations, and new ones work at once."""
    old = safe_refs.dumps(ray.put(b"o" * MB))
    os.kill(pid(registry), signal.SIGKILL)
    with pytest.raises(safe_refs.LeaseLostError, match="generation 1") as caught:
        safe_refs.loads(old)
    assert (caught.value.generation, caught.value.current_generation) == (1, 2)
    new = safe_refs.dumps(ray.put("new"))
    assert safe_refs.inspect(new).generation == 2
    assert ray.get(safe_refs.loads(new), timeout=20) == "new"
    assert safe_refs.release([old, new]) == 1


def test_a_pin_into_a_registry_that_restarted_unnoticed_names_the_new_generation(registry: str) -> None:
    """A process that last spoke to an earlier generation makes payloads that open."""
    safe_refs.release(safe_refs.dumps(ray.put(1)))
    os.kill(pid(registry), signal.SIGKILL)
    payload = safe_refs.dumps({"r": ray.put(5), "filler": b"f" * 300_000})
    assert safe_refs.inspect(payload).generation == 2
    loaded = safe_refs.loads(payload)
    assert (ray.get(loaded["r"], timeout=20), len(loaded["filler"])) == (5, 300_000)
    safe_refs.release(payload)


def test_a_killed_registry_is_started_anew_and_never_serves_old_leases(registry: str) -> None:
    """`ray.kill`: loading fails as lost at once while none runs, and after the next `dumps` has started another."""
    old = safe_refs.dumps(ray.put("old"))
    ray.kill(actor(registry), no_restart=True)
    started = time.monotonic()
    wait_until(lambda: lost(old))  # Ray kills in its own time
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
    number = pid(registry)
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
    lease, ref, maker = os.urandom(16), ray.put(1), site.origin()
    for _ in range(2):
        outbox.pin(registry, Pin(lease, [ref], Terms(), maker), 20, site.site())
    assert len(safe_refs.leases()) == 1
    assert [safe_refs.release(lease.hex()) for _ in range(2)] == [1, 0]
    with pytest.raises(safe_refs.LeaseReleasedError):
        outbox.pin(registry, Pin(lease, [ref], Terms(), maker), 20, site.site())
    assert safe_refs.leases() == []


def test_limits_refuse_with_the_figures_and_can_be_raised(registry: str) -> None:
    """Past `max_leases` or `max_references` a `dumps` fails before anything is held; `init` changes a running registry's limits."""
    safe_refs.init(max_leases=2, max_references=4)
    try:
        held = [safe_refs.dumps(ray.put(n), label="mine") for n in range(2)]
        with pytest.raises(safe_refs.RegistryFullError, match="max_leases is 2, 2 are in use and 1 more") as caught:
            safe_refs.dumps(ray.put(b"x" * MB))
        assert caught.value.largest == (("mine", 2),)
        assert len(safe_refs.leases()) == 2
        safe_refs.init(max_leases=9, max_references=4)
        held.append(safe_refs.dumps([ray.put(1), ray.put(2)]))
        with pytest.raises(safe_refs.RegistryFullError, match="max_references is 4"):
            safe_refs.pin(ray.put(3))
        assert safe_refs.release(held) == 3
    finally:
        config._told.limits = None


def test_a_dead_owner_is_told_as_such(registry: str) -> None:
    """When the process that owned a lease's objects is killed, the lease ends within seconds, and loading says why."""

    class Owner:
        def make(self) -> tuple[bytes, int]:
            self.ref = ray.put(b"x" * MB)
            return safe_refs.dumps([self.ref, self.ref]), os.getpid()

    owner = as_actor(Owner).options(runtime_env={"env_vars": {"SAFE_REFS_REGISTRY": registry}}).remote()
    payload, number = ray.get(owner.make.remote(), timeout=60)
    kept = safe_refs.dumps(ray.put("of a living owner"))
    assert ray.get(safe_refs.loads(payload)[0], timeout=20) == b"x" * MB
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: len(safe_refs.leases(sizes=False)) == 1)
    with pytest.raises(safe_refs.OwnerGoneError, match="died with the process that owned them"):
        safe_refs.loads(payload)
    assert ray.get(safe_refs.loads(kept), timeout=20) == "of a living owner"
    figures = safe_refs.stats()
    assert figures is not None
    assert (figures.owner_gone, safe_refs.release([payload, kept])) == (1, 1)


def test_getting_from_a_handle_of_a_dead_owner_never_hangs(registry: str) -> None:
    """Before the registry has noticed, too: `get` turns Ray's own error into `OwnerGoneError`."""

    class Owner:
        def make(self) -> Any:
            self.ref = ray.put(b"x" * MB)
            return safe_refs.pin(self.ref), os.getpid()

    owner = as_actor(Owner).options(runtime_env={"env_vars": {"SAFE_REFS_REGISTRY": registry}}).remote()
    handle, number = ray.get(owner.make.remote(), timeout=60)
    os.kill(number, signal.SIGKILL)
    outcomes: list[str] = []
    while not outcomes or outcomes[-1] == "value":  # as long as a copy is still in this node's store
        try:
            outcomes.append("value" if handle.get(30) == b"x" * MB else "wrong value")
        except safe_refs.OwnerGoneError:
            outcomes.append("gone")
    assert outcomes[-1] == "gone"
    handle.release()


def test_leases_lists_who_holds_what(registry: str) -> None:
    """Every live lease with its label, age, terms, size and maker, by job, node, process and source line; nothing that resolves."""
    payload = safe_refs.dumps({"a": ray.put(b"x" * MB), "b": ray.put(b"y" * MB)}, label="night", ttl=100, uses=5)
    (info,) = safe_refs.leases(label="night")
    assert (info.label, info.references, info.uses_left) == ("night", 2, 5)
    assert info.size_bytes == pytest.approx(2 * MB, rel=0.01)
    assert 0 <= info.age_s < 30
    assert info.expires_in_s is not None
    assert 70 < info.expires_in_s <= 100
    assert (info.job, info.pid) == (ray.get_runtime_context().get_job_id(), os.getpid())
    assert info.node == ray.get_runtime_context().get_node_id()
    assert info.source.startswith(f"{__file__}:")
    assert info.source.endswith("in test_leases_lists_who_holds_what")
    full = safe_refs.inspect(payload).lease_id
    assert full is not None
    assert full not in repr(safe_refs.leases())
    assert safe_refs.leases(label="day") == []
    assert safe_refs.leases(sizes=False)[0].size_bytes is None
    with pytest.raises(safe_refs.EnvelopeError, match="32 hexadecimal digits"):
        safe_refs.release(info.short_id)
    assert safe_refs.release(full) == 1


def test_a_lease_ends_by_its_ttl_and_the_object_leaves_the_store(registry: str) -> None:
    """With a ttl of 1 s and no reference left, the store is empty 2 s after the end, and loading names the time."""
    payload = safe_refs.dumps(ray.put(b"x" * MB), ttl=1)
    gc.collect()
    assert is_empty(within_s=3)
    with pytest.raises(safe_refs.LeaseExpiredError, match=r"expired at 20.*ttl of 1\.0 s") as caught:
        safe_refs.loads(payload)
    assert caught.value.ended_at == pytest.approx(time.time(), abs=30)


def test_a_lease_ends_by_its_uses(registry: str) -> None:
    """`uses=2`: two loads, then an error that says so, and the object goes with the last reference."""
    payload = safe_refs.dumps(ray.put("v"), uses=2)
    assert [ray.get(safe_refs.loads(payload), timeout=20) for _ in range(2)] == ["v", "v"]
    with pytest.raises(safe_refs.LeaseUsedUpError):
        safe_refs.loads(payload)


def test_release_takes_all_that_names_a_lease(registry: str) -> None:
    """Payloads in any buffer, handles, their text, ids, what `inspect` says, and iterables of all these."""
    payloads = [safe_refs.dumps(ray.put(n)) for n in range(6)]
    infos = [safe_refs.inspect(payload) for payload in payloads]
    mixed: list[Any] = [payloads[0], payloads[0], [bytearray(payloads[1])], safe_refs.dumps("plain")]
    assert safe_refs.release(mixed) == 2
    assert safe_refs.release(memoryview(payloads[2])) == 1
    assert safe_refs.release(str(infos[3].handles[0])) == 1
    assert infos[5].lease_id is not None
    assert safe_refs.release(each for each in (infos[4], infos[5].lease_id)) == 2
    assert safe_refs.release([*payloads, *infos]) == 0
    with pytest.raises(TypeError, match="not by int"):
        safe_refs.release(5)  # type: ignore[arg-type] # the point


def test_one_bad_target_among_many_releases_none(registry: str) -> None:
    """`release` of an iterable with a damaged payload in it fails before anything ends."""
    good = safe_refs.dumps(ray.put(1))
    with pytest.raises(safe_refs.EnvelopeError):
        safe_refs.release([good, good[:-5]])
    assert len(safe_refs.leases()) == 1
    assert safe_refs.release(good) == 1


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


def be_in_a_round(shard: Any) -> None:
    """What a shard does for a moment: it begins to anchor all that it holds, and comes to no end with it."""
    shards._CLOSE_TIMEOUT_S = 120.0  # it does not give up
    time.sleep(0.5)  # until `close` waits for its turn, too
    with shard._lock:
        shard._pass_on(shard._table.ids()[0], soon=True)
    wait_until(lambda: bool(shard._settler._batch[1]))


@pytest.mark.parametrize(
    "meanwhile",
    [pytest.param(None, id="idle"), pytest.param(be_in_a_round, marks=pytest.mark.long, id="in a round of anchoring")],
)
def test_shutdown_releases_everything_and_spares_live_references(
    registry: str, meanwhile: Callable[[Any], None] | None
) -> None:
    """What a consumer has resolved stays good when the registry is shut down, although it knew the object only through it.

    Also if the registry has begun to tell the owner of the consumer, and holds the reference for that.
    """

    class Consumer:
        def load(self, payload: bytes) -> int:
            self.ref = safe_refs.loads(payload)
            return os.getpid()

        def read(self) -> Any:
            return ray.get(self.ref, timeout=20)

    payload = safe_refs.dumps(ray.put(b"s" * MB))
    consumer = as_actor(Consumer).remote()
    ray.get(consumer.load.remote(payload), timeout=60)
    gc.collect()
    if meanwhile is not None:
        shard = ray.get_actor(actor_name(registry, 0), namespace=_ray.NAMESPACE)
        shard.__ray_call__.remote(meanwhile)
    begun = time.monotonic()
    assert safe_refs.shutdown(timeout=60) == 1
    assert time.monotonic() - begun < 30  # it has not waited in vain
    assert safe_refs.stats() is None
    assert safe_refs.shutdown() == 0
    with pytest.raises(safe_refs.LeaseLostError):
        safe_refs.loads(payload)
    deadline = time.monotonic() + 4  # a reference whose holder Ray has forgotten dies within about 3 s
    while time.monotonic() < deadline:
        assert ray.get(consumer.read.remote(), timeout=30) == b"s" * MB
    ray.kill(consumer)


def test_settings_come_from_init_the_environment_and_the_call_in_rising_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As documented; and a value that makes no sense is refused with its name."""
    monkeypatch.setattr(config._told, "registry", "from-init")
    assert config.registry_name() == "from-init"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", "from-environment")
    assert config.registry_name() == "from-environment"
    assert config.registry_name("from-call") == "from-call"
    monkeypatch.setattr(config._told, "timeout", 3.0)
    assert config.timeout_s() == 3
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", "4")
    assert config.timeout_s() == 4
    assert config.timeout_s(5) == 5
    for wrong in ("soon", "-1", "0"):
        monkeypatch.setenv("SAFE_REFS_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="SAFE_REFS_TIMEOUT must be"):
            config.timeout_s()
    with pytest.raises(ValueError, match="max_leases must be at least 1"):
        safe_refs.init(max_leases=0)


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


def test_the_watch_over_tests_notices_a_lease_and_a_pinned_byte(cluster: str) -> None:
    """The fixture that all tests here rely on does fail a test that leaves something behind."""
    before = _ray.store_usage()
    payload = safe_refs.dumps(ray.put(1))
    with pytest.raises(AssertionError, match=r"left 1 lease\(s\) behind"):
        check_nothing_left(before)
    assert safe_refs.release(payload) == 0  # the watch has cleared it away
    kept = ray.put(b"x" * MB)
    with pytest.raises(AssertionError, match="bytes pinned"):
        check_nothing_left(before, settle_s=0.5)
    del kept


def test_two_clusters_with_equal_object_ids_are_told_apart() -> None:
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
