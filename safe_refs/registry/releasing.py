"""The end of leases: each holder is told, and who is dead hears it from the others.

Raises everywhere: `RegistryUnavailableError` where there is no Ray connection or no answer in time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from .. import _ray, _ray_client
from ..errors import RegistryUnavailableError
from . import contact
from .contact import NoRegistryError, Silence
from .records import Origin
from .shard import STALE
from .site import forget_registry, origin, pause
from .topology import Topology


def release_ids(registry: str, rows: Sequence[tuple[Sequence[bytes], Origin]], timeout: float) -> set[bytes]:
    """End leases of a registry of this cluster by their bare ids, each row by whom it says; which ones that ended.

    All holders are told, but those that are dead, which hear it from the others when they come back.
    """
    connected, deadline = _ray.connection(), time.monotonic() + timeout
    makers = {lease: maker for leases, maker in rows for lease in leases}
    ended: set[bytes] = set()
    waiting: dict[int, list[bytes]] | None = None
    while True:
        try:
            topology = contact.topology(connected, registry, start=False)
            if waiting is None:
                waiting = _by_shard(topology, makers)
            calls = {shard: (_rows(theirs, makers), topology.version) for shard, theirs in waiting.items()}
            if topology.shards == 1 and calls:
                replies = {0: contact.ask(connected, registry, 0, "release", calls[0], timeout, deadline, start=False)}
            else:
                replies = contact.ask_each(connected, registry, "release", calls, deadline, start=False)
        except NoRegistryError:
            forget_registry(connected, registry)
            return ended
        told: set[bytes] = set()
        for shard, flags in replies.items():
            if isinstance(flags, list):
                told.update(waiting[shard])
                ended.update(lease for lease, flag in zip(waiting[shard], flags, strict=True) if flag)
        if STALE in replies.values():  # the others may have carried it out all the same
            contact.forget_topology(connected, registry)
            waiting = None
            continue
        if Silence.LATE in replies.values():
            raise contact.late(registry, timeout)
        # A dead shard hears it from the others; where there are none it is told when it is back.
        untold = {
            shard: [lease for lease in waiting[shard] if lease not in told]
            for shard, reply in replies.items()
            if reply is Silence.DEAD
        }
        waiting = {shard: theirs for shard, theirs in untold.items() if theirs}
        if not waiting:
            return ended
        pause(registry, timeout, deadline)


def _rows(leases: Iterable[bytes], makers: Mapping[bytes, Origin]) -> list[tuple[list[bytes], Origin]]:
    rows: list[tuple[list[bytes], Origin]] = []
    for lease in leases:
        if not rows or rows[-1][1] is not makers[lease]:
            rows.append(([], makers[lease]))
        rows[-1][0].append(lease)
    return rows


def release_later(registry: str, leases: Sequence[bytes]) -> None:
    """Ask for the end of leases without waiting for it; for clearing up after a failure. Never raises what Ray raises."""
    import ray

    try:
        connected = _ray.connection()
        if connected.client and not _ray_client.helps():
            _ray_client.aside(partial(release_later, registry, leases))  # as even to drop its answer may wait
            return
        topology = contact.topology(connected, registry, start=False)
        maker = origin()
        for shard, theirs in _by_shard(topology, leases).items():
            handle = contact.known_handle(connected, registry, shard)
            handle.release.remote([(theirs, maker)], topology.version)
    except (NoRegistryError, RegistryUnavailableError, ValueError, ray.exceptions.RayError):
        pass  # Ray is gone from this process, or the registry is, and with it every call that was still on its way


def _by_shard(topology: Topology, leases: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Leases by the shards that may hold them."""
    found: dict[int, list[bytes]] = {}
    for lease in leases:
        for shard in topology.everywhere(lease):
            found.setdefault(shard, []).append(lease)
    return found
