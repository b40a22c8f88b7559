"""A `shutdown` of the registry that comes to no end: nothing has ended, and everybody goes on.

`python -m tests.chaos.half_shutdown ADDRESS` is a process that is killed in the middle of one: when all shards have been asked to
refuse new leases, and none to end those that it has.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

import safe_refs
from safe_refs.registry.calls import Registry
from tests.support.processes import is_stopped

from .cluster import ROOT, kill

TIME_S = 3.0  # that a shutdown has; others' new leases may have to wait for as long
LITTLE_S = 1.0  # if a shard doesn't answer
_STARTS_S = 60.0


def refused() -> str:
    """Shut down, although other jobs have leases there; what is wrong with the outcome."""
    try:
        return f"a shutdown ended {safe_refs.shutdown(timeout=TIME_S)} leases of others"
    except (ValueError, safe_refs.RegistryUnavailableError):
        return ""


def with_a_silent_shard(pid: int) -> str:
    """Shut down with too little time, while a shard is stopped; what is wrong with the outcome."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 5
        while not is_stopped(pid) and time.monotonic() < until:
            time.sleep(0.01)
        return f"a shutdown ended {safe_refs.shutdown(force=True, timeout=LITTLE_S)} leases, and a shard was silent"
    except safe_refs.RegistryUnavailableError:
        return ""
    finally:
        os.kill(pid, signal.SIGCONT)


def killed_half_way(address: str) -> str:
    """Have a process shut down that is killed in the middle; what is wrong with the outcome."""
    command = [sys.executable, "-m", "tests.chaos.half_shutdown", address]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        status = process.wait(_STARTS_S)
    except subprocess.TimeoutExpired:
        kill(process.pid)
        process.wait()
        return "a shutdown did not come as far as it was to be killed at"
    return "" if status in (-signal.SIGKILL, 0) else f"a shutdown ended with status {status}"


def _main(address: str) -> None:
    import ray

    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    asks = Registry.ask

    def ask(self: Registry, calls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(call.method == "close" for call in calls.values()):
            os.kill(os.getpid(), signal.SIGKILL)
        return asks(self, calls, *args, **kwargs)

    Registry.ask = ask  # type: ignore[method-assign]
    try:
        safe_refs.shutdown(force=True, timeout=TIME_S)
    except safe_refs.RegistryUnavailableError:
        return  # a shard did not answer


if __name__ == "__main__":
    _main(sys.argv[1])
