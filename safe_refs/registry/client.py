"""From any process to the registry: find it or start it, call it, wait no longer than told, and try again where that is safe.

What always holds: every wait ends by its timeout; a call that failed on the way leaves nothing held (a pin that wasn't acknowledged
is released, and the registry refuses it should it arrive later); a lease of another cluster is never asked for. Handles of the
actor are kept per connection to Ray and registry name, and dropped when the actor turns out to be dead.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _ray, config
from ..config import Limits
from ..envelope import LeaseAddress
from ..errors import (
    LeaseLostError,
    RegistryUnavailableError,
    SafeRefsError,
    UnsupportedReferenceError,
    WrongClusterError,
)
from .records import LeaseInfo, Origin, Query, RegistryStats, Terms
from .shard import Shard

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_PACKAGE = __name__.partition(".")[0]
_RETRY_PAUSE_S = 0.1
_LONGEST_WAIT_S = 1e6  # Ray counts milliseconds, and far longer waits overflow
_MOST_CONTACTS = 64  # connections of the past are forgotten beyond that

_lock = threading.Lock()
_handles: dict[tuple[_ray.Connection, str], Any] = {}
_identities: dict[tuple[_ray.Connection, str], tuple[bytes, int]] = {}
_sites: dict[_ray.Connection, Site] = {}


class _NoRegistryError(Exception):
    """No registry runs under that name, and the call was not one that starts one."""


class Site(NamedTuple):
    """This process, as it is connected now."""

    connection: _ray.Connection
    node: str
    pid: int


def site() -> Site:
    """Where this process stands; asked for once a call, and passed on from there."""
    connected = _ray.connection()
    found = _sites.get(connected)
    if found is None:
        if len(_sites) > _MOST_CONTACTS:
            _sites.clear()
        found = _sites[connected] = Site(connected, *_ray.node_and_process())
    return found


def origin(here: Site | None = None) -> Origin:
    """Who is calling: this job, node and process, and the nearest source line outside safe_refs."""
    here = here or site()
    return Origin(here.connection.job, here.node, here.pid, _source_line())


def cluster() -> bytes:
    """Id of the cluster that this process is connected to."""
    return _ray.connection().cluster


def identity(registry: str, timeout: float, here: Site | None = None) -> tuple[bytes, int]:
    """Epoch and generation of a registry as this process last heard; asked for, and started if it must be, on first contact."""
    connected = here.connection if here else _ray.connection()
    known = _identities.get((connected, registry))
    if known is None:
        known = _remember_identity(connected, registry, _call(registry, "hello", (), timeout, start=True))
    return known


def pin(
    registry: str,
    lease: bytes,
    refs: Sequence[Ref],
    terms: Terms,
    maker: Origin,
    timeout: float,
    here: Site | None = None,
) -> tuple[bytes, int]:
    """Have a registry hold `refs` under the id `lease`, in one call, and wait until it does.

    Returns:
        Epoch and generation of the registry that holds it.

    Raises:
        RegistryFullError: a limit would be passed.
        RegistryUnavailableError: no answer in time. As with every error, nothing stays held.
    """
    # Plain tuples on the way: naming a class costs Ray's pickler as much as all the rest of a call.
    call = (lease, list(refs), tuple(terms), tuple(maker))
    try:
        connected = here.connection if here else _ray.connection()
        reply = _call(registry, "pin", (call,), timeout, start=True, connected=connected)
        if isinstance(reply, SafeRefsError):
            raise reply
        return _remember_identity(connected, registry, reply)
    except BaseException as error:
        # The call may still be on its way (a timeout, Ctrl-C). Calls of one process arrive in order, and a registry that sees the
        # release first refuses the pin.
        release_later(registry, [lease])
        if isinstance(error, ValueError) and "owner is unknown" in str(error):
            raise UnsupportedReferenceError(
                "the object holds a reference of which Ray does not know the owner: it was made from a bare id (by plain pickle, "
                "say), so nothing can be held by it; pass the reference itself, or a payload",
                kind="ray.ObjectRef",
            ) from None
        raise


def resolve(address: LeaseAddress, timeout: float, *, slot: int | None = None, take: bool = False) -> list[Ref]:
    """The references of a lease, or the one in `slot`; with `take`, end the lease in the same step.

    Raises:
        WrongClusterError: the lease is another cluster's.
        LeaseError: it has ended, was lost, or was never there.
    """
    here = site()
    if address.cluster != here.connection.cluster:
        raise WrongClusterError.of(address.short_id, address.cluster, here.connection.cluster)
    # Which line it is that ends a lease is worth looking up; which lines only read it is not.
    asker = origin(here) if take else (here.connection.job, here.node, here.pid, "by loading")
    call = (address.lease, address.epoch, address.generation, slot, take, tuple(asker))
    try:
        reply = _call(address.registry, "resolve", (call,), timeout, start=False, connected=here.connection)
    except _NoRegistryError:
        raise _lost(address) from None
    if isinstance(reply, SafeRefsError):
        raise reply
    refs: list[Ref] = reply
    return refs


def release(addresses: Iterable[LeaseAddress], timeout: float) -> int:
    """End leases; how many that ended. Those that had ended before, or were lost, count 0."""
    by_registry: dict[str, list[bytes]] = {}
    for address in addresses:
        _check_cluster(address)
        by_registry.setdefault(address.registry, []).append(address.lease)
    return sum(release_ids(registry, leases, timeout) for registry, leases in by_registry.items())


def release_ids(registry: str, leases: Sequence[bytes], timeout: float) -> int:
    """End leases of a registry of this cluster by their bare ids; how many that ended."""
    try:
        ended: int = _call(registry, "release", (list(leases), origin()), timeout, start=False)
    except _NoRegistryError:
        return 0
    return ended


def release_later(registry: str, leases: Sequence[bytes]) -> None:
    """Ask for the end of leases without waiting for it; for clearing up after a failure. Never raises what Ray raises."""
    import ray

    try:
        connected = _ray.connection()
        handle = _handles.get((connected, registry)) or ray.get_actor(actor_name(registry), namespace=_ray.NAMESPACE)
        handle.release.remote(list(leases), origin())
    except (RegistryUnavailableError, ValueError, ray.exceptions.RayError):
        pass  # Ray is gone from this process, or the registry is, and with it every call that was still on its way


def renew(address: LeaseAddress, ttl: float | None, timeout: float) -> None:
    """Let a lease live `ttl` seconds from now, or without a limit.

    Raises:
        WrongClusterError: the lease is another cluster's.
        LeaseError: it has ended, was lost, or was never there.
    """
    _check_cluster(address)
    call = (address.lease, address.epoch, address.generation, ttl)
    try:
        refusal = _call(address.registry, "renew", call, timeout, start=False)
    except _NoRegistryError:
        raise _lost(address) from None
    if refusal is not None:
        raise refusal


def expires_in_s(address: LeaseAddress, timeout: float) -> float | None:
    """Seconds until a lease's ttl runs out; None without one.

    Raises:
        WrongClusterError: the lease is another cluster's.
        LeaseError: it has ended, was lost, or was never there.
    """
    _check_cluster(address)
    call = (address.lease, address.epoch, address.generation)
    try:
        reply = _call(address.registry, "expires_in_s", call, timeout, start=False)
    except _NoRegistryError:
        raise _lost(address) from None
    if isinstance(reply, SafeRefsError):
        raise reply
    left: float | None = reply
    return left


def leases(
    registry: str, query: Query, with_sizes: bool, timeout: float
) -> tuple[list[LeaseInfo], tuple[float, int] | None]:
    """One page of live leases, and where the next one begins (None: there is none); nothing where no registry runs."""
    try:
        page: tuple[list[LeaseInfo], tuple[float, int] | None] = _call(
            registry, "leases", (tuple(query), with_sizes), timeout, start=False
        )
    except _NoRegistryError:
        return [], None
    return page


def stats(registry: str, timeout: float) -> RegistryStats | None:
    """Figures of a registry; None where none runs."""
    try:
        figures: RegistryStats = _call(registry, "stats", (), timeout, start=False)
    except _NoRegistryError:
        return None
    return figures


def set_limits(registry: str, limits: Limits, timeout: float) -> None:
    """Give a registry other limits; it is started if it doesn't run."""
    _call(registry, "set_limits", (tuple(limits),), timeout, start=True)


