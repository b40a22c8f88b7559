"""Ray's worker processes: which cluster this process is connected to, which one it is, which ones own what, and which are dead.

`connection` and `borrowed` run in every `dumps`. In the usual case (a driver or worker that is connected; an `ObjectRef` that this
process owns) neither calls another function of ours.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import RegistryUnavailableError
from . import client, control
from .actors import counted_ref, is_actor_handle, is_detached, is_weak
from .native import check_basics, check_version, core_worker, frames, global_worker, gone
from .native import is_installed as is_installed
from .native import is_left as is_left


class Connection(NamedTuple):
    """Which cluster this process is connected to, as which job, and whether by Ray Client. Changes with every `ray.init`."""

    cluster: bytes
    job: str
    client: bool = False


# Ray's core worker, and where it is connected to. Each `ray.init` makes another core worker; asking Ray costs 10 microseconds.
# Bound: one pair. No lock: threads read and replace the pair as a whole, and two that ask at once get the same answer.
_known: tuple[Any, Connection] | None = None
# In a forked child: the core worker of its parent, which has none of its threads here, so that every call to it would wait for ever.
# Kept, as nobody knows how its destructor ends here.
_parents: Any = None

_AGAIN_S = 0.01
_NOT_CONNECTED = "Ray is not initialized in this process, so the registry can't be reached: call ray.init(address=...)"


def connection() -> Connection:
    """The cluster and job that this process is connected to.

    Private: `Worker.current_cluster_and_job`, seen since Ray 2.52. Ray has no public name for a cluster. Ids of objects repeat from
    one cluster to the next, so a payload must say which cluster it belongs to. Without it, no payload could be made or read.

    Raises:
        RegistryUnavailableError: Ray is not initialized in this process, or this is a worker's setup hook; or this Ray lacks what
            safe_refs needs.
    """
    global _known
    ray: Any = sys.modules.get("ray")
    worker: Any = getattr(sys.modules.get("ray._private.worker"), "global_worker", None)  # as in `native.global_worker`
    # Nobody has imported Ray yet (all of it), so no reference can exist; or nobody can any more.
    if worker is None or sys.is_finalizing():
        raise _not_connected()

    core = getattr(worker, "core_worker", None)
    known = _known
    if known is not None and core is known[0] and worker.connected:
        return known[1]
    if client.is_parents() or (core is not None and core is _parents):
        raise RegistryUnavailableError(
            "this process was forked from one that is connected to Ray. It has none of Ray's threads, and can't use Ray: fork before "
            "ray.init() and connect in the children, or start them by multiprocessing's 'spawn' or 'forkserver'"
        )
    if not worker.connected:
        server = client.server()
        if server is None:
            raise _not_connected()
        return Connection(server.cluster, server.job, True)
    if not ray.is_initialized():
        raise _not_connected()
    if is_left(core):
        raise gone()
    check_version(ray.__version__)
    if is_setting_up():
        raise RegistryUnavailableError(
            "this worker process is in its setup hook, where Ray can't call actors, so the registry can't be reached: only "
            "safe_refs.init works there; move the rest into the task or actor"
        )
    check_basics(worker)
    cluster, job = worker.current_cluster_and_job
    found = Connection(cluster.binary(), job.hex())
    if core is not None and not job.is_nil():  # a worker that has no job yet gets one with its first task
        _known = (core, found)
    return found


def is_connected_by(connection_: Connection) -> bool:
    """Whether this process is still connected as it was."""
    try:
        return connection() == connection_
    except RegistryUnavailableError:
        return False


def forget() -> None:
    """This process leaves its cluster: `connection` and `borrowed` are to look, the next time."""
    global _known, _own
    _known = _own = None


def is_setting_up() -> bool:
    """Whether this is a worker process that has had no task yet: its setup hook runs.

    In a setup hook, Ray 2.60 ends the process when an actor is called, or the runtime environment asked for: both look for those of
    the current task.

    Private: the worker's mode and `CoreWorker.get_task_depth`, 0 in drivers and in workers without a task, seen since Ray 2.52.
    Without it, a worker whose setup hook calls safe_refs would die.
    """
    ray = sys.modules.get("ray")
    worker = global_worker()
    if not worker or not worker.connected or worker.mode != ray.WORKER_MODE:  # type: ignore[union-attr]
        return False
    return bool(worker.core_worker.get_task_depth() == 0)


def _note_fork() -> None:
    """Remember in a forked child what its parent was connected by."""
    global _known, _own, _parents
    _known = _own = None
    _parents = getattr(global_worker(), "core_worker", None) or _parents


os.register_at_fork(after_in_child=_note_fork)


def _not_connected() -> RegistryUnavailableError:
    if not is_installed():
        return RegistryUnavailableError(
            "Ray is not installed in this Python, so the registry can't be reached: pip install 'ray>=2.52'"
        )
    return RegistryUnavailableError(_NOT_CONNECTED + " first")


def for_payload(error: RegistryUnavailableError) -> RegistryUnavailableError:
    """The error of `connection`, for a caller who has a payload or a handle."""
    if not str(error).startswith(_NOT_CONNECTED):
        return error
    return RegistryUnavailableError(_NOT_CONNECTED + " for the cluster that the payload belongs to")


def node_and_process() -> tuple[str, int]:
    """This process's node id (56 hexadecimal digits) and process id. Of a client: its server's node, and its own process id."""
    server = client.server()
    if server is not None:
        return server.node, os.getpid()
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def own_address() -> bytes:
    """Address of this process, or of a client's server, for `is_surely_dead` and `owns_all`. Private: see there."""
    server = client.server()
    if server is not None:
        return _pack_address(server.worker, server.node)
    import ray

    context = ray.get_runtime_context()
    return _pack_address(context.get_worker_id(), context.get_node_id())


