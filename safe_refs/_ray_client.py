"""What is otherwise in a process that is a Ray Client (`ray.init("ray://…")`): the part of `_ray.py` that only such a process needs.

A client has no core worker: all that it does is done by a process in the cluster, its *server*, which is the driver of a job of its
own, holds the real references, and lets go of them, in order, when the client disconnects. So where a lease names the process that
made it, a client's names the server.

While its server doesn't answer, Ray Client lets most calls wait without a limit, or until it gives up connecting again (30 s, or
`RAY_CLIENT_RECONNECT_GRACE_PERIOD`), whatever timeout they were given. So what may wait for the server is done by another thread.

Private: everything here goes through `ray.util.client`, seen since Ray 2.52, and needs the extra `ray[client]`. Without it a client
would be a process that isn't connected. Nothing here is imported from Ray before a client has connected, so that it costs other
processes nothing.

What always holds: who has lost the server hears `RegistryUnavailableError`, whatever Ray Client raises; no call of ours waits longer
than told.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .errors import RegistryUnavailableError

if TYPE_CHECKING:
    from .registry.aside import Aside

T = TypeVar("T")

_PATIENCE_S = 10.0  # for what takes milliseconds


class Server(NamedTuple):
    """A client's server: the cluster's id, and in hexadecimal the ids of the job, the node and the worker."""

    cluster: bytes
    job: str
    node: str
    worker: str


# Ray's client worker, which is another one after each `ray.init`, and what is behind it: asking costs some milliseconds.
_known: tuple[Any, Server] | None = None


def server() -> Server | None:
    """What is behind this process, if it is a client that is connected.

    The cluster's id is what Ray's control service keeps under `ray_cluster_id`, seen since Ray 2.52; on a node the same bytes are
    `Worker.current_cluster_and_job`. A driver's worker id is made of its job's id (`compute_driver_id_from_job`), seen likewise.

    Raises:
        RegistryUnavailableError: the server doesn't answer, or this Ray keeps no cluster id there.
    """
    global _known
    worker = _worker()
    if worker is None:
        return None
    if _known is not None and _known[0] is worker:
        return _known[1]
    found = asked(_find_server)
    _known = (worker, found)
    return found


def _worker() -> Any:
    """Ray's client worker, if this process is a client that is connected."""
    client = sys.modules.get("ray.util.client")
    stub = getattr(client, "ray", None)
    return stub.get_context().client_worker if stub is not None and stub.is_connected() else None


def _find_server() -> Server:
    import ray
    from ray._private.utils import compute_driver_id_from_job
    from ray.experimental.internal_kv import _internal_kv_get

    cluster: bytes | None = _internal_kv_get(b"ray_cluster_id", namespace=b"cluster")
    if not cluster:
        raise RegistryUnavailableError(
            "this Ray doesn't tell a Ray Client which cluster it is connected to: update Ray"
        )
    context = ray.get_runtime_context()
    job, node = context.get_job_id(), context.get_node_id()
    driver = compute_driver_id_from_job(ray.JobID.from_hex(job))  # type: ignore[no-untyped-call] # Ray leaves it untyped
    return Server(cluster, job, node, driver.hex())


def was_here() -> bool:
    """Whether this process is a client, or has been one."""
    return "ray.util.client.worker" in sys.modules


def get(refs: Any, timeout: float) -> Any:
    """A client's `ray.get`, without the hook before it that starts a Ray where there is none."""
    from ray.util.client import ray

    return ray.get(refs, timeout=timeout)


def with_methods(handle: Any, class_: type) -> Any:
    """A client's handle of an actor of that class, which knows its methods.

    By itself it asks the cluster for them, by a task for which it waits without a limit, and for which a worker may have to start.
    This also waits until the actor's creation has been asked for, so that it fails here if it fails.
    """
    from ray.util.client.common import ClientActorClass, ClientActorHandle

    handle.actor_ref.is_nil()
    return ClientActorHandle(handle.actor_ref, ClientActorClass(class_))


def is_handle(handle: Any) -> bool:
    """Whether it is a client's handle of an actor."""
    common = sys.modules.get("ray.util.client.common")
    return common is not None and isinstance(handle, common.ClientActorHandle)


def host() -> str:
    """Name of the machine that this process runs on, which is no node of the cluster."""
    return socket.gethostname()


def broken() -> tuple[type[Exception], ...]:
    """What a client's calls raise when its server is gone, for an `except` clause. Where no client is, that catches nothing."""
    if not was_here():
        return ()
    grpc: Any = sys.modules["grpc"]  # it has no types
    return ConnectionError, grpc.RpcError


def unavailable(error: Exception) -> RegistryUnavailableError:
    """The error for one of those."""
    if isinstance(error, RegistryUnavailableError):
        return error
    return RegistryUnavailableError(
        f"this Ray Client has lost its server in the cluster ({type(error).__name__}): connect again with ray.init('ray://…')"
    )


class LateError(Exception):
    """The server has not answered in time."""


class _Thread(threading.local):
    """Whether this thread does something for another one."""

    helps = False


_thread = _Thread()
_aside: Aside | None = None


def helps() -> bool:
    """Whether this thread does something for another one, which waits no longer than told."""
    return _thread.helps


def asked(call: Callable[[], T], timeout_s: float = 0.0) -> T:
    """Do what asks the server something that takes a moment, or so many seconds more.

    Raises:
        RegistryUnavailableError: it doesn't answer.
    """
    try:
        return in_time(call, timeout_s + _PATIENCE_S)
    except LateError:
        raise RegistryUnavailableError(
            f"the server of this Ray Client has not answered for {timeout_s + _PATIENCE_S:g} s: it is stopped, or can't be reached"
        ) from None
    except broken() as error:
        raise unavailable(error) from None


def in_time(call: Callable[[], T], timeout_s: float) -> T:
    """Do what may wait for the server, and wait no longer than that.

    References that the call has in its hands are dropped by the thread that does it: to drop one may wait for the server, too.

    Raises:
        LateError: it isn't done in time; it goes on, and nobody hears of it.
        Exception: what it raises.
    """
    if _thread.helps:
        return call()
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def job() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:  # whatever it is, the other thread is to have it
            answer.put((None, error))

    aside(job)
    try:
        found, error = answer.get(timeout=max(timeout_s, 0.001))
    except queue.Empty:
        raise LateError from None
    if error is not None:
        raise error.with_traceback(None)
    result: T = found
    return result


def aside(job: Callable[[], None]) -> None:
    """Have a thread do what may wait for the server, without waiting for it."""
    global _aside
    if _aside is None:
        from .registry.aside import Aside

        _aside = Aside()
    from ray.util.client import ray

    stub: Any = ray  # which has no types
    context = stub.get_context()  # a thread's own, where a process is several clients

    def helping() -> None:
        stub.set_context(context)
        _thread.helps = True
        try:
            job()
        finally:
            _thread.helps = False

    _aside.run(helping)
