"""All that this process keeps for one connection to a cluster.

A `Session` is this process's connection; what it keeps of each registry is in a `Registry`. All of it goes with the connection, and in
a forked child.

What always holds: a session is complete before anybody else sees it; a lease of another cluster is never asked for.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import client as ray_client
from .._ray import workers
from ..config import Deadline
from ..envelope import LeaseAddress
from ..errors import WrongClusterError
from .calls import Registry
from .hooks import ClientPart, Directory, Layout, Plan, Sender
from .records import Identity, Origin, by_client
from .verbs import Direct

if TYPE_CHECKING:
    from .asking import Verbs

_MOST_REGISTRIES = 64  # that a session remembers
_MOST_SESSIONS = 8  # of which all but the newest are of connections that are gone, unless this process is several Ray Clients
_FOLDER = str(Path(__file__).parent.parent) + os.sep  # of the package

_lock = threading.Lock()  # guards changes of `_sessions`, which is replaced whole, so that it may be read at any time
_sessions: dict[workers.Connection, Session] = {}


def current() -> Session | None:
    """The session of this process's (a Ray Client's thread's) connection; None if there is none yet.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    return _sessions.get(workers.connection())


def add(session: Session) -> Session:
    """Keep a session; the one that another thread was quicker to add, if there is one. Sessions of connections that are gone end."""
    global _sessions
    with _lock:
        found = _sessions.get(session.connection)
        if found is not None:
            session.close()
            return found
        kept = {each: known for each, known in _sessions.items() if session.connection.client and each.client}
        while len(kept) >= _MOST_SESSIONS:
            del kept[next(iter(kept))]
        gone = [known for each, known in _sessions.items() if each not in kept]
        _sessions = {**kept, session.connection: session}
    for known in gone:
        known.close()
    return session


def _forget() -> None:
    """A forked child has none of the threads, and its locks may be held for ever by threads that it doesn't have."""
    global _lock, _sessions
    _lock, _sessions = threading.Lock(), {}


os.register_at_fork(after_in_child=_forget)


class Start(NamedTuple):
    """How a shard's actor is started: its class, and the arguments of that."""

    actor: type
    args: tuple[Any, ...]


class Session:
    """This process's connection to a cluster.

    Args:
        connection: which cluster, as which job.
        directory: finds registries' layouts.
        start: how to start the actor of a registry's shard.
        verbs: what asks a registry that has such a layout.

    Attributes:
        node: this process's node id; of a Ray Client, its server's.
        pid: this process's id.
        address: what others need to see whether this process (a client's server) is dead.
        parts: what the wings add. Complete before anybody else gets the session.
        sender: how requests get to the verbs; likewise.
        sending: a thread of ours is passing references on for callers that don't wait, and so uses references.
    """

    def __init__(
        self,
        connection: workers.Connection,
        directory: Directory,
        start: Callable[[str, int], Start],
        verbs: Callable[[Registry, Layout], Verbs],
    ) -> None:
        self.connection = connection
        self.node, self.pid = workers.node_and_process()
        self.address = workers.own_address()
        self.directory = directory
        self.start = start
        self.verbs = verbs
        self.parts: Sequence[ClientPart] = ()
        self.sender: Sender = Direct(self)
        self.sending = False
        self._lock = threading.Lock()  # guards `_registries`
        self._registries: dict[str, Registry] = {}  # at most _MOST_REGISTRIES: then the oldest is forgotten

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """Leases are about to be pinned, in one call, by a caller that waits."""
        plans = [plan for plan in plans if plan.borrowed or plan.durable]
        for part in self.parts if plans else ():
            if len(plans) == 1:
                part.before_pin(registry, plans[0])
            else:
                part.before_pins(registry, plans)

    def after_pins(self, registry: str, pins: Sequence[tuple[Plan, Identity | None]], deadline: Deadline) -> None:
        """The registry of that identity holds a lease, or (None) the pin has failed, of each."""
        pins = [pin for pin in pins if pin[0].borrowed or pin[0].durable]
        for part in self.parts if pins else ():
            part.after_pins(registry, pins, deadline)

    def post(self, registry: str, plan: Plan, deadline: Deadline) -> None:
        """Have a lease pinned soon; what goes wrong, somebody else is told. By itself, a session pins at once."""
        self.sender.pin(registry, plan, deadline)

    def registry(self, name: str) -> Registry:
        """A registry, which needn't run."""
        found = self._registries.get(name)
        if found is None:
            with self._lock:
                if len(self._registries) >= _MOST_REGISTRIES:
                    del self._registries[next(iter(self._registries))]
                found = self._registries.setdefault(name, Registry(self, name))
        return found

    def origin(self) -> Origin:
        """Who is calling: this job, node and process, and the nearest source line outside safe_refs."""
        source, frame = "unknown", sys._getframe(1)
        caller: FrameType | None = frame
        while caller is not None:
            code = caller.f_code
            if not code.co_filename.startswith(_FOLDER):
                source = f"{code.co_filename}:{caller.f_lineno} in {code.co_name}"
                break
            caller = caller.f_back
        if self.connection.client:
            source = by_client(source, ray_client.host())
        return Origin(self.connection.job, self.node, self.pid, source)

    def check_cluster(self, address: LeaseAddress) -> None:
        """Refuse a lease of another cluster.

        Raises:
            WrongClusterError: it is one.
        """
        if address.cluster != self.connection.cluster:
            raise WrongClusterError.of(address.short_id, address.cluster, self.connection.cluster)

    def close(self) -> None:
        """The connection is gone."""
        self.sender.close()
        for part in self.parts:
            part.close()
