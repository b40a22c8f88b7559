"""The sessions that this process has, by connection: what is kept of a cluster is dropped here, and nowhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._ray import leaving, native, workers
from ..errors import RegistryUnavailableError

if TYPE_CHECKING:
    from .sessions import Session

_MOST_SESSIONS = 8

# By connection; at most _MOST_SESSIONS, or one more for each thread that adds one just now. No lock: each change is one step for the
# interpreter.
sessions: dict[workers.Connection, Session] = {}
has_begun = False  # whether there was ever one in this process


# In a forked child: the sessions of its parent, and of that one's. They are not dropped: to drop an actor's handle is a call to Ray.
_parents: object = None


def current() -> Session | None:
    """The session of this process's (a Ray Client's thread's) connection; None if there is none yet.

    Raises:
        RegistryUnavailableError: Ray isn't initialized here.
    """
    return sessions.get(workers.connection())


def add(session: Session) -> Session:
    """Keep a session; the one that another thread was quicker to add, if there is one. Sessions of connections that are gone end."""
    global has_begun
    has_begun = True
    found = sessions.setdefault(session.connection, session)
    gone = [] if found is session else [session]
    others = [each for each in list(sessions) if each != session.connection]
    # A process may be several Ray Clients at once; otherwise it has one connection at a time.
    ended = [each for each in others if not (session.connection.client and each.client)]
    kept = [each for each in others if each not in ended]
    for each in ended + kept[: max(0, len(kept) + 1 - _MOST_SESSIONS)]:
        if (other := sessions.pop(each, None)) is not None:
            gone.append(other)
    for other in gone:
        other.close()
    if native.is_left(native.connected()) and not session.connection.client:
        drop(
            session.connection
        )  # the process has left meanwhile, and this one came too late to be ended with the others
        raise native.gone()
    return found


def drop(connection: workers.Connection) -> None:
    """The session of a connection ends, if there is one."""
    gone = sessions.pop(connection, None)
    if gone is not None:
        gone.close()


def _end(as_client: bool) -> None:
    """This process leaves its cluster, perhaps as a Ray Client: the session of that connection ends."""
    mine: list[workers.Connection] = [each for each in list(sessions) if not each.client]
    if as_client:
        try:
            mine = [workers.connection()]
        except RegistryUnavailableError:  # it has lost its server: its calls end by their own deadlines
            mine = []
    for connection in mine:
        drop(connection)


leaving.end_session = _end


def _forget() -> None:
    """A forked child has none of the threads, nor the connection. It keeps its parent's sessions, as what they hold is Ray's."""
    global sessions, _parents, has_begun
    _parents, sessions, has_begun = (_parents, sessions), {}, False


os.register_at_fork(after_in_child=_forget)
