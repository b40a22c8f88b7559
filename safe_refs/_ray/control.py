"""All that safe_refs asks Ray's control service (GCS), and how long it waits for each answer. Nothing else in the package asks it.

The control service may be silent for a while: it restarts, or its machine is overloaded. Most of Ray's functions then wait without a
limit. So a thread of ours makes each call, and the caller waits for that thread no longer than its own deadline (see `requests`).

| question | what it is for | a caller waits |
|---|---|---|
| `kv_get`, `kv_put`, `kv_delete` | the registry's topology, epoch, marks | to its deadline; Ray ends the request then, too |
| `job_get`, `job_put` | what `init` said in the driver of a job | the same |
| `named_actor` | the handle of a shard, relay, copy owner | to its deadline; all who ask for one name share a request |
| `create_actor` | starting one of those | the same |
| `nodes` | where to start them, which nodes have died | the same |
| `worker_row`, `actor_row` | whether a process, an actor is dead | the same |
| `class_in_store` | the class of an actor whose handle is being opened (`classes`) | to the deadline of the fetch |
| `client._find_server` | which cluster a Ray Client is connected to | `client._SERVER_S` |

What Ray itself asks, and what that means here:
- The first call through a new handle needs the actor's address, by a subscription. `remote()` returns at once, and the wait for the
  answer has a deadline anyway. `ray.kill`, `ray.put`, a task's or an anonymous actor's creation wait for nothing.
- Whoever opens an actor's handle asks for the actor's class, and holds a lock meanwhile that every `ray.get` of the process needs.
  See `classes`. If the user's own `ray.get` opens such a handle, others in that process wait for Ray's lock.
- The first task of a function asks whether the function is known already. Copy owners submit tasks, in a thread for which nobody
  waits without a deadline.

What always holds: no call here outlasts its deadline, except in the middle of Ray's own code (see `requests.asked`).

Raises everywhere: `RegistryUnavailableError` if there is no answer in time. What was to be done may be done nevertheless.

Private Ray API is named at each function; seen since Ray 2.52.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..config import Deadline
from . import client, environments
from .native import accessor, unsupported
from .requests import PATIENCE_S, asked, left_s, opening, silent, soon, this_thread

T = TypeVar("T")

_AGAIN_S = 0.1
_KEYS = b"safe_refs:"  # begins all our keys in the control store
_CLASSES = b"fun"  # the control store's namespace of them: Ray's `KV_NAMESPACE_FUNCTION_TABLE`


# Its key-value store. Semi-public: `ray.experimental.internal_kv`; of a process that is no Ray Client the client behind that, which
# takes a timeout. Nothing public outlives the registry. Without it, a registry could have one shard only, and nobody could tell its
# restart from its first start.


def kv_get(key: str, deadline: Deadline | None = None) -> bytes | None:
    """A value in the cluster's control store, which outlives every actor; None if there is none. About half a millisecond."""
    found: bytes | None = _kv("internal_kv_get", deadline, _KEYS + key.encode())
    return found


def kv_put(key: str, value: bytes, deadline: Deadline | None = None, *, overwrite: bool = True) -> bool:
    """Set a value in the control store; without `overwrite` only if the key has none.

    Returns:
        Whether the value was written. True is certain. If an answer was lost and Ray repeated the request, False may also mean that
        the first try wrote it. Where that matters, put a value that nobody else puts, and read it back.
    """
    added = _kv("internal_kv_put", deadline, _KEYS + key.encode(), value, overwrite)
    return overwrite or bool(added)


def kv_delete(key: str, deadline: Deadline | None = None) -> None:
    """Delete a value in the control store, if there is one."""
    _kv("internal_kv_del", deadline, _KEYS + key.encode())


def job_get(job: str, key: str, deadline: Deadline | None = None) -> bytes | None:
    """A value that was put for a job (its id, 8 hexadecimal digits); None if there is none."""
    found: bytes | None = _kv("internal_kv_get", deadline, _of_job(job, key), namespace=_CLASSES)
    return found


def job_put(job: str, key: str, value: bytes, deadline: Deadline | None = None) -> None:
    """Set a value for a job: it is there as long as the job runs, or a detached actor of it lives."""
    _kv("internal_kv_put", deadline, _of_job(job, key), value, True, namespace=_CLASSES)


def _of_job(job: str, key: str) -> bytes:
    """A key beside those of the job's remote functions, which Ray deletes when the job has no process left.

    Private: the beginning of those keys, `RemoteFunction:<job>:` in the namespace `fun`, seen since Ray 2.52. Without it, the values
    would stay in the control store.
    """
    return b":".join((b"RemoteFunction", job.encode(), _KEYS + key.encode()))


