"""Which settings hold, who said so, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import _settings, config
from tests.support import settings_table
from tests.support.environment import ROOT
from tests.support.processes import Driver
from tests.support.shards import actor, stopped


@pytest.mark.parametrize(
    ("programs", "seed"),
    [(12, 1), pytest.param(500, 2, marks=pytest.mark.long), pytest.param(2000, 3, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(1500)
def test_settings_are_as_a_model_foresees(cluster: str, programs: int, seed: int) -> None:
    """`init`, the environment, `shutdown`, reconnections and refusals, in any order, in a driver and two actors of its job."""
    command = [sys.executable, "-m", "tests.support.settings_programs", cluster, str(programs), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)


def test_sources_beat_one_another_in_order(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call's argument, `init`, the environment, the default; and each says so."""
    assert safe_refs.settings().sources["registry"] == "default"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", "by-environment")
    assert safe_refs.settings().sources["registry"] == "SAFE_REFS_REGISTRY"
    safe_refs.init("by-init", ttl=60)
    found = safe_refs.settings()
    assert (found.registry, found.sources["registry"]) == ("by-init", "init")
    assert "by-init" in repr(found)
    ref = ray.put("v")
    payloads = [safe_refs.dumps(ref), safe_refs.dumps(ref, registry="by-call")]
    assert [safe_refs.inspect(payload).registry for payload in payloads] == ["by-init", "by-call"]
    assert safe_refs.release(payloads) == 2
    assert safe_refs.shutdown() == 0
    assert safe_refs.stats(registry="by-init") is None
    assert safe_refs.stats(registry="by-call") is not None
    for name in ("by-call", "by-environment"):
        safe_refs.shutdown(name)


def test_every_call_that_makes_leases_takes_a_registry_and_a_timeout(cluster: str, tmp_path: Any) -> None:
    """`dumps`, `dumps_many`, `dump`, `Pickler`, `pin`, `put`, and a scope for all inside."""
    ref, elsewhere = ray.put("v"), "elsewhere"
    how: dict[str, Any] = {"registry": elsewhere, "timeout": 20}
    made: list[Any] = [safe_refs.dumps(ref, **how), *safe_refs.dumps_many([ref], **how), safe_refs.pin(ref, **how)]
    made.append(safe_refs.put("small", **how))
    with (tmp_path / "file").open("wb") as file:
        safe_refs.dump(ref, file, **how)
        safe_refs.Pickler(file, **how).dump(ref)
    made.append((tmp_path / "file").read_bytes())
    assert len(safe_refs.leases(registry=elsewhere)) == 6
    with safe_refs.scope(**how):
        safe_refs.dumps(ref)
        assert len(safe_refs.leases(registry=elsewhere)) == 7
    assert len(safe_refs.leases(registry=elsewhere)) == 6
    assert made[3].get() == "small"
    with pytest.raises(TypeError, match="registry must be a registry's name"):
        safe_refs.dumps(ref, registry=5)  # type: ignore[arg-type] # the point
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        safe_refs.dumps(ref, timeout=0)
    assert safe_refs.leases() == []
    assert safe_refs.shutdown(elsewhere) == 6


def test_a_timeout_is_for_the_whole_call(cluster: str) -> None:
    """The copies of a durable lease included, for which there is ten minutes else."""

    @ray.remote(num_cpus=0)
    def never() -> None:
        time.sleep(60)

    pending = never.remote()
    begun = time.monotonic()
    for call in (
        lambda: safe_refs.dumps(pending, durable=True, timeout=1),
        lambda: safe_refs.dumps_many([pending], durable=True, timeout=timedelta(seconds=1)),
    ):
        with pytest.raises(safe_refs.RegistryUnavailableError):
            call()
    with pytest.raises(safe_refs.RegistryUnavailableError), safe_refs.scope(timeout=1):
        safe_refs.pin(pending, durable=True)
    assert time.monotonic() - begun < 8
    ray.cancel(pending, force=True)


def test_blocks_have_timeouts_of_their_own(cluster: str) -> None:
    """A pipeline's is for its end, a keepalive's for each renewal."""
    with safe_refs.pipeline(timeout=20):
        payload = safe_refs.dumps(ray.put("v"), ttl=60)
    with safe_refs.keepalive(payload, ttl=5, timeout=20) as kept:
        assert safe_refs.loads(payload)
    assert kept.error is None
    with stopped("default", 0), pytest.raises(safe_refs.RegistryUnavailableError, match="within 1 s"):
        safe_refs.keepalive(payload, ttl=5, timeout=1).__enter__()
    assert safe_refs.release(payload) == 1


