"""The rooms' order, and fixtures: one Ray for the whole session, and a watch that no test leaves a lease or a byte behind.

The cluster runs with Ray's own switch that forbids out-of-band serialization of references, so that every test also shows that
safe_refs needs none. Tests that must kill a registry or a cluster do so in a cluster or under a registry name of their own.
"""

from __future__ import annotations

import tests.support.environment  # noqa: F401 # first of all: Ray reads the environment when it is imported

# isort: split
import gc
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safe_refs
from safe_refs import logs
from tests.support import settings, store
from tests.support.cluster import LOCAL_RAY
from tests.support.processes import PRELUDE, Driver, run_python
from tests.support.shards import Start, is_back
from tests.support.waiting import wait_until

# The rooms in the order in which they begin: first those whose files have few tests that take long. Two workers take one file after
# the other (see the Makefile), so that none of these is left over for the end, when one worker would wait for the other.
ROOMS = (
    "anchoring",
    "soak",
    "chaos",
    "client",
    "durability",
    "replication",
    "core",
    "faces",
    "batching",
    "interrupts",
    "registry",
    "integrations",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the rooms in order, and one that isn't named behind all others; within a room the order stays as it is."""
    turns = {room: turn for turn, room in enumerate(ROOMS)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: turns.get(item.path.relative_to(tests).parts[0], len(ROOMS)))


def pytest_collection_finish() -> None:
    """Spare each collection of garbage what is there for good: some 180,000 objects, 0.1 s of it, twice in a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray of one node for the session; its GCS address."""
    import ray

    ray.init(**LOCAL_RAY)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def cluster(ray_cluster: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """The session's Ray, watched: the test fails if it leaves a lease or a pinned byte behind."""
    for mark in request.node.iter_markers("ray_marks"):
        store.allow(mark.args[0])
    gc.collect()
    before = store.emptied(store.SETTLE_S)
    yield ray_cluster
    settings.forget()
    for phase in ("setup", "call"):
        # Ray logs errors whose frames know the answer that it could not open, and pytest keeps what is logged.
        caplog.get_records(phase).clear()
    store.check_nothing_left(before)


@pytest.fixture(autouse=True)
def logs_anew() -> None:
    """What an earlier test has logged is logged again."""
    logs.once_a_minute.forget()


@pytest.fixture
def driver(ray_cluster: str) -> Driver:
    """Run code as another driver, which is another Ray job, of the session's cluster, and return what it prints as JSON."""

    def run(code: str, *args: str, timeout: float = 90) -> Any:
        return run_python(PRELUDE + textwrap.dedent(code), ray_cluster, *args, timeout=timeout)

    return run


@pytest.fixture
def registry(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry of this test's own, with whatever limits it likes, so that it may be killed; gone afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", name)
    yield name
    safe_refs.shutdown(name, force=True)


@pytest.fixture
def start(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts registries of the test's own; they are gone afterwards, and so is what `init` was told."""
    names: list[str] = []

    def begin(shards: int, replicas: int) -> str:
        names.append(f"shards-{uuid.uuid4().hex[:8]}")
        monkeypatch.setenv("SAFE_REFS_REGISTRY", names[-1])
        safe_refs.init(shards=shards, replicas=replicas)
        settings.forget()
        return names[-1]

    yield begin
    for name in names:
        wait_until(lambda name=name: is_back(name))  # type: ignore[misc] # mypy can't infer a lambda's default
        safe_refs.shutdown(name, force=True)


@pytest.fixture
def script(cluster: str, tmp_path: Path) -> Any:
    """Runs a script, a file with a `__main__` of its own, as a job of the session's cluster; what it printed last, as JSON."""

    def run(code: str, *args: str) -> Any:
        return run_python(PRELUDE + code, cluster, *args, script=tmp_path / "script.py")

    return run
