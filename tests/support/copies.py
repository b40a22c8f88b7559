"""The actors that own copies: find one, look into it, kill it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import ray

from safe_refs._ray import cluster
from safe_refs.durability.owner import SafeRefsCopyOwner, owner_name, start

from .waiting import wait_until


def copy_owner(registry: str = "default", shard: int = 0) -> Any:
    """A shard's copy owner; a ValueError if it doesn't run."""
    return cluster.named_actor(owner_name(registry, shard), SafeRefsCopyOwner)


def copying(registry: str = "default") -> int:
    """For how many leases copies are being made, by the copy owner of the first shard."""
    try:
        found: int = ray.get(copy_owner(registry).copying.remote(), timeout=30)
    except ValueError:
        return 0
    return found


def owned(registry: str = "default") -> int:
    """How many copies it owns."""
    found: int = ray.get(copy_owner(registry).owned.remote(), timeout=30)
    return found


def pid_of_copy_owner(registry: str = "default", shard: int = 0) -> int:
    """The process that owns a shard's copies, once it answers; it is started if it has died."""
    pids = list[int]()

    def answers() -> bool:
        with suppress(ray.exceptions.RayActorError, ValueError):
            pids.append(ray.get(copy_owner(registry, shard).where.remote(), timeout=30)[1])
        if not pids:
            with suppress(ValueError):
                start(registry, shard)
        return bool(pids)

    wait_until(answers, 60)
    return pids[0]


def kill_copy_owner(registry: str = "default", shard: int = 0) -> None:
    """SIGKILL it."""
    os.kill(pid_of_copy_owner(registry, shard), signal.SIGKILL)