@functools.lru_cache(maxsize=4)
def _pack_address(worker_id: str, node_id: str) -> bytes:
    address = _new_address()
    address.worker_id = bytes.fromhex(worker_id)
    setattr(address, "node_id" if hasattr(address, "node_id") else "raylet_id", bytes.fromhex(node_id))
    return bytes(address.SerializeToString())


def _parsed(address: bytes) -> Any:
    found = _new_address()
    found.ParseFromString(address)
    return found


def is_address(address: bytes) -> bool:
    """Whether these bytes are the address of some process, as `owner_of` gives it."""
    try:
        return bool(_parsed(address).worker_id)
    except Exception:  # protobuf's own, which is not the same class in all of its versions
        return False


def _new_address() -> Any:
    """Ray's record of a process's address (`common_pb2.Address`), private and seen since Ray 2.52."""
    from ray.core.generated import common_pb2

    return common_pb2.Address()  # type: ignore[attr-defined] # generated at build time


def node_of(parsed: Any) -> str:
    """The id of the node in a record of an address, in hexadecimal. Older versions of Ray have another name for it."""
    node: bytes = parsed.node_id if hasattr(parsed, "node_id") else parsed.raylet_id
    return node.hex()


def owner_of(reference: Any) -> bytes:
    """Address of the process that owns an object, or that created an actor. Opaque; equal for equal owners.

    Empty for an actor that has no owner as far as is known here: a detached actor, or one got by its name.

    Private: `CoreWorker.get_owner_address`, seen since Ray 2.52. Without it, a dead owner would only be noticed when somebody fetches
    the value.

    Raises:
        ValueError: this process doesn't know the owner of the object (see `ownerless`).
        RegistryUnavailableError: nor any other, as it is leaving the cluster.
    """
    core = core_worker()
    if not is_actor_handle(reference):
        try:
            return bytes(core.get_owner_address(reference))
        except ValueError as error:
            raise client.unless_left(error, core) from None
    if is_weak(reference):
        return b""
    try:
        owner = bytes(core.get_owner_address(counted_ref(reference)))
    except ValueError:
        return b""
    is_own = core.get_worker_id().binary() in owner
    return owner if is_own or not is_detached(reference._actor_id) else b""


# This process's worker id, and the core worker that has it. Replaced whole.
_own: tuple[Any, bytes] | None = None


