"""Fixtures: a server of Ray Clients beside the session's Ray, on loopback, and clients, each a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tests.support.actors import Owner
from tests.support.clients import NAMESPACE, Client, answers, start
from tests.support.cluster import as_actor
from tests.support.waiting import wait_until

STARTS_S = 60.0
# The proxy starts a server for each client, at the first port from 23000 on that seems free. Two proxies, of two clusters, may choose
# the same one at once, and both servers listen there: then a client of one cluster is in the other. So each has ports of its own.
FIRST_PORT = 23_000
PORTS = 100
SERVER = f"""
import sys
from ray.util.client.server import proxier
proxier.MIN_SPECIFIC_SERVER_PORT = int(sys.argv.pop(1))
proxier.MAX_SPECIFIC_SERVER_PORT = proxier.MIN_SPECIFIC_SERVER_PORT + {PORTS}
from ray.util.client.server.server import main
main()
"""


@pytest.fixture(scope="module")
def server(ray_cluster: str) -> Iterator[tuple[int, int]]:
    """What starts a server for each Ray Client of the session's Ray, as in `ray start --ray-client-server-port`; its port and pid."""
    ports = FIRST_PORT + PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(ports), "--mode", "proxy", "--host", "127.0.0.1"]
    # No client here has a runtime environment, so that no agent for these is needed.
    command += ["--port", str(number), "--address", ray_cluster, "--runtime-env-agent-address="]
    # It forks while its own threads use gRPC, which now and then ends the child: its client waits 40 s in vain, and has to connect
    # again. Without gRPC's hand in it that has not been seen.
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: server.poll() is not None or answers(number), STARTS_S)
        assert server.poll() is None
        yield number, server.pid
    finally:
        server.terminate()
        server.wait(30)


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
