"""Programs that are Ray Clients (`ray://`), each in a process of its own; and what starts servers for them."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .waiting import wait_until

NAMESPACE = "safe_refs-tests"
# Seconds for which the server waits for a client that is gone without a word; 30 unless told otherwise. The client tells it.
GRACE_S = 2
LONG_GRACE_S = 120  # for clients that end in order, whose servers don't wait

_STARTS_S = 60.0
# The proxy starts a server for each client, at the first port from 23000 on that seems free. Two proxies, of two clusters, may choose
# the same one at once, and both servers listen there: then a client of one cluster is in the other. So each has ports of its own.
PORTS = 100
_SERVER = f"""
import sys
from ray.util.client.server import proxier
proxier.MIN_SPECIFIC_SERVER_PORT = int(sys.argv.pop(1))
proxier.MAX_SPECIFIC_SERVER_PORT = proxier.MIN_SPECIFIC_SERVER_PORT + {PORTS}
from ray.util.client.server.server import main
main()
"""

Client = Callable[..., Any]

PRELUDE = """
import asyncio, gc, json, os, pickle, sys, time
import ray
import safe_refs
from safe_refs import SafeRef, aio
from tests.support.waiting import comes
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


@contextmanager
def serve(cluster: str, first_port: int) -> Iterator[tuple[int, int]]:
    """What starts a server for each Ray Client of a cluster, as in `ray start --ray-client-server-port`; its port and pid.

    Args:
        cluster: address.
        first_port: of the `PORTS` for the servers.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    command = [sys.executable, "-c", _SERVER, str(first_port), "--mode", "proxy", "--host", "127.0.0.1"]
    # No client here has a runtime environment, so that no agent for these is needed.
    command += ["--port", str(number), "--address", cluster, "--runtime-env-agent-address="]
    # It forks while its own threads use gRPC, which now and then ends the child: its client waits 40 s in vain, and has to connect
    # again. Without gRPC's hand in it that has not been seen.
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: server.poll() is not None or answers(number), _STARTS_S)
        assert server.poll() is None
        yield number, server.pid
    finally:
        server.terminate()
        server.wait(30)


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


def said(program: subprocess.Popen[str], timeout_s: float = 90) -> Any:
    """The line that a client's program has printed, as JSON."""
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], timeout_s)
    line = program.stdout.readline() if ready else ""
    if not line:
        program.kill()
        raise AssertionError(f"the client said nothing:\n{program.communicate()[1]}")
    return json.loads(line)


def end(program: subprocess.Popen[str]) -> None:
    """Let a client's program come to its end, or kill it; nothing, if `said` has ended it."""
    if program.poll() is not None and program.stdout is not None and program.stdout.closed:
        return
    try:
        program.communicate("\n", timeout=60)
    except subprocess.TimeoutExpired:
        program.kill()
        program.communicate()
        raise


def answers(port: int) -> bool:
    """Whether somebody takes connections there."""
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