def borrowed(refs: Iterable[Any]) -> list[Any]:
    """Those of `refs` that other processes own.

    Private: see `owner_of` and `native.core_worker`. An owner's address contains its worker id, so a search for this process's id in
    it is enough.
    """
    global _own
    import ray

    worker: Any = ray._private.worker.global_worker
    core = getattr(worker, "core_worker", None)
    known = _own
    if known is None or known[0] is not core:
        core = core_worker()
        _own = known = (core, core.get_worker_id().binary())
    me = known[1]
    found = []
    for ref in refs:
        # What nobody owns isn't borrowed.
        try:
            owner = core.get_owner_address(ref) if type(ref) is ray.ObjectRef else owner_of(ref) or me
        except ValueError:
            # Another thread prepares the end of this process, and has the count at zero just now; see `counts.touch_zero`.
            time.sleep(_AGAIN_S)
            owner = owner_of(ref) or me
        if me not in owner:
            found.append(ref)
    return found


def owns_all(process: bytes, owners: Iterable[bytes]) -> bool:
    """Whether one process is the owner in each of `owners`. An empty one, of what nobody owns, doesn't count.

    Args:
        process: its `own_address`.
        owners: addresses as `owner_of` gives them.
    """
    worker_id = _parsed(process).worker_id
    return all(not owner or worker_id in owner for owner in owners)


def ownerless(refs: Iterable[Any]) -> Any:
    """The first of `refs` whose owner this process doesn't know; None if there is none. A reference made of a bare id is one."""
    for ref in refs:
        try:
            owner_of(ref)
        except ValueError:
            return ref
    return None


def is_surely_dead(owner: bytes) -> bool:
    """Whether Ray's control service says that the process with this address is dead, or its node is. False where it doesn't know.

    A process that is stopped, or that the network has cut off, is not dead. About 1 ms. If the control service doesn't answer soon,
    nobody is surely dead.

    Private: the layout of an owner's address, seen since Ray 2.52, and `control.worker_row`. Without it, no lease would end because
    its owner died, and whoever loads it would get Ray's own error from `ray.get`.
    """
    if not is_address(owner):
        return False  # of what nobody owns
    address = _parsed(owner)
    try:
        worker = control.worker_row(address.worker_id)
        if worker is None:
            return False
        if not worker.is_alive:
            return True
        nodes = {node["NodeID"]: node["Alive"] for node in control.nodes()}
    except RegistryUnavailableError:
        return False
    return nodes.get(node_of(address)) is False


def is_driver() -> bool:
    """Whether this process is a driver (or a Ray Client, which is one by its server), rather than one for tasks or an actor.

    Private: the worker's mode, seen since Ray 2.52.
    """
    worker = global_worker()
    return client.server() is not None or bool(worker and worker.mode != sys.modules["ray"].WORKER_MODE)


def is_actor() -> bool:
    """Whether this process is an actor's."""
    import ray

    return ray.get_runtime_context().get_actor_id() is not None


def is_alone() -> bool:
    """Whether nothing but the caller can be using references in this process now, nor until the caller returns.

    True in the main thread of a plain task, of an actor without concurrency, and of a driver, if the only other Python threads are
    Ray's and safe_refs' own.

    Private: what an actor may run at once (`current_actor_is_asyncio`, `current_actor_max_concurrency`), seen since Ray 2.52; the
    list of threads with frames is CPython's. Without it, no process could anchor without risk to its own reads.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # in an actor with concurrency groups no method runs in the main thread
    core = core_worker()
    if core.current_actor_is_asyncio() or core.current_actor_max_concurrency() > 1:
        return False
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return False  # what the loop awaits is delivered by threads of Ray's that no list shows
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    mine = threading.get_ident()
    return all(thread == mine or names.get(thread, "").startswith(_HARMLESS_THREADS) for thread in frames())


# Ray's own threads print logs and collect garbage (see `counts._no_collection`). Ours touch no reference of the user's.
_HARMLESS_THREADS = ("ray_", "PythonGCThread", "safe_refs-")
