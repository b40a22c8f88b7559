"""Fixtures: a server of Ray Clients beside the session's Ray, on loopback, and clients, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tests.support.actors import Owner
from tests.support.clients import NAMESPACE, PORTS, Client, serve, start
from tests.support.cluster import as_actor

# The port of each proxy's first server: see `serve`.
FIRST_PORT = 23_000


@pytest.fixture(scope="module")
def server(ray_cluster: str) -> Iterator[tuple[int, int]]:
    """What starts a server for each Ray Client of the session's Ray, as in `ray start --ray-client-server-port`; its port and pid."""
    ports = FIRST_PORT + PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    with serve(ray_cluster, ports) as found:
        yield found


@pytest.fixture
def port(server: tuple[int, int]) -> int:
    """Where clients connect."""
    return server[0]


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
    ray.get(actor.__ray_ready__.remote(), timeout=60)
    yield actor
    ray.kill(actor)
