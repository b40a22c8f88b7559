"""Where a copy owner's copies are: which node a copy is made on, which nodes have it, and which copies a dead node has taken along.

What always holds: nothing here waits for an owner for more than half a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import cluster, counts, objects, workers
from ..errors import RegistryUnavailableError

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

_PROBE_S = 0.5
_GOOD_FOR_S = 2.0  # how long the list of nodes is good for
_MANY = 100


class Nodes:
    """The cluster's living nodes, as they were at most two seconds ago. Used by one thread."""

    def __init__(self) -> None:
        self._looked_at = -_GOOD_FOR_S
        self._nodes: list[str] = []
        self._lacking: set[str | None] = set()  # nodes that `for_copy` has given

    def several(self) -> bool:
        """Whether there are several."""
        if time.monotonic() - self._looked_at > _GOOD_FOR_S:
            with suppress(RegistryUnavailableError):  # then they are those of before
                self._nodes = cluster.nodes()
            self._looked_at = time.monotonic()
        return len(self._nodes) > 1

    def lacks(self, node: str | None) -> None:
        """The workers of a node, or of one that Ray chose, can't import safe_refs: copies are made on this process's own instead."""
        self._lacking.add(node)

    def for_copy(self, ref: Ref, *, at_home: bool) -> str | None:
        """The node to copy an object on: this process's own (`at_home`), or one that has the data; None for any.

        If a node lacks safe_refs, this process's own stands for it, and for any.
        """
        if not self.several():
            return None
        if not at_home:
            theirs = [node for node in objects.nodes_of(ref, _PROBE_S) if node in self._nodes]
            node = next((node for node in theirs if node not in self._lacking), None)
            if node is not None or not self._lacking:
                return node
        return workers.node_and_process()[0]


class _Owned(NamedTuple):
    """A copy: of which lease, and the nodes that had it when it was made. None had a small one, which is in this process."""

    lease: bytes
    nodes: list[str]


class OwnedCopies:
    """The copies that this process owns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest, as the actor's calls and its thread for copies both count
        # By id. Copies that nobody has any more go when they are counted, which happens before their number has doubled. Their values
        # may take up to 100 KB each until then.
        self._owned: dict[bytes, _Owned] = {}
        self._counts_at = _MANY

    def has_any(self) -> bool:
        """Whether there may be some. Costs nothing."""
        return bool(self._owned)

    def count(self) -> int:
        """How many there are of which some process has a reference. Half a microsecond for each reference in this process."""
        with self._lock:
            return self._count()

    def note(self, lease: bytes, copies: Iterable[Ref], *, with_nodes: bool) -> None:
        """These copies were made for a lease. `with_nodes`: look where they are."""
        owned = {
            copy.binary(): _Owned(lease, objects.nodes_of(copy, _PROBE_S) if with_nodes else []) for copy in copies
        }
        with self._lock:
            self._owned |= owned
            if len(self._owned) > self._counts_at:
                self._counts_at = 2 * self._count() + _MANY

    def lost_with(self, living: frozenset[str]) -> list[bytes]:
        """The leases of copies that none of the living nodes had when they were made.

        Their nodes are not asked for anew: Ray may already have stored errors in the copies' places on other nodes.
        """
        with self._lock:
            self._count()
            return list({lease for lease, nodes in self._owned.values() if nodes and living.isdisjoint(nodes)})

    def _count(self) -> int:
        counted = set(counts.counted(self._owned))
        counts.drop_values(self._owned.keys() - counted)
        self._owned = {id_: what for id_, what in self._owned.items() if id_ in counted}
        return len(self._owned)
