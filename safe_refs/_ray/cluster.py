"""The cluster: its nodes, and the detached actors of ours that run on it.

What always holds: no wait for Ray's control service outlasts the caller's deadline; see `control`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Deadline
from . import classes, client, control, packages, requests

NAMESPACE = "safe_refs"  # Ray's namespace of all our actors
# Private: what names of "implicit" resources begin with (`kImplicitResourcePrefix` in Ray's `constants.h`; Ray Serve uses them), seen
# since Ray 2.52. Without them, actors of ours would start on any node.
_RESOURCE = "node:__internal_implicit_resource_safe_refs"


def nodes(deadline: Deadline | None = None) -> list[str]:
    """Ids of the living nodes. The head node, where Ray's control service runs, is the first.

    The resource `node:__internal_head__` marks the head node; Ray's own libraries rely on it (seen since Ray 2.52). Without it, the
    registry starts on whichever node comes first.

    Raises:
        RegistryUnavailableError: no answer in time.
    """
    rows = control.nodes(deadline)
    living = {str(row["NodeID"]): "node:__internal_head__" in row["Resources"] for row in rows if row["Alive"]}
    return sorted(living, key=lambda node: (not living[node], node))


def named_actor(name: str, class_: type, deadline: Deadline | None = None) -> Any:
    """Handle of an actor of ours that runs.

    Args:
        name: the actor's name.
        class_: the actor's class; a Ray Client's handle learns its methods from it.
        deadline: until when to wait for Ray's control service.

    Raises:
        ValueError: there is no such actor.
        RegistryUnavailableError: no answer in time.
    """
    classes.watch()
    return methods_known(control.named_actor(name, NAMESPACE, deadline), class_, deadline)


def methods_known(handle: Any, class_: type, deadline: Deadline | None = None) -> Any:
    """The handle of an actor of ours, so that a Ray Client need not ask for its methods; see `client.with_methods`."""
    if not client.is_handle(handle):
        return handle
    return client.asked(lambda: client.with_methods(handle, class_), requests.left_s(deadline))


def start_actor(
    name: str,
    class_: type,
    args: Sequence[Any] = (),
    *,
    place: int,
    options: Mapping[str, Any] | None = None,
    deadline: Deadline | None = None,
) -> Any:
    """Handle of a detached actor of ours. Starts the actor if it isn't running, but doesn't wait until it has started.

    Processes that start it at once get the same actor.

    Args:
        name: the actor's name.
        class_: the actor's class.
        args: for the class.
        place: number of the node, of those that `nodes` lists, counted on from the first again if there are fewer; or of one that
            comes after it, if that one's workers lack a package (see `packages`).
        options: more options for Ray, or other values than the ones below.
        deadline: until when to wait for Ray's control service.

    Raises:
        ValueError: another process won the race for the name, and its actor is not listed yet, or no longer. Try again.
        RegistryUnavailableError: no answer in time, and the actor may start nevertheless. Or a package is missing there.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    deadline = deadline or requests.soon()
    try:
        # `get_if_exists` would find it as well, but the nodes are asked for before.
        return named_actor(name, class_, deadline)
    except ValueError:
        pass
    all_options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",  # the job that happens to start it may end before those that use it
        "num_cpus": 0,
        # Neither its creation nor a call to it is a row in `ray list tasks`, whoever calls: handles say so, too.
        "enable_task_events": False,
        # Ray starts an actor that asks for no resource at all on any node, whatever its affinity (Ray PR 25360). Each node has one of
        # each such resource without counting it among its own, so that this takes room from nobody, and there always is some.
        "resources": {_RESOURCE: 0.0001},
        # Where memory is short, Ray kills first what it may restart, and of that the newest (`LeaseSpecification::IsRetriable` and
        # `worker_killing_policy_by_time.cc` in Ray's sources). So whoever needs a crashed one starts another.
        "max_restarts": 0,
        # A call to a dead one fails at once: the caller knows better than Ray whom to ask instead.
        "max_task_retries": 0,
    }
    living = nodes(deadline)
    if living:
        # Actors with consecutive places are on consecutive nodes. Place 0 is the head node, which no autoscaler removes. Soft, so
        # that an actor whose node is gone starts on another one.
        all_options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(packages.choose(living, place), soft=True)
    all_options.update(options or {})
    try:
        made = control.create_actor(class_, args, all_options, deadline)
    except ModuleNotFoundError as error:  # of a Ray Client's server, which opens the class
        raise packages.missing_at_server(error) from None
    return methods_known(made, class_, deadline)
