"""A model of two replicated shards and their clients, small enough to visit every state that it can get into.

The shards are the real thing: a `LeaseTable` and a `Replica` each, driven through their own methods. What a shard does depends only
on its state and on the call, so each pair of these is carried out once, on a copy of the real objects, and looked up from then on; a
state of the whole is seven small numbers. Clients (as in `registry.pinning` and its neighbours), the network and crashes are small
step machines, written here.

A state is: both shards; each client's program and the calls that it has open; what is under way between shards, and orphans (calls of
dead clients, doubles of calls); and a book for the properties: what was promised, and how much may still go wrong. The search is
breadth first, so that the first trace that breaks a property is a shortest one.

Anything that is under way may be overtaken by anything else. What is under way to a shard dies with it, but for a call that a client
has open, which fails or reaches the successor. News may be lost at any time, and are then owed again.

The properties, by the words that a `ViolationError` begins with:

- early end: a lease that was pinned and that nobody has ended is there, for who asks for it, and each use of it is granted;
- resurrection: once a release, a take or the last use has returned, who asks from then on is refused;
- at most once: no lease is given out by more uses and takes than it allows;
- not found while recovering: a shard that came back says neither "not found" nor "lost" before it has heard from the other;
- leak: once all is quiet, what was ended, or pinned in vain, is live on no shard;
- convergence: once all is quiet, both shards know the same of a lease: whether it is live, its uses, its time;
- a wait for ever: where nothing can happen any more, no client waits, and no news are owed.

What replicas don't promise is left out: what both shards lost, as they were down or recovering at the same time or crashed both
around one call (`Story.risk`), and what is left of a lease whose maker died before it was told that it is held.
"""

from __future__ import annotations

from .clients import Scope
from .search import Explorer, ViolationError
from .shards import NOT_FOUND

__all__ = ["NOT_FOUND", "Explorer", "Scope", "ViolationError"]
