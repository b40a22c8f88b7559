"""A model of two replicated shards and their clients, small enough to visit every state that it can get into.

Shards and clients are the real thing, driven through the functions that the actor and the client call themselves: a shard is a
`LeaseTable`, its `Rules` and the `steps` of a call; a client is a machine of `merging`. What a shard does depends only on its state
and on the call, so each pair of these is carried out once, on a copy of the real objects, and looked up from then on; a state of the
whole is seven small numbers. The network, crashes and deaths are written here.

```
model         values: what a state of the whole is made of
shards        both shards, whose behaviour is looked up              (LeaseTable, Rules, steps)
clients       what clients do with answers; the scope                (Inquiry, Pinning, Releasing, Question.awaits)
whole         the state of the whole, as numbers
shard_steps   news, recovery, crashes, and leases whose maker is dead
steps         what clients do next, and what that promises
search        the search, and the properties
```

A state is: both shards; each client's program and the calls that it has open; what is under way between shards, and orphans (calls of
clients that are dead or have given up, doubles of calls); and a ledger for the properties: what was promised, and how much may still
go wrong. The search is breadth first, so that the first trace that breaks a property is a shortest one.

In some scopes time passes, in the smallest way: leases have a first ttl, and at any moment it passes at a shard, which ends what was
not renewed as far as it knows. What a renewal gives is for ever.

Anything that is under way may be overtaken by anything else. What is under way to a shard dies with it, but for a call that a client
has open, which fails or reaches the successor. News may be lost at any time, and are then owed again. A client may give up waiting
for an answer (`Silence.LATE`), and its call may arrive all the same. A shard that holds a lease which depends on a dead process
answers DOUBTFUL, until the owner says whether what it holds is still there; if not, it asks the other shard for it. Who has a payload
before its pin was acknowledged asks again until the pin has arrived or failed.

The properties, by the words that a `ViolationError` begins with:

- early end: a lease that was pinned and that nobody has ended, or of which the use that ended it was given back, is there, for who
  asks for it, and each use of it is granted; also after its first ttl, if a renewal had been acknowledged when it was asked for;
- resurrection: once a release, a take or the last use has returned, who asks from then on is refused;
- at most once: no lease is given out by more uses and takes than it allows, and once more for each that a client gives back;
- not found while recovering: a shard that came back says neither "not found" nor "lost" before the other has answered;
- leak: once all is quiet, what was ended, or pinned in vain, is live on no shard;
- convergence: once all is quiet, both shards know the same of a lease: whether it is live, its uses, its time;
- a wait for ever: where nothing can happen any more, no client waits, and no news are owed.

What replicas don't promise is left out (`Story.risk`): what both shards may have forgotten, as they were out at the same time or
around one call (crashed, recovering, in doubt, or silent for longer than the client waits; or what they knew of it went with what
they held); what is gone from both with the lease's
maker; and what is left of a lease whose maker died before the pin was acknowledged. Nor is there a crash around an early take: the
shard that granted it may crash before the other has got the pin, which then begins the lease again. A use that is given back while a
shard is out may be refused still, until all is quiet (`Story.loose`).
"""

from __future__ import annotations

from .clients import Scope
from .search import Explorer, ViolationError, explore
from .shards import NOT_FOUND

__all__ = ["NOT_FOUND", "Explorer", "Scope", "ViolationError", "explore"]
