"""Nodes on this machine: a head, which stays, and others, which come and go. On loopback, in a folder of their own.

What always holds: no other Ray on the machine is used or disturbed (not even the note of "the current cluster" that Ray leaves in its
folder), and all that was started is ended with `close`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support import clients

from .ledger import DURABLE_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 100 * 2**20
_LAST_LINES = 60
_CPUS = 2
_CLIENTS_FIRST_PORT = 25_000
# Ray gives a node that has fallen silent 15 s or more. Here it takes 5, so that more happens in a minute.
_SYSTEM = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}
# By their titles. Others that a node starts, its agents, are not to be killed alone: the node would go with them, be it the head.
_TASK_WORKERS = ("ray::IDLE", "ray::_value")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or a thread that is late would connect anew when the storm is broken off
    "RAY_allow_out_of_band_object_ref_serialization": "0",
    "SAFE_REFS_TIMEOUT": "30",
    "SAFE_REFS_DURABLE_TIMEOUT": str(DURABLE_TIMEOUT_S),
}


class Cluster:
    """The nodes of a storm.

    Args:
        nodes: how many there are, with the head.
    """

    def __init__(self, nodes: int) -> None:
        short = None if len(tempfile.gettempdir()) <= 30 else "/tmp"  # noqa: S108 # mkdtemp makes a private folder in it
        self.folder = Path(tempfile.mkdtemp(prefix="storm-", dir=short))
        # Servers of clients import the storm's own functions, too.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        os.environ.update(ENVIRONMENT, RAY_TMPDIR=str(self.folder), PYTHONPATH=path)
        import ray
        from ray import cluster_utils

        self._cluster: Any = cluster_utils.Cluster()
        self._others: dict[str, Any] = {}
        self._ends = contextlib.ExitStack()
        self._cluster.add_node(**_node(), include_dashboard=False, _system_config=_SYSTEM)
        first = _CLIENTS_FIRST_PORT + clients.PORTS * (os.getpid() % 50)
        self.clients_address = f"ray://127.0.0.1:{self._ends.enter_context(clients.serve(self.address, first))[0]}"
        for _ in range(nodes - 1):
            self.add()
        ray.init(address=self.address, namespace="storm", log_to_driver=False, logging_level=logging.CRITICAL)

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return str(self._cluster.address)

    @property
    def control_service(self) -> int:
        """Pid of Ray's control service."""
        return int(self._cluster.head_node.all_processes["gcs_server"][0].process.pid)

    @property
    def others(self) -> list[str]:
        """Ids of the nodes that may be removed."""
        return list(self._others)

    def add(self, environment: Mapping[str, str] | None = None, **resources: float) -> str:
        """Another node; its id.

        Args:
            environment: of its own.
            resources: of its own.
        """
        with _in_environment(environment or {}):
            node = self._cluster.add_node(**_node(), resources=resources)
        self._others[node.node_id] = node
        return str(node.node_id)

    def remove(self, node: str, *, hard: bool) -> None:
        """Kill a node with all its processes; `hard` without any chance to say good-bye. Returns when they are gone."""
        removed = self._others.pop(node)
        if hard:
            for pid in _family(removed):
                kill(pid)
        self._cluster.remove_node(removed, allow_graceful=not hard)

    def workers(self) -> list[int]:
        """Pids of the processes that run tasks, or wait for some, on any node."""
        found = []
        for node in [self._cluster.head_node, *self._others.values()]:
            found += [pid for pid in _family(node) if _title(pid).startswith(_TASK_WORKERS)]
        return sorted(found)

    def spilled_bytes(self) -> int:
        """Bytes on disk, in the spill folders of all nodes that live."""
        return sum(self.spilled().values())

    def spilled(self) -> dict[str, int]:
        """The files in the spill folders, with their sizes; a name is that of the first object in it."""
        files = [path for path in self.folder.rglob("ray_spilled_objects*/**/*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in files}

    def last_words(self, pid: int) -> str:
        """See `last_words`."""
        return last_words(self.folder, pid)

    def close(self) -> None:
        """End all."""
        import ray

        self._ends.close()
        ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def last_words(folder: Path, pid: int) -> str:
    """The last lines of what Ray and Python have logged of a process, below a folder."""
    lines: list[str] = []
    for path in sorted(folder.rglob(f"logs/*{pid}.*")):
        lines += [f"{path.name}:", *path.read_text(errors="replace").splitlines()[-_LAST_LINES:]]
    return "\n".join(lines)


@contextlib.contextmanager
def _in_environment(more: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started meanwhile get these variables, too."""
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            del os.environ[name]


def _family(node: Any) -> list[int]:
    """Pids of a node's raylet, and of all that it has started."""
    found = [int(node.all_processes["raylet"][0].process.pid)]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(each) for each in children.read_text().split()]
            except OSError:
                continue  # it has ended
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _node() -> dict[str, Any]:
    return {"num_cpus": _CPUS, "object_store_memory": STORE_BYTES}  # as for addresses, Ray's utility knows best


def pause(pid: int, seconds: float) -> None:
    """Stop a process for a while. One that ends meanwhile is no fault."""
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def kill(pid: int) -> None:
    """End a process by SIGKILL. One that has ended already is no fault."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
