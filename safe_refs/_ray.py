"""The one file that touches Ray's private API, and what the rest of safe_refs wants of Ray beyond its everyday calls.

What only a Ray Client needs is in `_ray_client.py` beside it.

Each function that goes beyond Ray's public API says why, since which Ray it has been seen to work, and what happens without it;
tests/test_ray_facts.py tries each against the Ray at hand, and `make test-oldest` against the oldest that we support. Nothing
here imports Ray before somebody else has: only then can a reference exist.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import _ray_client
from .errors import RegistryUnavailableError, UnsupportedReferenceError

if TYPE_CHECKING:
    import ray

T = TypeVar("T")

NAMESPACE = "safe_refs"
_KEYS = b"safe_refs:"
_ASKED_AT_ONCE = 1000  # references; 17 microseconds each


class Connection(NamedTuple):
    """Which cluster this process is connected to, as which job, and whether by Ray Client. Changes with every `ray.init`."""

    cluster: bytes
    job: str
    client: bool = False


class StoreUsage(NamedTuple):
    """Figures of the object stores of all nodes together, as Ray counts them.

    Attributes:
        used_bytes: in memory now, objects in use and cached copies alike.
        objects: how many objects that is.
        spilled_bytes: written to disk since the cluster started; never goes down.
        primary_bytes: the part of `used_bytes` that Ray may not drop, as somebody still counts on it and no copy is on disk.
            With what lies in the spill directory that is what references pin; the rest of `used_bytes` is cache.
    """

    used_bytes: int
    objects: int
    spilled_bytes: int
    primary_bytes: int


def is_loaded() -> bool:
    """Whether Ray has been imported in this process, by whomever."""
    return "ray" in sys.modules


# Ray's core worker, which is another one after each `ray.init`, and where it is connected to: asking costs 10 microseconds.
_known: tuple[Any, Connection] | None = None


def connection() -> Connection:
    """The cluster and job that this process is connected to.

    Private: `Worker.current_cluster_and_job`, seen since Ray 2.52. Ray has no public name for a cluster; ids of objects repeat
    between clusters, so that a payload must say which it belongs to. Without it no payload could be made or read.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    global _known
    if is_loaded():
        import ray

        worker: Any = ray._private.worker.global_worker
        core = getattr(worker, "core_worker", None)
        if _known is not None and core is _known[0] and worker.connected:
            return _known[1]
        if not worker.connected:
            behind = _ray_client.server()
            if behind is None:
                raise _not_connected()
            return Connection(behind.cluster, behind.job, True)
        if ray.is_initialized():
            cluster, job = worker.current_cluster_and_job
            found = Connection(cluster.binary(), job.hex())
            if core is not None and not job.is_nil():
                _known = (core, found)
            return found
    raise _not_connected()


def _not_connected() -> RegistryUnavailableError:
    return RegistryUnavailableError(
        "Ray is not initialized in this process, so the registry can't be reached: call ray.init(address=...) for the "
        "cluster that the payload belongs to"
    )


