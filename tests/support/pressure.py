"""A Ray of its own whose memory monitor thinks that memory is short, as soon as a hog has taken some; run in a process of its own.

The threshold is a little above what this machine uses now. What the hog takes is more than Ray wants to free at once: the excess, and
a twentieth of the machine's memory. Otherwise Ray kills others along with the hog, whoever they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

import safe_refs
from safe_refs._ray.cluster import NAMESPACE

from .processes import lives
from .waiting import comes, wait_until

_GB = 2**30
_STEP_BYTES = 50 * 2**20
_LEASES = 20


def memory(what: str) -> int:
    """A row of `/proc/meminfo`, in bytes."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows[what].split()[0]) * 1024


def threshold() -> float:
    """The share of memory from which on it is short; what a hog has to take for that is twice what Ray wants to free."""
    total, used = memory("MemTotal"), memory("MemTotal") - memory("MemAvailable")
    return (used + max(0.1 * total, 2 * _GB)) / total


def eat(path: str) -> None:
    """Take memory until the end of this process, or until it is too much for a test."""
    Path(path).write_text(str(os.getpid()))
    taken: list[bytearray] = []
    while len(taken) * _STEP_BYTES < 0.2 * memory("MemTotal"):
        taken.append(bytearray(b"x" * _STEP_BYTES))
        time.sleep(0.02)
    time.sleep(20)


class Plain:
    """A user's actor, which Ray does not restart; a hog, if it is asked to be one."""

    def where(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def eat(self, path: str) -> None:
        eat(path)


def who() -> dict[str, int]:
    """The processes of our actors, by name."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    return {name: _where(ray.get_actor(name, namespace=NAMESPACE)) for name in names}


def _where(actor: Any) -> int:
    pid: int = ray.get(actor.where.remote(), timeout=30)[1]
    return pid


def hold() -> tuple[list[Any], list[bytes]]:
    """References, and leases of them; all relays that they need are there."""
    refs = [ray.put(number) for number in range(_LEASES)]
    payloads = [safe_refs.dumps(ref) for ref in refs]
    safe_refs.loads(payloads[0])
    comes(lambda: sum(name.startswith("relay:") for name in who()) >= 2)
    return refs, payloads


def opened(payloads: list[bytes]) -> int:
    """How many of these leases can be loaded."""
    count = 0
    for payload in payloads:
        with suppress(safe_refs.SafeRefsError):
            count += ray.get(safe_refs.loads(payload, timeout=20), timeout=20) >= 0
    return count


def begin_hog(kind: str, path: str, **options: Any) -> Any:
    """An actor, or a task, that takes memory; what keeps it alive."""
    if kind == "actor":
        actor: Any = ray.remote(num_cpus=0)(Plain).options(**options).remote()
        return actor, actor.eat.remote(path)
    task: Any = ray.remote(num_cpus=0)(eat)
    return task.options(max_retries=3 if kind == "task" else 0, **options).remote(path)


def killed() -> list[str]:
    """What Ray has killed for memory on this node, by what it ran."""
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path())
    text = "".join(path.read_text(errors="replace") for path in logs.glob("raylet*"))
    return re.findall(r"Selected to kill: .*? task name=([^,]*),", text)


def watch_hog(path: str) -> float:
    """Wait until the hog has been killed; the share of this machine's memory that it had by then."""
    wait_until(lambda: Path(path).exists() and bool(Path(path).read_text()), 60)
    pid, taken = int(Path(path).read_text()), [0]

    def is_dead() -> bool:
        with suppress(OSError):
            taken.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        return not lives(pid)

    wait_until(is_dead, 90)
    return max(taken) / memory("MemTotal")


def on_one_node(kind: str, replicas: str, path: str) -> None:
    """Print which of our actors' processes, and of two plain actors', live when a hog has been killed for memory."""
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _system_config={"memory_usage_threshold": threshold(), "memory_monitor_refresh_ms": 250},
    )
    older: Any = ray.remote(num_cpus=0)(Plain).remote()
    pids = {"older": _where(older)}
    safe_refs.init(shards=int(replicas), replicas=int(replicas), timeout=20)
    refs, payloads = hold()
    newer: Any = ray.remote(num_cpus=0)(Plain).remote()
    pids |= {"newer": _where(newer), **who()}
    hog = begin_hog(kind, path)
    taken = watch_hog(path)
    time.sleep(1)
    living = sorted(name for name, each in pids.items() if lives(each))
    found = {"taken": taken, "living": living, "killed": killed(), "leases": opened(payloads), "of": len(refs)}
    print(json.dumps(found))
    del hog


def on_one_of_two_nodes(path: str) -> None:
    """Memory is short on the second of two nodes, where one replica of each lease is; print what is left."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 # the name is Ray's
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150_000_000})
    os.environ["RAY_memory_monitor_refresh_ms"] = "250"  # noqa: SIM112
    os.environ["RAY_memory_usage_threshold"] = str(threshold())  # noqa: SIM112
    cluster.add_node(num_cpus=1, object_store_memory=150_000_000, resources={"second": 10})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    safe_refs.init(shards=2, replicas=2, timeout=20)
    refs, payloads = hold()
    pids = {name: pid for name, pid in who().items() if name.startswith("registry:")}
    hog = begin_hog("actor", path, resources={"second": 1})
    found: dict[str, Any] = {"taken": watch_hog(path), "of": len(refs)}
    found |= {"living": [name for name, each in pids.items() if lives(each)], "leases": opened(payloads)}

    def is_whole() -> bool:
        figures = safe_refs.stats()
        return figures is not None and figures.recovering == 0

    found["whole again"] = comes(is_whole, 40)
    print(json.dumps(found))
    del hog
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call] # Ray leaves this one untyped


if __name__ == "__main__":
    if sys.argv[1] == "one":
        on_one_node(*sys.argv[2:])
    else:
        on_one_of_two_nodes(*sys.argv[2:])
