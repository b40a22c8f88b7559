"""One small Ray for the whole session, and a watch that no test leaves a lease or a byte behind.

The cluster runs with Ray's own switch that forbids out-of-band serialization of references, so that every test also shows that
safe_refs needs none. Tests that must kill a registry or a cluster do so in a cluster or under a registry name of their own.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_allow_out_of_band_object_ref_serialization"] = "0"  # noqa: SIM112 # the name is Ray's
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Without this Ray replaces a loopback address by the machine's own, and listens to the network.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
# Ray gathers what may be freed for a second, for which nearly every test would wait.
os.environ["RAY_free_objects_period_milliseconds"] = "50"  # noqa: SIM112 # the name is Ray's
# Ray's workers import what tests pickle by reference from where the tests import it.
ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402 # Ray reads the environment when it is imported

import safe_refs  # noqa: E402
from safe_refs import _ray  # noqa: E402

# Bytes: Ray keeps a mark of a byte or two, for good, for an object that somebody looked for after its end. A test that looks for more
# of these says how many bytes that may be (`@pytest.mark.ray_marks(64)`).
RAYS_MARKS = 8
# How long it may take to free what nobody holds. Ray takes well under 1 s on an idle machine; what a shard that was killed had
# given to couriers stays with them for 10 s.
SETTLE_S = 15.0

Driver = Callable[..., Any]

LOCAL_RAY: dict[str, Any] = {
    "address": "local",  # its own, also where another runs on this machine
    "num_cpus": 4,
    "object_store_memory": 400 * 2**20,
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "_node_ip_address": "127.0.0.1",
}


def as_actor(class_: type) -> Any:
    """Make a Ray actor class of a class, without a CPU of its own; typed as what it is at run time, which Ray's types don't know."""
    import ray

    return ray.remote(num_cpus=0)(class_)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray of one node for the session; its GCS address."""
    import ray

    ray.init(**LOCAL_RAY)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def check_nothing_left(before: _ray.StoreUsage, settle_s: float = SETTLE_S) -> None:
    """Fail if a lease is live, or the store holds more than before."""
    gc.collect()
    figures = safe_refs.stats()
    live = 0 if figures is None else figures.live_leases
    left = safe_refs.leases(sizes=False) if live else []
    if live:
        safe_refs.shutdown()
    usage = _ray.wait_for_store(before.used_bytes + RAYS_MARKS, settle_s)
    assert not live, f"the test left {live} lease(s) behind: {left}"
    assert usage.used_bytes <= before.used_bytes + RAYS_MARKS, (
        f"the test left {usage.used_bytes - before.used_bytes} bytes pinned"
    )


def allow_cache(size: int) -> None:
    """So many bytes that nobody counts on stay in the store from here on."""
    global RAYS_MARKS
    RAYS_MARKS += size


def is_empty(within_s: float) -> bool:
    """Whether the store is empty within that time, but for marks of Ray's own."""
    return _ray.wait_for_store(RAYS_MARKS, within_s).used_bytes <= RAYS_MARKS


@pytest.fixture
def cluster(ray_cluster: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """The session's Ray, watched: the test fails if it leaves a lease or a pinned byte behind."""
    global RAYS_MARKS
    for mark in request.node.iter_markers("ray_marks"):
        RAYS_MARKS += mark.args[0]
    gc.collect()
    before = _ray.wait_for_store(RAYS_MARKS, SETTLE_S)
    yield ray_cluster
    for phase in ("setup", "call"):
        # Ray logs errors whose frames know the answer that it could not open, and pytest keeps what is logged.
        caplog.get_records(phase).clear()
    check_nothing_left(before)


@pytest.fixture
def driver(ray_cluster: str) -> Driver:
    """Run code as another driver, which is another Ray job, of the session's cluster, and return what it prints as JSON."""

    def run(code: str, *args: str, timeout: float = 90) -> Any:
        return run_python(PRELUDE + textwrap.dedent(code), ray_cluster, *args, timeout=timeout)

    return run


PRELUDE = """
import gc, json, pickle, sys, time
import ray
import safe_refs
address, *args = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="error")
"""


def run_python(code: str, *args: str, timeout: float = 90) -> Any:
    """Run a Python program in a process of its own; its last line of output, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"the program failed:\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None
