"""What differs in a process that is a Ray Client (`ray.init("ray://…")`).

A client has no core worker. A process in the cluster, its *server*, does everything for it: the server is the driver of a job of its
own, holds the real references, and drops them, in order, when the client disconnects. So where a lease names the process that made
it, a lease that a client made names the client's server.

While the server does not answer, most calls of Ray Client ignore their timeout: they wait without a limit, or until Ray Client gives
up reconnecting (30 s, or `RAY_CLIENT_RECONNECT_GRACE_PERIOD`). So a background thread makes each call that may wait for the server,
and the caller waits for that thread no longer than its own timeout.

Private: everything here goes through `ray.util.client`, seen since Ray 2.52, and needs the extra `ray[client]`. Without it a client
would count as a process that is not connected. Nothing here is imported from Ray before a client has connected, so that other
processes pay nothing for it.

What always holds: whoever has lost the server gets `RegistryUnavailableError`, whatever Ray Client raises; no call of ours waits
longer than its timeout.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..errors import RegistryUnavailableError, SafeRefsError
from ..threads import Background
from . import native

T = TypeVar("T")

PATIENCE_S = 10.0  # for a call that takes milliseconds when the server is well
_SERVER_S = 3.0  # for the first question of all, whose callers have no deadline yet


class Server(NamedTuple):
    """A client's server: the cluster's id, and in hexadecimal the ids of the job, the node and the worker."""

    cluster: bytes
    job: str
    node: str
    worker: str


# Ray's client worker, and the server behind it. Each `ray.init` makes another worker; finding the server costs some milliseconds.
# Bound: one pair. No lock: threads read and replace the pair as a whole, and two that find the server at once find the same one.
_known: tuple[Any, Server] | None = None


def server() -> Server | None:
    """The server of this process; None unless this process is a Ray Client that is connected.

    The cluster's id is what Ray's control store has under `ray_cluster_id`, seen since Ray 2.52; on a node
    `Worker.current_cluster_and_job` gives the same bytes. A driver's worker id is computed from its job's id
    (`compute_driver_id_from_job`), seen since the same version.

    Raises:
        RegistryUnavailableError: the server does not answer, or this Ray has no cluster id in its control store.
    """
    global _known
    worker = _worker()
    if worker is None:
        return None
    known = _known
    if known is not None and known[0] is worker:
        return known[1]
    found = asked(_find_server, _SERVER_S)
    _known = (worker, found)
    return found


def _worker() -> Any:
    """Ray's client worker; None unless this process is a client that is connected."""
    client = sys.modules.get("ray.util.client")
    stub = getattr(client, "ray", None)
    return stub.get_context().client_worker if stub is not None and stub.is_connected() else None


def _find_server() -> Server:
    import ray
    from ray._private.utils import compute_driver_id_from_job

    # What a client asks the control service goes through its server, and so is bounded as all its calls are. `control` can't be asked
    # for this: it has to know whether this process is a client.
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
    """A client's `ray.get`, without Ray's hook before it, which starts a Ray where there is none."""
    from ray.util.client import ray

    return ray.get(refs, timeout=timeout)


def with_methods(handle: Any, class_: type) -> Any:
    """The same actor's handle, which knows the methods of the actor's class.

    A client's handle that does not know them asks the cluster: it starts a task, for which a worker may have to start, and waits for
    it without a limit. This function also waits until the server has asked for the actor's creation, so that an error of the
    creation is raised here.
    """
    from ray.util.client.common import ClientActorClass, ClientActorHandle

    handle.actor_ref.is_nil()
    return ClientActorHandle(handle.actor_ref, ClientActorClass(class_))


def is_handle(handle: Any) -> bool:
    """Whether it is a client's handle of an actor."""
    common = sys.modules.get("ray.util.client.common")
    return common is not None and isinstance(handle, common.ClientActorHandle)


def host() -> str:
    """Name of the machine that this process runs on. It is not a node of the cluster."""
    return socket.gethostname()


def broken() -> tuple[type[Exception], ...]:
    """What a client's calls raise when its server is gone, for an `except` clause. In other processes that clause catches nothing."""
    if not was_here():
        return ()
    grpc: Any = sys.modules["grpc"]  # it has no types
    return ConnectionError, grpc.RpcError