def fetch(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """`ray.get` that never starts a Ray, for threads: `ray.get` itself does, in a process that has just left its cluster.

    Private: that `ray.get` is wrapped (`__wrapped__`), seen since Ray 2.52; without it, a moment of the same risk is left.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
        UnopenedActorError: see there.
    """
    import ray

    how = _ray_client.get if connection().client else getattr(ray.get, "__wrapped__", ray.get)
    return _get(how, ref, timeout_s)


def get(refs: Any, timeout_s: float) -> Any:
    """`ray.get` for answers of our own actors, whose errors keep nothing alive.

    Ray's own frame holds the error that it raises, and so, round in a circle, every reference in the frames below it, until the next
    garbage collection. In an idle process that may never come.

    Raises:
        UnopenedActorError: see there.
    """
    import ray

    return _get(ray.get, refs, timeout_s)


def value(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """`ray.get` for an object of the user's, whose error stays what it is; it keeps nothing alive, either."""
    import ray

    try:
        return ray.get(ref, timeout=timeout_s)
    except Exception as error:
        raise error.with_traceback(None)  # noqa: B904 # it is the same error


class UnopenedActorError(Exception):
    """An actor's handle in a call to one of our own actors, or in its answer, could not be opened: the actor's job has ended."""


def _get(how: Any, refs: Any, timeout_s: float) -> Any:
    try:
        return how(refs, timeout=timeout_s)
    except _ray_client.broken() as error:
        raise _ray_client.unavailable(error) from None
    except Exception as error:
        if _is_unopened_actor(error):
            raise UnopenedActorError from None
        raise error.with_traceback(None)  # noqa: B904 # it is the same error


def _is_unopened_actor(error: Exception) -> bool:
    """Whether Ray could not load an actor's class.

    Who gets a handle asks Ray's control store for the class, which is gone as soon as the actor's job has ended, unless that made a
    detached actor; that the actor itself is dead is told a moment later. Private: the text of the error that Ray makes of it, which
    names `load_actor_class` of `ray._private.function_manager`, and the None that it found in place of a class (not so where the
    store could not be asked), seen since Ray 2.52. Without it, Ray's own error would be raised in that moment.
    """
    import ray

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if not isinstance(cause, ray.exceptions.RaySystemError):
        return False
    text = str(cause)
    return "load_actor_class" in text and "NoneType" in text


@contextmanager
def met_inside(instead: Mapping[bytes, ray.ObjectRef[Any]] | None = None) -> Iterator[list[Any]]:
    """While it lasts, what this thread fetches shows the references that are inside, objects' and actors', as often as they stand.

    Private: Ray's pickles name the functions that make references again (`_object_ref_deserializer` and `_actor_handle_deserializer`
    in `ray._private.serialization`), and unpickling looks them up there; seen since Ray 2.52. Ray tells nobody what is inside an
    object. Without it, objects inside durable ones would die with their makers.

    Args:
        instead: by an object's id, what is to stand in its place.
    """
    import ray

    module: Any = ray._private.serialization
    met: list[Any] = []
    names = ("_object_ref_deserializer", "_actor_handle_deserializer")
    originals = {name: getattr(module, name) for name in names}
    me = threading.get_ident()

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def make(first: Any, *rest: Any) -> Any:
            if threading.get_ident() != me:
                return original(first, *rest)
            if instead is not None and first in instead:
                return instead[first]
            made = original(first, *rest)
            met.append(made)
            return made

        return make

    for name, original in originals.items():
        setattr(module, name, watched(original))
    try:
        yield met
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def nodes_of(ref: ray.ObjectRef[Any], timeout_s: float) -> list[str]:
    """Ids of the nodes whose stores have an object, in memory or on disk; none for a small one, that its owner has, or if unknown."""
    try:
        place = _locations([ref], timeout_s).get(ref, {})
    except TimeoutError:
        return []
    return [str(node) for node in place.get("node_ids", ())]


def ref_of_response(response: Any, timeout_s: float) -> ray.ObjectRef[Any]:
    """The reference of a Serve `DeploymentResponse`'s result, once the request has been given to a replica.

    Semi-public: `DeploymentResponse._to_object_ref_sync`, which Ray calls a developer API, seen since Ray 2.52. Without it a response
    would be refused, as Serve refuses to pickle it.

    Raises:
        UnsupportedReferenceError: there is none to be had here: an event loop is running, which must not wait, or the handle passes
            values and not references.
        TimeoutError: no replica took the request in time.
        Exception: what Serve raises for a request that was cancelled or turned away.
    """
    try:
        ref: ray.ObjectRef[Any] = response._to_object_ref_sync(_timeout_s=timeout_s)
    except RuntimeError as error:  # Serve says why, and what to do
        name = "ray.serve.handle.DeploymentResponse"
        what = f"a {name}, whose reference can't be had here ({error})"
        remedy = "in an event loop, `await response` for its value, or pickle in a thread, as aio.dumps_many does"
        raise UnsupportedReferenceError.of(response, what, remedy, kind=name) from error
    return ref


def wait(refs: Sequence[Any], how_many: int, timeout_s: float) -> list[Any]:
    """`ray.wait`, which fetches nothing; those that are there.

    Raises:
        RegistryUnavailableError: this process is a client that has lost its server.
    """
    import ray

    return _asked(
        lambda: ray.wait(list(refs), num_returns=how_many, timeout=timeout_s, fetch_local=False)[0], timeout_s
    )


def _asked(call: Callable[[], T], timeout_s: float = 0.0) -> T:
    """Ask Ray something; see `_ray_client.asked`."""
    return _ray_client.asked(call, timeout_s) if _ray_client.was_here() else call()


def put(value: Any) -> ray.ObjectRef[Any]:
    """`ray.put`; see `wait`."""
    import ray

    return _asked(lambda: ray.put(value))


def node_and_process() -> tuple[str, int]:
    """This process's node id (56 hexadecimal digits) and process id. Of a client: its server's node, and its own process id."""
    behind = _ray_client.server()
    if behind is not None:
        return behind.node, os.getpid()
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def nodes() -> list[str]:
    """Node ids of the living nodes, first the head node, where Ray's own control service runs.

    The resource `node:__internal_head__` marks it; Ray's own libraries go by it (seen since Ray 2.52). Without it the registry
    starts on whichever node comes first.
    """
    import ray

    rows = _asked(lambda: ray.nodes())  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    living = {str(row["NodeID"]): "node:__internal_head__" in row["Resources"] for row in rows if row["Alive"]}
    return sorted(living, key=lambda node: (not living[node], node))


def kv_get(key: str) -> bytes | None:
    """A value in the cluster's control store, which outlives every actor; None if there is none. About half a millisecond.

    Semi-public, like its two neighbours: `ray.experimental.internal_kv`, seen since Ray 2.52. Nothing public outlives the registry;
    without it a registry could have one shard only, and a restart of it could not be told from its first start.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _asked(lambda: _internal_kv_get(_KEYS + key.encode()))
    return value


def kv_put(key: str, value: bytes, *, overwrite: bool = True) -> None:
    """Set a value in the control store; without `overwrite` only if there is none."""
    from ray.experimental.internal_kv import _internal_kv_put

    _asked(lambda: _internal_kv_put(_KEYS + key.encode(), value, overwrite=overwrite))


def kv_delete(key: str) -> None:
    """Delete a value in the control store, if there is one."""
    from ray.experimental.internal_kv import _internal_kv_del

    _asked(lambda: _internal_kv_del(_KEYS + key.encode()))


def count_up(key: str) -> int:
    """Count one more in the control store, and return the new count, from 1. Two that count at once may get the same."""
    count = int(kv_get(key) or 0) + 1
    kv_put(key, str(count).encode())
    return count


def named_actor(name: str, class_: type) -> Any:
    """The handle of one of our own actors, which is of that class.

    Raises:
        ValueError: there is no such actor.
        RegistryUnavailableError: this process is a client that has lost its server.
    """
    import ray

    return _asked(lambda: methods_known(ray.get_actor(name, namespace=NAMESPACE), class_))


def methods_known(handle: Any, class_: type) -> Any:
    """The handle of one of our own actors, so that a client need not ask for its methods; see `_ray_client.with_methods`."""
    return _ray_client.with_methods(handle, class_) if _ray_client.is_handle(handle) else handle


def _core_worker() -> Any:
    """The native side of this process: private, and set at run time only, so that Ray's types don't know it."""
    import ray

    worker: Any = ray._private.worker.global_worker
    return worker.core_worker


def is_actor_handle(reference: Any) -> bool:
    """Whether a reference is an actor's handle, and not an object's."""
    import ray

    return isinstance(reference, ray.actor.ActorHandle)


def is_weak(handle: Any) -> bool:
    """Whether a handle of an actor keeps that actor alive no more than a name would: `ray.get_actor` gives such handles.

    Private: `ActorHandle._ray_weak_ref`, seen since Ray 2.52. Without it a payload that holds such a handle and a real one of the
    same actor may hold only the former. A client's handles don't have it: its server has one handle of an actor, whatever the client
    has; and a client must not be asked for an attribute, as it looks at the actor for it.
    """
    return bool(vars(handle).get("_ray_weak_ref", False))


def counted_ref(reference: Any) -> ray.ObjectRef[Any]:
    """What Ray counts for a reference: itself, or for an actor's handle the id of an object that stands for the actor.

    Private: `CoreWorker.serialize_actor_handle`, with which Ray itself passes handles on, seen since Ray 2.52. Without it leases of
    actors could not be held.
    """
    if not is_actor_handle(reference):
        ref: ray.ObjectRef[Any] = reference
        return ref
    _, standing_for = _core_worker().serialize_actor_handle(reference._actor_id)
    found: ray.ObjectRef[Any] = standing_for
    return found


def id_of(reference: Any) -> bytes:
    """Id of the object that a reference names, or that stands for its actor."""
    return counted_ref(reference).binary()


def objects(references: Iterable[Any]) -> list[ray.ObjectRef[Any]]:
    """Those that are objects' references, and not actors' handles."""
    return [each for each in references if not is_actor_handle(each)]


def actors(references: Iterable[Any]) -> list[Any]:
    """Those that are actors' handles."""
    return [each for each in references if is_actor_handle(each)]


# Of each actor that this process has interned handles of, the one that is used.
_interned: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()


def interned(references: Iterable[Any]) -> list[Any]:
    """The same references, in which each actor has one handle, the same one each time; see `touch_zero`."""
    found = list(references)
    for number, reference in enumerate(found):
        if is_actor_handle(reference) and not is_weak(reference):
            found[number] = _interned.setdefault(reference._actor_id.binary(), reference)
    return found


def touchable(references: Iterable[Any]) -> list[Any]:
    """Those of which an owner is to know who holds them: objects, and actors that are owned."""
    return [each for each in references if not is_actor_handle(each) or owner_of(each)]


def known_actors(ids: Iterable[bytes]) -> set[bytes]:
    """Those of these ids that stand for actors of which this process has handles, and that somebody owns.

    Private: `CoreWorker.get_owner_address`, see `owner_of`; Ray's counts leave actors out.
    """
    return {id_ for id_ in ids if _stands_for_actor(id_) and _has_owner(id_)}


def _stands_for_actor(id_: bytes) -> bool:
    """Whether the object of this id stands for an actor: it counts as what the actor's creation returned.

    Private: how Ray makes ids of tasks and objects (`id.h`), seen since Ray 2.52; see `counted_ref`.
    """
    return id_[:8] == b"\xff" * 8 and id_[8:20] != b"\xff" * 12 and id_[24:] == b"\1\0\0\0"


def _has_owner(id_: bytes) -> bool:
    import ray

    try:
        _core_worker().get_owner_address(ray.ObjectRef(id_))
    except ValueError:
        return False
    return True


def is_actor_dead(handle: Any) -> bool:
    """Whether an actor is dead for good. About 1 ms.

    Private: the actor's row in the control store (`ray._private.state.actors`), seen since Ray 2.52. Without it a lease that hung on
    a process would be taken for good when that process has died, and its reader would get Ray's own error from the actor's calls.
    """
    import ray

    row = ray._private.state.actors(handle._actor_id.hex())
    return bool(not row or row.get("State") == "DEAD")


def let_go_of_actor(id_: bytes) -> None:
    """Take this process's count for an actor, by the id that stands for it, to zero, so that Ray tells its owner who else has it.

    Only for a process that ends: the actor's handles that it has keep nothing alive from then on. Ray's counts leave actors out, so
    that it is seen by the owner's being unknown when it is done.

    Private: see `touch_zero`.
    """
    import ray

    ref: Any = ray.ObjectRef(id_)
    for _ in range(_MOST_HANDLES):
        if not _has_owner(id_):
            return
        _core_worker().remove_object_ref_reference(ref)


_MOST_HANDLES = 1000  # of one actor, that a process may have


def owner_of(reference: Any) -> bytes:
    """Address of the process that owns an object, or created an actor, as Ray packs it; opaque, equal for equal owners.

    Empty for an actor that nobody owns as far as is known here: a detached one, or one got by its name.

    Private: `CoreWorker.get_owner_address`, seen since Ray 2.52. Without it a dead owner is only found when a value is fetched.
    """
    if not is_actor_handle(reference):
        return bytes(_core_worker().get_owner_address(reference))
    if is_weak(reference):
        return b""
    try:
        owner = bytes(_core_worker().get_owner_address(counted_ref(reference)))
    except ValueError:
        return b""
    is_own = _core_worker().get_worker_id().binary() in owner
    return owner if is_own or not _is_detached(reference._actor_id) else b""


def is_mortal(handle: Any) -> bool:
    """Whether an actor dies with its creator: all do that aren't detached, whoever's handle it is."""
    return not _is_detached(handle._actor_id)


_detached: dict[bytes, bool] = {}
_MOST_REMEMBERED = 4096


def _is_detached(actor_id: Any) -> bool:
    """Whether an actor outlives its creator. About 1 ms, once.

    Private: the actor's row in the control service, seen since Ray 2.52. A detached actor's handle names an owner everywhere but in
    that owner. Without it a lease of a detached actor would end with the actor's creator.
    """
    from ray.core.generated import gcs_pb2

    known = _detached.get(actor_id.binary())
    if known is not None:
        return known
    row = _accessor().get_actor_info(actor_id)
    if row is None:
        return False  # it is being created
    actor = gcs_pb2.ActorTableData()  # type: ignore[attr-defined] # generated at build time
    actor.ParseFromString(row)
    if len(_detached) >= _MOST_REMEMBERED:
        _detached.clear()
    _detached[actor_id.binary()] = found = bool(actor.is_detached)
    return found


def _accessor() -> Any:
    """What asks the control service. Private: `ray._private.state`, seen since Ray 2.52."""
    import ray

    state: Any = ray._private.state.state
    accessor = state._connect_and_get_accessor() if hasattr(state, "_connect_and_get_accessor") else None
    if accessor is None:
        state._really_init_global_state()
        accessor = state.global_state_accessor
    return accessor


def transport_of() -> Callable[[ray.ObjectRef[Any]], object]:
    """By what a reference tells that its value isn't in Ray's object store: false for the usual ones, 20 nanoseconds each.

    Actor methods and `ray.put` with a tensor transport make others ("RDT", Ray Direct Transport, or GPU objects). Their value stays
    in the process that made it. When Ray passes such a reference on, a record goes along, with a handle of the actor that has it, and
    who borrows keeps that record for good (Ray issue 57962): held by a registry, the reference would keep the actor alive after every
    release. One whose value isn't made yet Ray itself refuses to pass on (Ray issue 59644).

    Undocumented: `ObjectRef.tensor_transport`, seen since Ray 2.52 (there 0 stands for the object store, now None). Without it such
    references pass for usual ones, with what is said above.
    """
    import ray

    return getattr(ray.ObjectRef, "tensor_transport", None) or (lambda ref: None)


def ownerless(refs: Iterable[Any]) -> Any:
    """The first of `refs` of which Ray doesn't know the owner; None if there is none. See `owner_of`."""
    for ref in refs:
        try:
            owner_of(ref)
        except ValueError:
            return ref
    return None


def owner_answers(ref: Any, timeout_s: float) -> bool:
    """Whether the owner of an object or actor could be asked about it; a single silence may be the network's (see `is_surely_dead`).

    Raises:
        TimeoutError: the owner neither answers nor refuses: it hangs.
    """
    counted = counted_ref(ref)
    return counted in _locations([counted], timeout_s)


def _locations(refs: Sequence[ray.ObjectRef[Any]], timeout_s: float) -> Any:
    """Where objects of *one* owner are, and how large: `ray.experimental.get_object_locations`, seen since Ray 2.52.

    Never for several owners in one call, and never for more than one of Ray's batches (10,000): Ray counts its batches while it
    sends them, and a quick answer to the first then ends the whole process ("Promise already satisfied", Ray issue 65523).
    Objects about which the owner could not be asked are left out.
    """
    from ray.experimental import get_object_locations

    return get_object_locations(list(refs), timeout_ms=int(timeout_s * 1000))


def is_surely_dead(owner: bytes) -> bool:
    """Whether Ray's control service says that the process with this address is dead, or its node is. False where it doesn't know.

    Private: `GlobalState.get_worker_info` of the control service, and the layout of an owner's address (`common_pb2.Address`), seen
    since Ray 2.52. About 1 ms. A process that was stopped, or that the network cut off, is not dead. Without it no lease would end
    because of its owner, and who loads it would get Ray's own error from `ray.get`.
    """
    import ray
    from ray.core.generated import common_pb2, gcs_pb2

    address = common_pb2.Address()  # type: ignore[attr-defined] # generated at build time
    address.ParseFromString(owner)
    row = _accessor().get_worker_info(ray.WorkerID(address.worker_id))
    if row is None:
        return False
    worker = gcs_pb2.WorkerTableData()  # type: ignore[attr-defined] # likewise
    worker.ParseFromString(row)
    if not worker.is_alive:
        return True
    node_id = (address.node_id if hasattr(address, "node_id") else address.raylet_id).hex()
    nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}  # type: ignore[no-untyped-call] # Ray leaves it untyped
    return nodes.get(node_id) is False


@functools.lru_cache(maxsize=1)
def can_anchor() -> bool:
    """Whether this Ray has the private calls that `touch_zero` needs; seen since Ray 2.52.

    Without them a pin by a process that only borrows a reference hangs on that process, and the registry says so.
    """
    import ray._raylet

    native: Any = ray._raylet  # Ray's types don't know what is in there
    return all(hasattr(native.CoreWorker, name) for name in _ANCHORING_CALLS)


_ANCHORING_CALLS = (
    "add_object_ref_reference",
    "current_actor_is_asyncio",
    "current_actor_max_concurrency",
    "deserialize_and_register_object_ref",
    "get_all_reference_counts",
    "get_owner_address",
    "remove_object_ref_reference",
    "serialize_object_ref",
)


def surroundings() -> str:
    """What a task needs to read and write the objects of this process: its runtime environment, and from where it imports, as JSON.

    Ray gives its workers the folder of their own job's driver; the tasks that copy are of another job.
    """
    import ray

    context = ray.get_runtime_context()
    said: str = _asked(lambda: context.get_runtime_env_string())  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    env = json.loads(said)
    if _ray_client.server() is not None:
        return json.dumps(
            {"env": env, "path": []}, sort_keys=True
        )  # its folders are no node's, and Ray's workers have none of them
    installed = (sys.prefix, sys.base_prefix)
    path = [entry for entry in sys.path if Path(entry).is_absolute() and not entry.startswith(installed)]
    return json.dumps({"env": env, "path": path}, sort_keys=True)


def runtime_env_for(wanted_surroundings: str) -> dict[str, Any]:
    """The runtime environment for a task that runs in such surroundings; empty where it is this process's own.

    What this process has and the other hasn't (environment variables, say) Ray passes on to the task all the same.
    """
    wanted, own = json.loads(wanted_surroundings), json.loads(surroundings())
    env: dict[str, Any] = {} if wanted["env"] == own["env"] else dict(wanted["env"])
    more = [entry for entry in wanted["path"] if entry not in sys.path]
    if more:
        variables = env.get("env_vars") or wanted["env"].get("env_vars") or {}
        before = variables.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        # Behind what is there; and other workers than those without, which may know modules of the same names.
        path = os.pathsep.join([*filter(None, [before]), *more])
        env["env_vars"] = {**variables, "PYTHONPATH": path}
    return env


def own_address() -> bytes:
    """What `is_surely_dead` needs to know of this process, or of a client's server. Private: see there."""
    behind = _ray_client.server()
    if behind is not None:
        return _pack_address(behind.worker, behind.node)
    import ray

    context = ray.get_runtime_context()
    return _pack_address(context.get_worker_id(), context.get_node_id())


@functools.lru_cache(maxsize=4)
def _pack_address(worker_id: str, node_id: str) -> bytes:
    from ray.core.generated import common_pb2

    address = common_pb2.Address()  # type: ignore[attr-defined] # generated at build time
    address.worker_id = bytes.fromhex(worker_id)
    setattr(address, "node_id" if hasattr(address, "node_id") else "raylet_id", bytes.fromhex(node_id))
    return bytes(address.SerializeToString())


def is_same_process(one: bytes, other: bytes) -> bool:
    """Whether two addresses, of `owner_of` or `own_address`, are of the same process."""
    from ray.core.generated import common_pb2

    parsed = [common_pb2.Address(), common_pb2.Address()]  # type: ignore[attr-defined] # generated at build time
    parsed[0].ParseFromString(one)
    parsed[1].ParseFromString(other)
    return bool(parsed[0].worker_id == parsed[1].worker_id)


def owns_all(process: bytes, owners: Iterable[bytes]) -> bool:
    """Whether a process, by its `own_address`, is the owner in all of what `owner_of` gave; what nobody owns doesn't count."""
    from ray.core.generated import common_pb2

    parsed = common_pb2.Address()  # type: ignore[attr-defined] # generated at build time
    parsed.ParseFromString(process)
    return all(not owner or parsed.worker_id in owner for owner in owners)


def describe(address: bytes) -> str:
    """A process, by what `own_address` gave there, for people."""
    from ray.core.generated import common_pb2

    parsed = common_pb2.Address()  # type: ignore[attr-defined] # generated at build time
    parsed.ParseFromString(address)
    node_id = parsed.node_id if hasattr(parsed, "node_id") else parsed.raylet_id
    return f"the process of worker {parsed.worker_id.hex()[:8]} on node {node_id.hex()[:8]}"


def borrowed(refs: Iterable[Any]) -> list[Any]:
    """Those of `refs` that other processes own. An owner's address contains its worker id; see `owner_of`."""
    import ray

    core = _core_worker()
    me = core.get_worker_id().binary()
    return [
        ref
        for ref in refs
        if me not in (core.get_owner_address(ref) if type(ref) is ray.ObjectRef else owner_of(ref) or me)
    ]


def still_counted(ids: Iterable[bytes]) -> set[bytes]:
    """Those of these objects that this process still has references to. Private: see `counted`."""
    counts = _core_worker().get_all_reference_counts()
    return {id_ for id_ in ids if counts.get(id_.hex().encode(), {}).get("local")}


def references(ids: Iterable[bytes]) -> list[ray.ObjectRef[Any]]:
    """References to objects that this process has references to already, so that Ray knows their owners here."""
    import ray

    return [ray.ObjectRef(id_) for id_ in ids]


def is_actor() -> bool:
    """Whether this process is an actor's."""
    import ray

    return ray.get_runtime_context().get_actor_id() is not None


def is_told_to_end() -> bool:
    """Whether this actor has been told to end: it called `exit_actor`, or its last handle was dropped.

    Private: `CoreWorker.get_current_actor_should_exit`, and the actor's row in the control store (`ray._private.state.actors`), seen
    since Ray 2.52. About 1 ms. Without it leases that hang on an actor are lost when its handle is dropped.
    """
    import ray

    if _core_worker().get_current_actor_should_exit():
        return True
    row = ray._private.state.actors(ray.get_runtime_context().get_actor_id())
    return bool(row.get("State") == "DEAD")


def call_before_exit(hook: Callable[[], None]) -> None:
    """Call `hook` when this worker is told to end, while Ray still answers: by `exit_actor`, or by SIGTERM.

    Private: both call `raise_sys_exit_with_custom_error_message`, each looking it up in its own module (`ray.actor`,
    `ray._private.worker`), seen since Ray 2.52. Ray has no hook that comes before it tells owners that this process is gone:
    `__ray_shutdown__` and `atexit` come later. Without it leases that hang on a process are lost when it ends in one of these ways.
    """
    import ray

    for module in (ray.actor, ray._private.worker):
        original = getattr(module, "raise_sys_exit_with_custom_error_message", None)
        if original is not None:
            setattr(module, "raise_sys_exit_with_custom_error_message", _first(hook, original))  # noqa: B010 # Ray's types hide it


def _first(hook: Callable[[], None], then: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(then)
    def both(*args: Any, **kwargs: Any) -> Any:
        hook()
        return then(*args, **kwargs)

    return both


def is_alone() -> bool:
    """Whether nothing but the caller can be using references in this process now, nor until the caller returns.

    True in the main thread of a plain task, of an actor without concurrency, and of a driver, if no Python threads are at work but
    Ray's and safe_refs' own. Private: what an actor may do at once, seen since Ray 2.52; the frames of threads are CPython's.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # also in actors with concurrency groups, where no method runs in the main thread
    core = _core_worker()
    if core.current_actor_is_asyncio() or core.current_actor_max_concurrency() > 1:
        return False
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return False  # what is awaited is brought by threads of Ray's that no list shows
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    mine = threading.get_ident()
    return all(
        thread == mine or names.get(thread, "").startswith(_HARMLESS_THREADS) for thread in sys._current_frames()
    )


# Ray's own threads print logs and collect garbage (see `_no_collection`); ours touch no reference of the user's.
_HARMLESS_THREADS = ("ray_", "PythonGCThread", "safe_refs-")


class Told(Enum):
    """What became of an attempt to tell an owner who holds its object.

    YES: it knows this process, and was told to whom this process passed the reference. UNKNOWN: it doesn't know this process, and so
    was told nothing. BUSY: the reference is an argument of a call in flight, and so could not be touched.
    """

    YES = 1
    UNKNOWN = 2
    BUSY = 3


def touch_zero(refs: Sequence[Any]) -> list[Told]:
    """Make Ray tell the owners of `refs` to whom this process passed them, and keep them all the same: see `registry.couriers`.

    Ray tells an owner when a borrower's count for an object reaches zero. This takes the counts to zero and up again: about 120
    microseconds for one reference, 15 for each further one, and 0.5 for each that this process counts. In between anybody else in
    this process who uses one of them gets an error, so the caller must be alone (`is_alone`), or keep all others off. Afterwards
    the owner does not know this process, until somebody that it knows passes it the reference again.

    Neither a signal handler's exception nor a garbage collection comes in between: the steps run in one call of C.

    Of an actor, for which Ray shows no counts, the process must have one handle, as `interned` gives. That its count was zero is seen
    by Ray's not knowing the owner any more; where that isn't seen, it may also be that the handle is an argument of a call in flight.

    Private: `get_all_reference_counts` and the calls that `ObjectRef` itself makes when it begins and ends, seen since Ray 2.52.

    Args:
        refs: each object, or handle of an actor, once. Somebody else must hold them by now, and have said so to this process by
            answering a call that brought them, since they were touched last: who holds is what there is to tell, and by what remains
            of that it is seen whether it was told.
    """
    import ray

    core = _core_worker()
    nil: Any = ray.ObjectRef.nil()
    down: list[Callable[[], Any]] = []
    up: list[Callable[[], Any]] = []
    if any(map(is_actor_handle, refs)):
        found = iter(touch_zero(objects(refs)))
        return [_touch_actor(ref) if is_actor_handle(ref) else next(found) for ref in refs]
    told: dict[bytes, Told] = {ref.hex().encode(): Told.BUSY for ref in refs}
    with _no_collection() as quiet:
        counts = core.get_all_reference_counts() if quiet else {}
        for ref, key in zip(refs, told, strict=True):
            mine = counts.get(key)
            if mine is None or mine["submitted"] or not mine["local"]:
                continue
            _, owner, status = core.serialize_object_ref(ref)
            down += [functools.partial(core.remove_object_ref_reference, ref)] * mine["local"]
            up += [functools.partial(core.add_object_ref_reference, ref)] * mine["local"]
            up.append(functools.partial(core.deserialize_and_register_object_ref, ref.binary(), nil, owner, status))
            told[key] = Told.YES
        del counts
        if not down:
            return list(told.values())
        # What this process has forgotten in between it has told the owner.
        steps: list[Callable[[], Any]] = [*down, functools.partial(core.get_all_reference_counts), *up]
        call: Any = functools.partial.__call__
        remembered = list(map(call, steps))[len(down)]
    for key, state in told.items():
        if state is Told.YES and key in remembered:
            told[key] = Told.UNKNOWN
    return list(told.values())


def _touch_actor(handle: Any) -> Told:
    """`touch_zero` for the one handle that this process has of an actor."""
    import ray

    core = _core_worker()
    with _no_collection() as quiet:
        if not quiet:
            return Told.BUSY
        state, ref = core.serialize_actor_handle(handle._actor_id)
        for _ in range(2):  # the handle's count, and that of `ref`
            core.remove_object_ref_reference(ref)
        try:
            core.get_owner_address(ref)
            told = Told.UNKNOWN
        except ValueError:
            told = Told.YES
        for _ in range(2):
            core.add_object_ref_reference(ref)
        if told is Told.YES:
            core.deserialize_and_register_actor_handle(state, ray.ObjectRef.nil(), False)
    return told


@contextmanager
def _no_collection() -> Iterator[bool]:
    """Keep the garbage collector off, also in Ray's own thread for it; False if it is at work just now.

    It could drop a reference that has been counted already, and the count would be one too high from then on.
    """
    window = threading.Lock()
    me = threading.get_ident()
    seen: list[str] = []

    def hold_off(phase: str, _: object) -> None:
        if threading.get_ident() == me:
            seen.append(phase)
        elif phase == "start":
            with window:
                pass

    was_on = gc.isenabled()
    gc.disable()
    gc.callbacks.append(hold_off)
    try:
        with window:
            gc.collect(0)  # does nothing, and calls nobody, if another thread is collecting
            yield "start" in seen
    finally:
        gc.callbacks.remove(hold_off)
        if was_on:
            gc.enable()


def sizes(refs: Iterable[ray.ObjectRef[Any]], timeout_s: float) -> dict[ray.ObjectRef[Any], int]:
    """Bytes (data and metadata) of those of `refs` that exist already and whose owner answers in time; one call for each owner."""
    by_owner: dict[bytes, list[ray.ObjectRef[Any]]] = {}
    for ref in objects(refs):
        by_owner.setdefault(owner_of(ref), []).append(ref)
    found: dict[ray.ObjectRef[Any], int] = {}
    for theirs in by_owner.values():
        for start in range(0, len(theirs), _ASKED_AT_ONCE):
            try:
                places = _locations(theirs[start : start + _ASKED_AT_ONCE], timeout_s)
            except TimeoutError:
                break  # this owner hangs; the others may answer
            found.update(
                {ref: place["object_size"] for ref, place in places.items() if place["object_size"] is not None}
            )
    return found


def counted(ids: Iterable[bytes]) -> list[bytes]:
    """Those of these objects that this process still knows anything of, be it only who else holds them.

    Private: `CoreWorker.get_all_reference_counts`, seen since Ray 2.52; its keys are hexadecimal in bytes. Used by `shutdown`,
    which waits until what it let go of is really gone, and by couriers; without it, they would have to wait a fixed time.
    """
    counts = _core_worker().get_all_reference_counts()
    return [id_ for id_ in ids if id_.hex().encode() in counts or (_stands_for_actor(id_) and _has_owner(id_))]


def store_usage() -> StoreUsage:
    """What the object stores hold now, all nodes together. Needs `grpcio` (the extra `demo`).

    Private: `ray._private.internal_api.get_memory_info_reply`, seen since Ray 2.52; the same figures that `ray memory` prints.
    Only the demo, the benchmarks and the tests use it.

    Raises:
        ModuleNotFoundError: `grpcio` isn't installed.
    """
    import ray
    from ray._private.internal_api import get_memory_info_reply

    # Ray leaves both untyped.
    state = _cluster_state(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats  # type: ignore[no-untyped-call]
    return StoreUsage(
        used_bytes=int(stats.object_store_bytes_used),
        objects=int(stats.num_local_objects),
        spilled_bytes=int(stats.spilled_bytes_total),
        primary_bytes=int(stats.object_store_bytes_primary_copy),
    )


@functools.lru_cache(maxsize=1)
def _cluster_state(gcs_address: str) -> Any:
    """Ray's view of a cluster, kept: making one anew for each look has been seen to crash Ray 2.48 after some hundreds."""
    from ray._private.internal_api import get_state_from_address

    return get_state_from_address(gcs_address)  # type: ignore[no-untyped-call] # Ray leaves it untyped


def wait_for_store(limit_bytes: int, timeout_s: float) -> StoreUsage:
    """Wait until the stores hold at most `limit_bytes`, or the time is over; return the last figures."""
    deadline = time.monotonic() + timeout_s
    while True:
        usage = store_usage()
        if usage.used_bytes <= limit_bytes or time.monotonic() > deadline:
            return usage
        time.sleep(0.05)
