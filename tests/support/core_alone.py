"""A registry made of the core alone: one shard, no batching, no anchoring, no replicas, no copies."""

from __future__ import annotations

import os

from safe_refs._ray import workers
from safe_refs.config import Limits
from safe_refs.registry import known
from safe_refs.registry.here import Start
from safe_refs.registry.protocols import Always
from safe_refs.registry.records import Identity
from safe_refs.registry.sessions import Session
from safe_refs.registry.shard import Shard


class CoreShard(Shard):
    """The actor, without any part of a wing."""

    def __init__(self, registry: str) -> None:
        super().__init__(registry, Identity(os.urandom(8), 1), Limits())
        self.start(())


def session() -> Session:
    """A session without any wing, for this process's connection. The caller puts it in the place of the usual one, or not."""
    return Session(workers.connection(), Always(), lambda registry, _: Start(CoreShard, (registry,)))


def replace() -> Session:
    """The same, in the place of the usual one: every public function uses it from now on."""
    known.drop(workers.connection())
    return known.add(session())
