"""Where this process stands: its connection, and what it knows of the registries there.

What always holds: a lease of another cluster is never asked for; what is known of a registry is forgotten when it turns out to be
gone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from .. import _ray, _ray_client
from ..envelope import LeaseAddress
from ..errors import LeaseLostError, RegistryUnavailableError, WrongClusterError
from . import contact
from .records import Origin, by_client

_FOLDER = str(Path(__file__).parent.parent) + os.sep  # of the package

_identities: dict[tuple[_ray.Connection, str], tuple[bytes, int]] = {}
_sites: dict[_ray.Connection, Site] = {}


class Site(NamedTuple):
    """This process, as it is connected now."""

    connection: _ray.Connection
    node: str
    pid: int
    address: bytes


def site() -> Site:
    """Where this process stands; asked for once a call, and passed on from there."""
    connected = _ray.connection()
    found = _sites.get(connected)
    if found is None:
        if len(_sites) > contact.MOST_CONTACTS:
            _sites.clear()
        found = _sites[connected] = Site(connected, *_ray.node_and_process(), _ray.own_address())
    return found


def origin(here: Site | None = None) -> Origin:
    """Who is calling: this job, node and process, and the nearest source line outside safe_refs."""
    here = here or site()
    source = _source_line()
    if here.connection.client:
        source = by_client(source, _ray_client.host())
    return Origin(here.connection.job, here.node, here.pid, source)


def cluster() -> bytes:
    """Id of the cluster that this process is connected to."""
    return _ray.connection().cluster


def check_cluster(address: LeaseAddress, here: Site) -> None:
    """Never ask for a lease of another cluster.

    Raises:
        WrongClusterError: it is one.
    """
    if address.cluster != here.connection.cluster:
        raise WrongClusterError.of(address.short_id, address.cluster, here.connection.cluster)


def knows(registry: str) -> bool:
    """Whether `identity` has nothing to ask."""
    return (_ray.connection(), registry) in _identities


def identity(registry: str, timeout: float, here: Site | None = None) -> tuple[bytes, int]:
    """Epoch and generation of a registry as this process last heard; asked for, and started if it must be, on first contact."""
    connected = here.connection if here else _ray.connection()
    known = _identities.get((connected, registry))
    if known is None:
        deadline = time.monotonic() + timeout
        topology = contact.topology(connected, registry, start=True)
        if topology.shards == 1:
            reply = contact.ask(connected, registry, 0, "hello", (), timeout, deadline, start=True)
            return remember_identity(connected, registry, reply)
        while True:
            # All are started, as a shard that doesn't run can't be a replica; the first that answers will do.
            replies = contact.ask_each(
                connected, registry, "hello", dict.fromkeys(range(topology.shards), ()), deadline, start=True
            )
            for reply in replies.values():
                if isinstance(reply, bytes):
                    return remember_identity(connected, registry, reply)
            pause(registry, timeout, deadline)
    return known


def forget_registry(connected: _ray.Connection, registry: str) -> None:
    """Nobody runs under that name: look again, next time."""
    contact.forget_topology(connected, registry)
    _identities.pop((connected, registry), None)


def forget_identity(registry: str) -> None:
    """Ask for the registry's epoch and topology anew, next time."""
    forget_registry(_ray.connection(), registry)


def remember_identity(connected: _ray.Connection, registry: str, packed: bytes) -> tuple[bytes, int]:
    """Unpack the answer to `hello` or `pin`, and keep it: the epoch's 8 bytes and the generation. Ray passes bytes quickest."""
    identity = (packed[:8], int.from_bytes(packed[8:], "big"))
    if len(_identities) > contact.MOST_CONTACTS:
        _identities.clear()
    _identities[(connected, registry)] = identity
    return identity


def epoch_of(packed: bytes) -> bytes:
    """The epoch in what a pin is answered."""
    return packed[:8]


def generation_of(packed: bytes) -> int:
    """A shard may not have heard yet that another has begun a new epoch."""
    return int.from_bytes(packed[8:], "big")


def pause(registry: str, timeout: float, deadline: float) -> None:
    """Wait a little before asking again.

    Raises:
        RegistryUnavailableError: the time is over.
    """
    if time.monotonic() + contact.RETRY_PAUSE_S >= deadline:
        raise RegistryUnavailableError(
            f"registry {registry!r} could not be reached within {timeout:g} s: shards of it are down or recovering; try again, or "
            "allow a longer timeout"
        )
    time.sleep(contact.RETRY_PAUSE_S)


def lost(address: LeaseAddress) -> LeaseLostError:
    """The error for a lease whose registry is gone."""
    return LeaseLostError.of(address.short_id, address.registry, address.generation, None)


def _source_line() -> str:
    """`file:line in function` of the nearest caller outside this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_FOLDER):
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return "unknown"