@pytest.mark.long
def test_what_init_says_in_a_driver_holds_for_its_job(driver: Driver, cluster: str) -> None:
    """For tasks and actors that have used safe_refs before, too, from when `init` returns; not for other jobs."""
    found = driver(
        """
        @ray.remote(num_cpus=0)
        class Maker:
            def make(self):
                payload = safe_refs.dumps(ray.put(1))
                info = safe_refs.inspect(payload)
                safe_refs.release(payload)
                return info.registry, info.terms.get("ttl"), safe_refs.settings().sources["registry"]

            def init(self, **settings):
                safe_refs.init(**settings)

        maker = Maker.remote()
        seen = [ray.get(maker.make.remote())]
        for number in range(5):
            safe_refs.init(f"of-the-job-{number % 2}", ttl=100 + number)
            seen.append(ray.get(maker.make.remote()))
        ray.get(maker.init.remote(ttl=5))
        seen.append(ray.get(maker.make.remote()))
        ray.get(maker.init.remote())
        seen.append(ray.get(maker.make.remote()))
        safe_refs.init()
        seen.append(ray.get(maker.make.remote()))
        print(json.dumps(seen))
        """
    )
    by_job = [[f"of-the-job-{number % 2}", 100 + number, "job"] for number in range(5)]
    own = [["of-the-job-0", 5, "job"], ["of-the-job-0", 104, "job"]]
    assert found == [["default", None, "default"], *by_job, *own, ["default", None, "default"]]
    assert safe_refs.settings().registry == "default"
    for number in range(2):
        safe_refs.shutdown(f"of-the-job-{number}")


def test_a_driver_that_names_its_registry_by_the_environment_names_its_jobs(driver: Driver, cluster: str) -> None:
    """When it calls `init`: a job has one registry."""
    found = driver(
        """
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "by-the-driver"
        safe_refs.init()

        @ray.remote(num_cpus=0)
        def make():
            return safe_refs.settings().registry

        print(json.dumps(ray.get(make.remote())))
        """
    )
    assert found == "by-the-driver"
    safe_refs.shutdown("by-the-driver")


def test_an_init_that_is_refused_changes_nothing(cluster: str) -> None:
    """Neither here nor at the registry."""
    safe_refs.init("kept", ttl=60, max_leases=5)
    before = safe_refs.settings()
    for arguments in (
        {"registry": "kept", "replicas": 2, "ttl": 1},
        {"registry": "other", "shards": 1, "replicas": 2},
        {"registry": "other:1"},
        {"max_leases": 2, "sweep_s": -1},
        {"ttl": 5, "wait": 1},
        {"registry": 5},
        {"timeout": "5"},
        {"require_ttl": "yes"},
    ):
        with pytest.raises((TypeError, ValueError)):
            safe_refs.init(**arguments)
        assert safe_refs.settings() == before
    assert safe_refs.stats(registry="other") is None
    safe_refs.init("kept")
    assert safe_refs.settings().ttl_s is None  # nothing of the last one is left
    assert safe_refs.shutdown() == 0


