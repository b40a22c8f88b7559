"""A registry made of the core and of durability: one shard, no batching, no anchoring, no replicas."""

from __future__ import annotations

import os

from safe_refs._ray import workers
from safe_refs.config import Limits
from safe_refs.durability import owner
from safe_refs.durability.client import Copies
from safe_refs.durability.part import Durability
from safe_refs.registry.here import Start
from safe_refs.registry.protocols import Always
from safe_refs.registry.records import Identity
from safe_refs.registry.sessions import Session
from safe_refs.registry.shard import Shard


class DurableShard(Shard):
    """The actor, with durability as its only wing."""

    def __init__(self, registry: str) -> None:
        Shard.__init__(self, registry, Identity(os.urandom(8), 1), Limits())
        self.start([Durability(self, owner.start)])


# Actors of ours know the classes of each other's handles by their module: to the copy owner, a handle of this one is a shard's.
DurableShard.__module__, DurableShard.__qualname__ = Shard.__module__, Shard.__qualname__


class DurableSession(Session):
    """A session of such registries, for this process's connection.

    Args:
        name: of the registry that the test uses.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(workers.connection(), Always(), lambda registry, _: Start(DurableShard, (registry,)))
        self.copies = Copies(self)
        self.parts = (self.copies,)
