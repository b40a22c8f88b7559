"""The cluster: its nodes, its control store, and the detached actors of ours that run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import client

NAMESPACE = "safe_refs"  # Ray's namespace of all our actors
_KEYS = b"safe_refs:"  # begins all our keys in the control store


def nodes() -> list[str]:
    """Ids of the living nodes. The head node, where Ray's control service runs, is the first.

    The resource `node:__internal_head__` marks the head node; Ray's own libraries rely on it (seen since Ray 2.52). Without it, the
    registry starts on whichever node comes first.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    rows = client.asked(lambda: ray.nodes())  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    living = {str(row["NodeID"]): "node:__internal_head__" in row["Resources"] for row in rows if row["Alive"]}
    return sorted(living, key=lambda node: (not living[node], node))


def kv_get(key: str) -> bytes | None:
    """A value in the cluster's control store, which outlives every actor; None if there is none. About half a millisecond.

    Semi-public, like `kv_put` and `kv_delete`: `ray.experimental.internal_kv`, seen since Ray 2.52. Nothing public outlives the
    registry. Without it, a registry could have one shard only, and nobody could tell its restart from its first start.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = client.asked(lambda: _internal_kv_get(_KEYS + key.encode()))
    return value


def kv_put(key: str, value: bytes, *, overwrite: bool = True) -> bool:
    """Set a value in the control store; without `overwrite` only if the key has none.

    Returns:
        Whether the value was written. True is certain. If Ray had to repeat the request, as an answer got lost, False may also mean
        that the first try wrote it: where that matters, put a value that nobody else puts, and read it back.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    # Ray returns whether the key had a value before, also if that was overwritten.
    was_there = client.asked(lambda: _internal_kv_put(_KEYS + key.encode(), value, overwrite=overwrite))
    return overwrite or not was_there


def kv_delete(key: str) -> None:
    """Delete a value in the control store, if there is one.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    from ray.experimental.internal_kv import _internal_kv_del

    client.asked(lambda: _internal_kv_del(_KEYS + key.encode()))


def count_up(key: str) -> int:
    """Add one to a count in the control store, and return the new count; the first is 1. Two callers at once may get the same."""
    count = int(kv_get(key) or 0) + 1
    kv_put(key, str(count).encode())
    return count


def named_actor(name: str, class_: type) -> Any:
    """Handle of an actor of ours that runs.

    Args:
        name: the actor's name.
        class_: the actor's class; a Ray Client's handle learns its methods from it.

    Raises:
        ValueError: there is no such actor.
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    return client.asked(lambda: methods_known(ray.get_actor(name, namespace=NAMESPACE), class_))


def methods_known(handle: Any, class_: type) -> Any:
    """The handle of an actor of ours, so that a Ray Client need not ask for its methods; see `client.with_methods`."""
    return client.with_methods(handle, class_) if client.is_handle(handle) else handle


def start_actor(
    name: str, class_: type, args: Sequence[Any] = (), *, place: int, options: Mapping[str, Any] | None = None
) -> Any:
    """Handle of a detached actor of ours. Starts the actor if it isn't running, but doesn't wait until it has started.

    Processes that start it at once get the same actor.

    Args:
        name: the actor's name.
        class_: the actor's class.
        args: for the class.
        place: number of the node, of those that `nodes` lists, counted on from the first again if there are fewer.
        options: more options for Ray, or other values than the ones below.

    Raises:
        ValueError: another process won the race for the name, and its actor is not listed yet, or no longer. Try again.
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        return named_actor(name, class_)  # `get_if_exists` would find it as well, but the nodes are asked for before
    except ValueError:
        pass
    all_options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",  # the job that happens to start it may end before those that use it
        "num_cpus": 0,
        # A byte of memory: Ray starts an actor that asks for no resource at all on any node, whatever its affinity (Ray PR 25360).
        "memory": 1,
        # A crashed one starts anew by itself. Other processes hold what it held.
        "max_restarts": -1,
        # A call to a dead one fails at once: the caller knows better than Ray whom to ask instead.
        "max_task_retries": 0,
    }
    living = nodes()
    if living:
        # Actors with consecutive places are on consecutive nodes. Place 0 is the head node, which no autoscaler removes. Soft, so
        # that an actor whose node is gone starts on another one.
        node = living[place % len(living)]
        all_options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
    all_options.update(options or {})
    return methods_known(ray.remote(class_).options(**all_options).remote(*args), class_)
