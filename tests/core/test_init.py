"""`init` is whole or nothing: whoever else calls it, and whatever comes in between."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.processes import Driver


def at_once(*calls: dict[str, Any]) -> list[Exception | None]:
    """Call `init` in a thread for each; what they raised."""
    begin, raised = threading.Barrier(len(calls)), [None] * len(calls)

    def call(number: int) -> None:
        begin.wait(10)
        try:
            safe_refs.init(**calls[number])
        except ValueError as error:
            raised[number] = error  # type: ignore[call-overload] # it holds None at first

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return list(raised)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_inits_at_once_do_not_mix() -> None:
    """The last one holds as a whole, and a limit is the limit of the registry that it was given for."""
    for number in range(4):
        limited, free = f"limited-{number}", f"free-{number}"
        assert (
            at_once({"registry": limited, "max_leases": 1, "ttl": 60}, {"registry": free, "timeout": 20}) == [None] * 2
        )
        found = safe_refs.settings()
        assert (found.registry, found.ttl_s, found.timeout_s) in ((limited, 60, 30), (free, None, 20))
        payloads = [safe_refs.dumps(ray.put(each), registry=free) for each in range(3)]
        assert safe_refs.release(payloads) == 3
        for name in (limited, free):
            safe_refs.shutdown(name)


@pytest.mark.usefixtures("cluster")
def test_one_that_is_refused_undoes_no_other() -> None:
    """Nor do other threads ever go by it."""
    safe_refs.init("one")
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            seen.add(safe_refs.settings().registry)

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(5):
        raised = at_once({"registry": "one", "replicas": 2, "ttl": 5}, {"registry": "good", "ttl": 60 + number})
        assert isinstance(raised[0], ValueError)
        assert raised[1] is None
        assert (safe_refs.settings().registry, safe_refs.settings().ttl_s) == ("good", 60 + number)
    over.set()
    looking.join()
    assert seen <= {"one", "good"}
    for name in ("one", "good"):
        safe_refs.shutdown(name)


def test_one_that_is_interrupted_while_it_waits_for_the_job_is_undone(driver: Driver, cluster: str) -> None:
    """Here, for the tasks, and at the registry: a time limit of 0.3 s comes while it waits for a second."""
    found = driver(
        """
        import signal
        from safe_refs import _settings

        @ray.remote(num_cpus=0)
        class Maker:
            def seen(self):
                found = safe_refs.settings()
                return found.registry, found.ttl_s

        def late(*_):
            raise TimeoutError

        maker = Maker.remote()
        ray.get(maker.seen.remote())
        safe_refs.init("before", ttl=60, max_leases=5)
        signal.signal(signal.SIGALRM, late)
        _settings.FRESH_S = 1.0
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            safe_refs.init("before", ttl=5, max_leases=2)
            raised = False
        except TimeoutError:
            raised = True
        time.sleep(0.3)
        here = safe_refs.settings()
        there = ray.get(maker.seen.remote())
        held = [safe_refs.dumps(ray.put(number)) for number in range(5)]
        print(json.dumps([raised, [here.registry, here.ttl_s], there, safe_refs.release(held), safe_refs.shutdown()]))
        """
    )
    assert found == [True, ["before", 60], ["before", 60], 5, 0]


@pytest.mark.long
def test_a_short_timeout_is_for_the_registry_not_for_the_job(driver: Driver, cluster: str) -> None:
    """What was begun is finished: when `init` returns, tasks go by it."""
    found = driver(
        """
        @ray.remote(num_cpus=0)
        class Maker:
            def seen(self):
                return safe_refs.settings().registry

        maker = Maker.remote()
        seen = [ray.get(maker.seen.remote())]
        safe_refs.init("slow")
        for name in ("slow", "other", "slow"):
            safe_refs.init("other" if name == "other" else "slow")
            safe_refs.init(name, timeout=0.3)
            seen.append(ray.get(maker.seen.remote()))
        for name in ("slow", "other"):
            safe_refs.shutdown(name)
        print(json.dumps(seen))
        """
    )
    assert found == ["default", "slow", "other", "slow"]


def test_what_the_drivers_environment_says_is_passed_on(driver: Driver, cluster: str) -> None:
    """By its `init`: variables of the shell that starts a driver reach no other node by themselves."""
    found = driver(
        """
        import os
        os.environ |= {"SAFE_REFS_TTL": "77", "SAFE_REFS_REQUIRE_TTL": "1", "SAFE_REFS_TIMEOUT": "25"}

        @ray.remote(num_cpus=0)
        def seen():
            found = safe_refs.settings()
            return found.ttl_s, found.require_ttl, found.timeout_s, found.sources["ttl"]

        before = ray.get(seen.remote())
        safe_refs.init(timeout=26)
        print(json.dumps([before, ray.get(seen.remote())]))
        """
    )
    assert found == [[None, False, 30, "default"], [77, True, 26, "job"]]