def count_up(key: str, deadline: Deadline | None = None) -> int:
    """Add one to a count in the control store, and return the new count; the first is 1. Two callers at once may get the same one."""
    count = int(kv_get(key, deadline) or 0) + 1
    kv_put(key, str(count).encode(), deadline)
    return count


def _kv(how: str, deadline: Deadline | None, key: bytes, *args: Any, namespace: bytes | None = None) -> Any:
    """Ask the key-value store: of a Ray Client by Ray's own function, which the client's server carries out."""
    import ray
    from ray.experimental import internal_kv

    try:
        gcs: Any = internal_kv.internal_kv_get_gcs_client()  # type: ignore[no-untyped-call] # Ray leaves this one untyped
        if gcs is None or client.was_here():
            by_client: Any = getattr(internal_kv, f"_{how}")
            answer = asked(functools.partial(by_client, key, *args, namespace=namespace), deadline)
            return not answer if how == "internal_kv_put" else answer  # there, whether the key had a value
        ask: Any = getattr(gcs, how)
        rest = (False, namespace) if how == "internal_kv_del" else (*args, namespace)
        deadline = soon(wait_s := left_s(deadline))
        # Only where it is brief: a shared request may have begun before the caller's own last write.
        shared = this_thread.is_brief and how == "internal_kv_get"
        while True:
            timeout_s = PATIENCE_S if shared else deadline.left_s()
            try:
                return asked(
                    functools.partial(ask, key, *rest, timeout=timeout_s), deadline, (how, key) if shared else None
                )
            except ray.exceptions.RpcError:  # the time is over, or the control service can't be reached just now
                if time.monotonic() + _AGAIN_S > deadline.at:
                    raise silent(wait_s) from None
                time.sleep(_AGAIN_S)
    except (AttributeError, TypeError) as error:
        if not ray.is_initialized():
            raise  # this process has just left its cluster
        raise unsupported(f"the control store's {how}", error) from error


def named_actor(name: str, namespace: str, deadline: Deadline | None = None) -> Any:
    """`ray.get_actor`.

    Raises:
        ValueError: there is no such actor.
    """
    import ray

    try:
        return asked(
            lambda: opening(lambda: ray.get_actor(name, namespace=namespace)), deadline, ("actor", namespace, name)
        )
    except ray.exceptions.GetTimeoutError:  # Ray's own limit, of a minute
        raise silent(left_s(deadline)) from None


def create_actor(
    class_: type, args: Sequence[Any], options: Mapping[str, Any], deadline: Deadline | None = None
) -> Any:
    """Handle of a named actor that is being created, or of the one that has the name already.

    Raises:
        ValueError: another process won the race for the name, and its actor is not listed yet, or no longer.
    """
    import ray

    def create() -> Any:
        made = environments.start(class_, args, options)
        return ray.get_actor(options["name"], namespace=options["namespace"]) if made is None else made

    return asked(lambda: opening(create), deadline, ("create", options["namespace"], options["name"]))


def nodes(deadline: Deadline | None = None) -> list[dict[str, Any]]:
    """`ray.nodes`."""
    import ray

    found: list[dict[str, Any]] = asked(lambda: ray.nodes(), deadline, "nodes")  # type: ignore[no-untyped-call] # Ray leaves it untyped
    return found


def worker_row(worker_id: bytes, deadline: Deadline | None = None) -> Any:
    """What it knows of a worker process: a `WorkerTableData`; None if it knows nothing. About 1 ms.

    Private: `GlobalState.get_worker_info`.
    """
    import ray
    from ray.core.generated import gcs_pb2

    row = asked(lambda: accessor().get_worker_info(ray.WorkerID(worker_id)), deadline, ("worker", worker_id))
    if row is None:
        return None
    worker = gcs_pb2.WorkerTableData()  # type: ignore[attr-defined] # generated at build time
    worker.ParseFromString(row)
    return worker


def actor_row(actor_id: Any, deadline: Deadline | None = None) -> Any:
    """What it knows of an actor: an `ActorTableData`; None if it knows nothing, as the actor is being created. About 1 ms.

    Private: `GlobalState.get_actor_info`.
    """
    from ray.core.generated import gcs_pb2

    row = asked(lambda: accessor().get_actor_info(actor_id), deadline, ("actor id", actor_id.binary()))
    if row is None:
        return None
    actor = gcs_pb2.ActorTableData()  # type: ignore[attr-defined] # generated at build time
    actor.ParseFromString(row)
    return actor


def class_in_store(key: bytes, deadline: Deadline | None = None) -> bytes | None:
    """The class of an actor, pickled, as Ray keeps it; None if it is gone, as its job has ended. See `classes`."""
    found: bytes | None = _kv("internal_kv_get", deadline, key, namespace=_CLASSES)
    return found