def shutdown(registry: str, timeout: float) -> int:
    """End every lease of a registry, in order, and then the registry; how many leases that were.

    Raises:
        RegistryUnavailableError: it didn't answer in time; it still runs.
    """
    try:
        ended: int = _call(registry, "close", (origin(),), timeout, start=False)
    except _NoRegistryError:
        return 0
    import ray

    connected = _ray.connection()
    with _lock:
        handle = _handles.pop((connected, registry), None)
    if handle is not None:
        ray.kill(handle, no_restart=True)
    return ended


def _call(
    registry: str,
    method: str,
    args: tuple[Any, ...],
    timeout: float,
    *,
    start: bool,
    connected: _ray.Connection | None = None,
) -> Any:
    """Call the registry's actor and wait for the answer.

    All methods can be repeated safely (ids are the caller's), so a call into an actor that turns out to be dead is made again on
    its successor: with `start` on one that is started for it, without only if somebody else starts one.

    Raises:
        RegistryUnavailableError: no Ray connection, or no answer in `timeout` seconds.
        _NoRegistryError: nobody runs under that name, and `start` is False.
    """
    connected = connected or _ray.connection()
    import ray

    deadline = time.monotonic() + timeout
    while True:
        handle = _handles.get((connected, registry)) or _find(connected, registry, start, deadline)
        left = deadline - time.monotonic()
        try:
            reply = ray.get(getattr(handle, method).remote(*args), timeout=min(max(left, 0.001), _LONGEST_WAIT_S))
            if reply is not None or method != "pin":
                return reply
            why: object = "it is being shut down"
        except ray.exceptions.RayTaskError:
            raise  # a mistake in the actor, which may look like any other exception
        except ray.exceptions.GetTimeoutError:
            raise RegistryUnavailableError(
                f"registry {registry!r} did not answer within {timeout:g} s: it is overloaded, stopped, or its node can't be "
                "reached; try again, or allow a longer timeout"
            ) from None
        except ray.exceptions.RayActorError as error:
            why = error
        # Dead for good (somebody killed it, or its node is gone, or it could not start), or Ray could not reach it just now.
        _forget(connected, registry, handle)
        if time.monotonic() + _RETRY_PAUSE_S >= deadline:
            raise RegistryUnavailableError(
                f"registry {registry!r} could not be reached within {timeout:g} s: {why}"
            ) from None
        time.sleep(_RETRY_PAUSE_S)


