"""The only file that knows every wing: which parts a registry's actor gets, and which parts a process that uses registries.

Leave a wing out here, and what it does is gone; the rest works on. By themselves, `registry.sessions.Session` and
`registry.shard.Shard` are a registry without any wing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _settings
from ._ray import environments, workers
from ._ray.workers import is_setting_up
from ._settings import Settings
from .anchoring.borrower import Borrower
from .anchoring.part import Anchoring
from .batching import futures
from .batching.accounts import Account
from .batching.accounts import current as current_account
from .batching.groups import Batched
from .batching.unacknowledged import Unacknowledged, flush
from .config import Deadline, Limits
from .durability import owner
from .durability.client import Copies, given_up
from .durability.part import Durability
from .registry import known
from .registry.asking import Verbs
from .registry.calls import Registry
from .registry.here import Start
from .registry.hooks import ShardPart
from .registry.protocols import Asks, Layout
from .registry.records import Identity
from .registry.requests import Plan, Wanted
from .registry.sessions import Session
from .registry.shard import Shard
from .replication import growth
from .replication.control_store import join
from .replication.directory import TopologyDirectory
from .replication.part import Replication
from .replication.verbs import ReplicatedVerbs


class SafeRefsRegistry(Shard):
    """The actor of a registry's shard, with all wings.

    Args:
        registry: name of the registry.
        limits: what the whole registry may hold at most, if this is its start.
        number: which shard it is, from 0.
        anchors: whether it makes owners know who holds their objects.
    """

    def __init__(self, registry: str, limits: Limits, number: int = 0, anchors: bool = True) -> None:
        environments.pass_on_all()
        joined = join(registry, number, limits)
        super().__init__(registry, joined.identity, joined.limits, number, alone=joined.topology.replicas == 1)
        parts: list[ShardPart] = [Replication(self, joined), Durability(self, owner.start), Anchoring(self, anchors)]
        self.start(parts)


class Client(Session):
    """This process's connection to a cluster, with all wings.

    Args:
        connection: which cluster, as which job.

    Attributes:
        copies: makes leases durable.
        unacknowledged: pins for callers that don't wait.
    """

    def __init__(self, connection: workers.Connection) -> None:
        super().__init__(connection, TopologyDirectory(), _start, _verbs)
        self.sender = self._batched = Batched(self)
        self.unacknowledged = Unacknowledged(self)
        self.copies = Copies(self)
        self.parts = (Borrower(self), self.copies)

    @property
    def sending(self) -> bool:
        """See `Here`."""
        return self.unacknowledged.is_sending

    def post(self, registry: str, plan: Plan, deadline: Deadline) -> None:
        """Have a lease pinned soon; what goes wrong is logged, and raised by `flush`."""
        self.unacknowledged.post(registry, plan, deadline)

    async def post_async(self, registry: str, plan: Plan, deadline: Deadline) -> None:
        """`post`, awaited."""
        await futures.post(self.unacknowledged, registry, plan, deadline)

    async def pin_async(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """`sender.pin`, awaited."""
        return await futures.pin(self._batched, self.registry(registry), plan, deadline)

    async def resolve_async(self, row: Wanted, deadline: Deadline) -> list[Any]:
        """`sender.resolve`, awaited."""
        return await futures.resolve(self._batched, row, deadline)

    def close(self) -> None:
        """The connection is gone."""
        self.unacknowledged.close()
        super().close()


def _start(registry: str, number: int) -> Start:
    settings = _settings.current()
    return Start(SafeRefsRegistry, (registry, settings.limits, number, settings.anchoring))


def _verbs(registry: Registry, layout: Layout) -> Asks:
    return Verbs(registry, layout) if layout.shards == 1 else ReplicatedVerbs(registry, layout)


def connect() -> Client:
    """Make the session of this process's connection."""
    found = known.add(Client(workers.connection()))
    assert isinstance(found, Client)  # noqa: S101 # nobody else adds sessions
    return found


def client() -> Client:
    """The session of this process's connection.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    found = known.current()
    return found if isinstance(found, Client) else connect()


def ensure(registry: Registry, shards: int | None, wishes: Settings, deadline: Deadline) -> None:
    """Start a registry if it doesn't run, and let it grow if it has fewer shards; see `replication.growth`."""
    growth.ensure(registry, shards, wishes, deadline)


def change_limits(registry: Registry, changes: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
    """Change limits of a registry that runs; see `replication.growth`."""
    return growth.change_limits(registry, changes, deadline)


__all__ = [
    "Account",
    "Client",
    "SafeRefsRegistry",
    "change_limits",
    "client",
    "connect",
    "current_account",
    "ensure",
    "flush",
    "given_up",
    "is_setting_up",
]
