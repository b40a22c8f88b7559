"""What our own processes in a cluster take and have: for programs that tests run, which are drivers of a Ray of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from safe_refs._ray import cluster


def pids() -> dict[str, int]:
    """The processes of our actors in this cluster, by the actors' names."""
    found: dict[str, int] = {}
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["namespace"] == cluster.NAMESPACE:
            actor: Any = ray.get_actor(each["name"], namespace=cluster.NAMESPACE)
            row: Any = ray._private.state.actors(actor._actor_id.hex())
            if row.get("Pid"):
                found[each["name"]] = row["Pid"]
    return found


def environment(pid: int) -> dict[str, str]:
    """The environment variables that a process was started with."""
    rows = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return {name: value for name, _, value in (row.partition("=") for row in rows if row)}


def folder(pid: int) -> str:
    """The folder that a process runs in."""
    return str(Path(f"/proc/{pid}/cwd").readlink())


def idle_ms() -> dict[str, int]:
    """For how many milliseconds each node has been idle, as Ray's autoscaler is told; 0 for one that is not. By the node's id."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # Ray's types don't know it
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterResourceStateReply()  # type: ignore[attr-defined] # generated at build time
    service = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply.ParseFromString(service.get_cluster_resource_state(20))
    return {state.node_id.hex(): state.idle_duration_ms for state in reply.cluster_resource_state.node_states}
