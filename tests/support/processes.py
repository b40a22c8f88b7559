"""Processes of this machine: whether they live, and programs that tests run in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .waiting import comes, stays

DIES_S = 20.0

Driver = Callable[..., Any]

# What a driver's program begins with: its first argument is the cluster's address.
PRELUDE = """
import gc, json, pickle, sys, time
import ray
import safe_refs
address, *args = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="error")
"""

# What a program begins with that has a Ray of its own with three nodes on this machine.
NODES = """
import json, os, sys, time
os.environ["RAY_health_check_period_ms"] = "500"       # so that Ray notices the death of a node soon
os.environ["RAY_health_check_failure_threshold"] = "2"
import ray, safe_refs
from ray.cluster_utils import Cluster
from safe_refs._ray.cluster import nodes as living_nodes
from tests.support.shards import place

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150_000_000})
others = [cluster.add_node(num_cpus=1, object_store_memory=150_000_000) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
"""


def run_python(code: str, *args: str, timeout: float = 90, script: Path | None = None) -> Any:
    """Run a Python program in a process of its own; its last line of output, as JSON.

    Args:
        code: the program.
        args: for it.
        timeout: seconds.
        script: a file to write the program to, and run it from: then it is a script, which others may run, too.
    """
    if script is not None:
        script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, *(["-c", textwrap.dedent(code)] if script is None else [str(script)]), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"the program failed:\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def state(pid: int) -> str:
    """One letter, as in `ps`: R, S, T and so on; X where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def lives(pid: int) -> bool:
    """Whether a process of this machine is there, and no zombie."""
    return state(pid) not in "XZ"


def dies(pid: int, within_s: float = DIES_S) -> bool:
    """Wait for the end of a process; whether it came within that time."""
    return comes(lambda: not lives(pid), within_s)


def goes_on(pid: int, for_s: float = 1.5) -> bool:
    """Whether a process is still there when Ray has had its time to end it (control: `dies` in the same tests)."""
    stays(lambda: lives(pid), for_s)
    return True


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached each thread of a process; on a busy machine some go on for a moment."""
    return all(
        (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in Path(f"/proc/{pid}/task").iterdir()
    )


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Within the block, so many processes work without a pause, as other programs of this machine may."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
