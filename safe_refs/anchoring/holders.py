"""What a process that anchors asks of the shards that hold a lease.

What always holds: no registry is started; where there is none, or no shard answers, that is an answer; every wait has a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._ray import workers
from ..config import Deadline
from ..errors import RegistryUnavailableError
from ..registry.calls import Call, NoRegistryError, Silence
from .part import Anchoring, GiveBack

if TYPE_CHECKING:
    import ray

    from ..registry.protocols import Asks
    from ..registry.sessions import Session

    Ref = ray.ObjectRef[Any]

_ASKS_PAUSE_S = 0.01


def is_current(session: Session) -> bool:
    """Whether this process is still connected to what the session is of. A thread that calls Ray after that may start another Ray."""
    return workers.is_connected_by(session.connection)


class Holders:
    """The shards that hold leases, as a session finds them.

    Args:
        session: whose registries are asked.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def of(self, registry: str, lease: bytes) -> set[int]:
        """The shards that a lease is pinned at; none if the registry doesn't run."""
        verbs = self._verbs(registry)
        return set() if verbs is None else set(verbs.holders(lease))

    def unanchored(self, registry: str, leases: Collection[bytes], deadline: Deadline) -> set[bytes] | None:
        """Ask a registry to anchor these leases soon: which are unanchored still, at one holder at least; None if nobody is there.

        One whose holders are all silent counts as unanchored.
        """
        verbs = self._verbs(registry)
        if verbs is None:
            return None
        asked = {shard: theirs for shard, theirs in verbs.by_shard(leases).items() if theirs}
        calls = {shard: Call(Anchoring.anchor_now, theirs) for shard, theirs in asked.items()}
        try:
            replies = self._session.registry(registry).ask(calls, deadline)
        except RegistryUnavailableError:
            return None
        answered, silent, found = set[bytes](), set[bytes](), set[bytes]()
        for shard, reply in replies.items():
            if isinstance(reply, list):
                answered.update(asked[shard])
                found.update(reply)
            elif reply is Silence.LATE:
                silent.update(asked[shard])
        return found | (silent - answered) if answered or silent else None

    def anchor_now(self, registry: str, leases: Collection[bytes], deadline: Deadline) -> bool:
        """Have a registry anchor what it holds and handed out of these leases; whether that is done in time."""
        while True:
            left = self.unanchored(registry, leases, deadline)
            if not left:
                return left is not None
            if deadline.is_over():
                return False
            leases = left
            time.sleep(_ASKS_PAUSE_S)

    def anchors(self, registry: str, deadline: Deadline) -> bool:
        """Whether a registry anchors at all; False if it doesn't answer."""
        return self._session.registry(registry).ask({0: Call(Anchoring.anchors)}, deadline)[0] is True

    def give_back(
        self, registry: str, leases: Collection[bytes], ids: Collection[bytes], relay: int, key: bytes
    ) -> None:
        """Have all shards that may hold these leases give objects of them back to this process, in a relay's stead. Doesn't wait.

        What comes back is dropped at once: what counts is that Ray has told this process of it. A shard that is gone holds nothing.
        """
        verbs = self._verbs(registry)
        if verbs is not None:
            calls = {
                shard: Call(Anchoring.give_back, GiveBack(list(ids), relay, key, theirs))
                for shard, theirs in verbs.by_shard(leases).items()
            }
            self._session.registry(registry).send(calls)

    def bring(self, registry: str, refs: Mapping[bytes, Sequence[Ref]], deadline: Deadline | None = None) -> None:
        """Bring references to all shards that hold these leases, by lease: Ray has their owners learn that the shards have them.

        With a deadline it waits until that is done.
        """
        verbs = self._verbs(registry)
        if verbs is None:
            return
        calls = {
            shard: Call(Anchoring.meet, [ref for lease in theirs for ref in refs[lease]])
            for shard, theirs in verbs.by_shard(refs).items()
        }
        if deadline is None:
            self._session.registry(registry).send(calls)
        else:
            self._session.registry(registry).ask(calls, deadline)

    def _verbs(self, registry: str) -> Asks | None:
        try:
            return self._session.registry(registry).verbs(start=False)
        except (NoRegistryError, ValueError, RegistryUnavailableError):
            return None