def unless_left(error: Exception, core: Any = None) -> Exception:
    """An error of a call to Ray by that core worker, or by this process's; `gone` if it may come from leaving the connection."""
    core = core or native.connected() or (native.left if server() is None else None)
    return native.gone() if native.is_left(core) else error


def unavailable(error: Exception) -> SafeRefsError:
    """Our error for one of those that `broken` names, or that a client raises that has left; one of ours stays as it is."""
    if isinstance(error, SafeRefsError):
        return error
    return RegistryUnavailableError(
        f"this Ray Client has lost its server in the cluster ({type(error).__name__}): connect again with ray.init('ray://…')"
    )


class NoAnswerError(Exception):
    """The server has not answered in time."""


class _Thread(threading.local):
    """Whether this thread is at work for another one, which waits for it."""

    in_background = False


_thread = _Thread()
_background = Background()


# In a forked child: the client worker of its parent, whose connection and threads it doesn't have.
_parents: Any = None


def _begin_anew() -> None:
    """A forked child has none of the pool's threads, nor its parent's connection."""
    global _background, _known, _parents
    _parents, _known = _worker() or _parents, None
    _background = Background()


def is_parents() -> bool:
    """Whether this process was forked from a client that was connected, and is not connected itself."""
    return _parents is not None and _worker() is _parents


os.register_at_fork(after_in_child=_begin_anew)


def is_in_background() -> bool:
    """Whether this thread makes a call for another one, which waits no longer than its own timeout. Then this one may wait longer."""
    return _thread.in_background


def asked(call: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """Make a call to the cluster, and wait for its answer no longer than `timeout_s`.

    In a process that was never a client this just makes the call.

    Raises:
        RegistryUnavailableError: this process is a client whose server does not answer.
    """
    if not was_here():
        return call()
    try:
        return in_time(call, timeout_s)
    except NoAnswerError:
        raise RegistryUnavailableError(
            f"the server of this Ray Client has not answered for {timeout_s:.1f} s: it is stopped, or can't be reached, "
            "or waits for Ray's control service (GCS); try again, or connect anew (ray.shutdown(), ray.init)"
        ) from None
    except broken() as error:
        raise unavailable(error) from None


def in_time(call: Callable[[], T], timeout_s: float, late: Callable[[T], None] | None = None) -> T:
    """Make a call that may wait for the server, and wait for its answer no longer than `timeout_s`.

    The thread that makes the call also drops the references that the call uses: to drop one may wait for the server, too. If a signal
    handler's exception ends the wait, `late` gets the answer, in another thread.

    Raises:
        NoAnswerError: there is no answer in time. The call goes on in the background, and its answer is thrown away.
        Exception: what the call raises.
    """
    if _thread.in_background:
        return call()
    was = _worker()
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def job() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:  # of whatever kind it is, the waiting thread raises it
            answer.put((None, error))

    in_background(job)
    try:
        found, error = answer.get(timeout=max(timeout_s, 0.001))
    except queue.Empty:
        raise NoAnswerError from None
    except BaseException:  # a signal handler's
        if late is not None:
            in_background(lambda: late(found) if (found := answer.get(timeout=timeout_s)[0]) is not None else None)
        raise
    if error is not None:
        try:
            has_left = _worker() is None and (was is not None or not sys.modules["ray"].is_initialized())
            if has_left and isinstance(error, Exception):
                raise unavailable(error) from None  # Ray Client raises errors of many kinds then
            raise error.with_traceback(None)
        finally:
            # A frame in its traceback that knows the error is a cycle, which keeps all that the caller's frames know.
            del error
    result: T = found
    return result


def in_background(job: Callable[[], None]) -> None:
    """Have a background thread do what may wait for the server, and don't wait for it."""
    from ray.util.client import ray

    stub: Any = ray  # which has no types
    context = stub.get_context()  # where a process is several clients, each thread has its own

    def marked() -> None:
        stub.set_context(context)
        _thread.in_background = True
        try:
            job()
        finally:
            _thread.in_background = False

    _background.run(marked)
