"""The sessions that this process has, by connection: what is kept of a cluster is dropped here, and nowhere else."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .._ray import workers

if TYPE_CHECKING:
    from .sessions import Session

_MOST_SESSIONS = 8

# By connection; at most _MOST_SESSIONS. The lock guards its changes: it is replaced whole, so that it may be read at any time.
_lock = threading.RLock()  # a destructor may come while its thread has it
sessions: dict[workers.Connection, Session] = {}


def current() -> Session | None:
    """The session of this process's (a Ray Client's thread's) connection; None if there is none yet.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    return sessions.get(workers.connection())


def add(session: Session) -> Session:
    """Keep a session; the one that another thread was quicker to add, if there is one. Sessions of connections that are gone end."""
    global sessions
    with _lock:
        while True:
            before = sessions
            found = before.get(session.connection)
            if found is not None:
                gone = [session]
                break
            # A process may be several Ray Clients at once; otherwise it has one connection at a time.
            kept = {each: other for each, other in before.items() if session.connection.client and each.client}
            while len(kept) >= _MOST_SESSIONS:
                del kept[next(iter(kept))]
            gone = [other for each, other in before.items() if each not in kept]
            after = {**kept, session.connection: session}
            if sessions is before:  # else a signal handler has come in between, and added one
                sessions = after
                break
    for other in gone:
        other.close()
    return found or session


def drop(connection: workers.Connection) -> None:
    """The session of a connection ends, if there is one."""
    global sessions
    with _lock:
        gone = sessions.get(connection)
        sessions = {each: other for each, other in sessions.items() if each != connection}
    if gone is not None:
        gone.close()


def _forget() -> None:
    """A forked child has none of the threads, and its locks may be held for ever by threads that it doesn't have."""
    global _lock, sessions
    _lock, sessions = threading.RLock(), {}


os.register_at_fork(after_in_child=_forget)