def test_reads_take_a_registry_as_it_is(cluster: str, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process would start itself."""
    payload = safe_refs.dumps(ray.put("v"), ttl=60)
    monkeypatch.setenv("SAFE_REFS_SHARDS", "4")
    monkeypatch.setenv("SAFE_REFS_REPLICAS", "3")
    safe_refs._settings._known = None
    from safe_refs import assembly

    assembly.client().registry(registry).forget()  # as a process that meets it for the first time
    assert ray.get(safe_refs.loads(payload)) == "v"
    safe_refs.renew(payload, 30)
    assert safe_refs.expires_in_s(payload) is not None
    assert len(safe_refs.leases()) == 1
    assert safe_refs.stats() is not None
    assert safe_refs.release([payload, safe_refs.dumps(ray.put(2))]) == 2
    with pytest.raises(ValueError, match="can't change that to replicas=3"):
        safe_refs.init()


def test_limits_change_one_at_a_time(cluster: str, registry: str) -> None:
    """The others stay; `math.inf` takes one away; and a registry that crashes has them when it is back."""
    safe_refs.init(max_leases=2, max_references=3)
    safe_refs.init(max_references=5)
    first = [safe_refs.dumps(ray.put(number)) for number in range(2)]
    with pytest.raises(safe_refs.RegistryFullError, match="max_leases is 2"):
        safe_refs.dumps(ray.put(3))
    safe_refs.init(max_leases=math.inf)
    with pytest.raises(safe_refs.RegistryFullError, match="max_references is 5"):
        safe_refs.dumps([ray.put(number) for number in range(4)])
    ray.kill(actor(registry, 0), no_restart=False)
    with pytest.raises(safe_refs.RegistryFullError, match="max_references is 5"):
        safe_refs.dumps([ray.put(number) for number in range(6)])
    assert safe_refs.release(first) == 0


def test_shutdown_spares_other_jobs_unless_forced(cluster: str, registry: str, driver: Driver) -> None:
    """It says whose leases those are."""
    other = driver(
        """
        import os
        safe_refs.dumps(ray.put(1), durable=True, registry=args[0])
        print(json.dumps(ray.get_runtime_context().get_job_id()))
        """,
        registry,
    )
    mine = safe_refs.dumps(ray.put(2))
    stats = safe_refs.stats()
    assert stats is not None
    assert stats.jobs == {other: 1, ray.get_runtime_context().get_job_id(): 1}
    with pytest.raises(ValueError, match=rf"holds 1 lease\(s\) of other jobs \(1 of job {other}\).* force=True"):
        safe_refs.shutdown()
    assert ray.get(safe_refs.loads(mine)) == 2
    assert safe_refs.shutdown(force=True) == 2


def test_leases_without_end_are_refused_where_it_is_asked(cluster: str) -> None:
    """`require_ttl`: a ttl of the call, the scope or the process will do; a lease can't lose it, either."""
    safe_refs.init(require_ttl=True)
    ref = ray.put("v")
    for make in (
        lambda: safe_refs.dumps(ref),
        lambda: safe_refs.pin(ref, uses=1),
        lambda: safe_refs.dumps(ref, ttl=math.inf),
    ):
        with pytest.raises(ValueError, match=r"needs a time to live here, as require_ttl says: give ttl="):
            make()
    assert safe_refs.loads(safe_refs.dumps({"no": "references"})) == {"no": "references"}
    with safe_refs.scope(ttl=60):
        safe_refs.dumps(ref)
    payload = safe_refs.dumps(ref, ttl=60)
    with pytest.raises(ValueError, match="require_ttl"):
        safe_refs.renew(payload, math.inf)
    safe_refs.renew(payload, 30)
    assert safe_refs.release(payload) == 1
    safe_refs.init(require_ttl=True, ttl=30)
    assert safe_refs.release(safe_refs.dumps(ref)) == 1


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SAFE_REFS_WAIT", "False"),
        ("SAFE_REFS_WAIT", "maybe"),
        ("SAFE_REFS_WAIT", "-1"),
        ("SAFE_REFS_TIMEOUT", "soon"),
        ("SAFE_REFS_TIMEOUT", "0"),
        ("SAFE_REFS_TTL", "nan"),
        ("SAFE_REFS_SHARDS", "1.5"),
        ("SAFE_REFS_MAX_BYTES", "1GB"),
        ("SAFE_REFS_REGISTRY", "a:1"),
        ("SAFE_REFS_ANCHORING", "yes please"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(
    cluster: str, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """At once, whatever is asked for, and whether or not that needs it."""
    monkeypatch.setenv(variable, text)
    for call in (safe_refs.settings, safe_refs.stats, safe_refs.init, lambda: safe_refs.dumps(ray.put(1))):
        with pytest.raises(ValueError, match=f"the environment variable {variable} must be .*, not {text!r}"):
            call()


def test_each_variable_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is then what holds; without Ray, too."""
    texts = {"registry": "r", "require_ttl": "on", "wait": "no", "anchoring": "0"}
    for setting in config.SETTINGS:
        monkeypatch.setenv(setting.variable, texts.get(setting.name, "7"))
    found = safe_refs.settings()
    assert found.sources == {setting.name: setting.variable for setting in config.SETTINGS}
    assert (found.registry, found.require_ttl, found.wait, found.anchoring) == ("r", True, False, False)
    assert (found.timeout_s, found.ttl_s, found.shards, found.limits.max_bytes) == (7.0, 7.0, 7, 7)
    assert safe_refs.loads(safe_refs.dumps(found)) == found


def test_the_table_in_the_docs_is_the_codes() -> None:
    """`make settings` writes it."""
    assert settings_table.PAGE.read_text() == settings_table.page()


def test_a_variable_that_nobody_reads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is mistyped, most likely. The warning shows the line that called safe_refs."""
    monkeypatch.setattr(_settings, "_known", None)
    monkeypatch.setenv("SAFE_REFS_TIMOUT", "5")
    with pytest.warns(UserWarning, match=r"SAFE_REFS_TIMOUT: is SAFE_REFS_TIMEOUT meant\?") as caught:
        safe_refs.settings()
    assert caught[0].filename == __file__


def test_terms_for_an_object_without_references_are_not_dropped_silently() -> None:
    """It has no lease; `put` makes one."""
    for terms in ({"durable": True}, {"uses": 1}):
        with pytest.warns(UserWarning, match="uses and durable do nothing here"):
            assert safe_refs.loads(safe_refs.dumps({"plain": 1}, **terms)) == {"plain": 1}
    assert safe_refs.dumps({"plain": 1}, ttl=60) == safe_refs.dumps({"plain": 1})


def test_a_value_goes_straight_into_a_lease(cluster: str) -> None:
    """Small or large, as a handle or as a payload, on the terms of any lease."""
    handle = safe_refs.put("small", uses=1)
    assert handle.get() == "small"
    with pytest.raises(safe_refs.LeaseUsedUpError):
        handle.get()
    payload = safe_refs.put(bytes(300_000), payload=True, durable=True, label="large")
    assert ray.get(safe_refs.loads(payload)) == bytes(300_000)
    assert [info.label for info in safe_refs.leases()] == ["large"]
    assert safe_refs.release(payload) == 1
    with pytest.raises(TypeError, match="a reference already: use pin or dumps"):
        safe_refs.put(ray.put(1))


def test_put_starts_no_ray() -> None:
    """As `ray.put` by itself would."""
    code = "import safe_refs, ray\ntry:\n safe_refs.put(1)\nexcept safe_refs.RegistryUnavailableError: print(ray.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "False", done.stderr