def _find(connected: _ray.Connection, registry: str, start: bool, deadline: float) -> Any:
    """The registry's actor: the one that runs, or with `start` a new one. Racing processes get the same."""
    import ray

    name = actor_name(registry)
    try:
        handle = ray.get_actor(name, namespace=_ray.NAMESPACE)
    except ValueError:
        if not start:
            raise _NoRegistryError from None
        handle = _start(registry, name, deadline)
    with _lock:
        if len(_handles) > _MOST_CONTACTS:
            _handles.clear()
        return _handles.setdefault((connected, registry), handle)


def _start(registry: str, name: str, deadline: float) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = _ray.head_node()
    options: dict[str, Any] = {
        "name": name,
        "namespace": _ray.NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    if head is not None:
        # The head node is the one that no autoscaler takes away; soft, so that it starts elsewhere where it can't start there.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(head, soft=True)
    while True:
        try:
            return ray.remote(Shard).options(**options).remote(registry, config.limits())
        except ValueError:
            # Another process won the race for the name, and its actor is not listed yet, or no longer.
            if time.monotonic() + _RETRY_PAUSE_S >= deadline:
                raise RegistryUnavailableError(f"registry {registry!r} could not be started in time") from None
            time.sleep(_RETRY_PAUSE_S)


def actor_name(registry: str) -> str:
    """Name of a registry's actor, in the namespace `safe_refs`."""
    return f"registry:{registry}"


def forget_identity(registry: str) -> None:
    """Ask for the registry's epoch anew, next time."""
    _identities.pop((_ray.connection(), registry), None)


def _remember_identity(connected: _ray.Connection, registry: str, packed: bytes) -> tuple[bytes, int]:
    """Unpack the answer to `hello` or `pin`, and keep it: the epoch's 8 bytes and the generation. Ray passes bytes quickest."""
    identity = (packed[:8], int.from_bytes(packed[8:], "big"))
    if len(_identities) > _MOST_CONTACTS:
        _identities.clear()
    _identities[(connected, registry)] = identity
    return identity


def _forget(connected: _ray.Connection, registry: str, handle: Any) -> None:
    with _lock:
        if _handles.get((connected, registry)) is handle:
            del _handles[(connected, registry)]


def _check_cluster(address: LeaseAddress) -> None:
    connected = cluster()
    if address.cluster != connected:
        raise WrongClusterError.of(address.short_id, address.cluster, connected)


def _lost(address: LeaseAddress) -> LeaseLostError:
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


def _source_line() -> str:
    """`file:line in function` of the nearest caller outside this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != _PACKAGE and not module.startswith(_PACKAGE + "."):
            code = frame.f_code
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return "unknown"
