"""A model of one object, its owner, the processes that borrow it, a registry and the clients' relay, to visit every state there is.

A borrower's loan is the real thing: the functions of `safe_refs.anchoring.lending`, driven as `borrower` drives them. Ray's rules of
who tells whom what, the relay, the registry, the network and the deaths are written here. They are Ray's as far as one object goes:

- A process that borrows has an *entry*: its count, the processes to which it has passed the object, and whether the owner has asked
  it to say when it lets go. The entry goes when the count is zero and there is nobody to be reported; it stays, at (0, 0), while
  there is somebody, until the owner asks.
- The answer to a call takes with it what its process knows of the object: who called has to report it from then on. Who gets the
  object as a result is noted by who gave it.
- The owner asks everybody of whom it hears for the first time. Who lets go, and was asked, reports to whom it passed the object.
  Until the report has arrived, the owner takes it for one that has the object, and doesn't ask again.
- One report of a process is on its way by itself; the next waits there until the owner has got the first, and is lost if the process
  is killed before.

```
model     values: what a state is made of
ray       what Ray does                               (entries, reports, questions, calls)
world     what may happen in a state                  (the loan's steps, the registry, the relay, deaths, time)
search    the search, and the properties
reading   a reader that loads again, and a shard; with a search of its own
```

The properties, by the words that a `ViolationError` begins with:

- freed: no process that lives has a reference to an object that is gone, unless it depended on a process that is dead and the
  borrower has said so, or its relay died with the only other reference;
- left: once all is quiet, nobody has an entry of an object that nobody holds, unless its borrower was killed before it had looked
  whether the relay had forgotten it;
- unknown: once all is quiet, the owner knows everybody who has a reference, unless the lease says that it depends on the borrower;
- a wait for ever: where nothing can happen any more, no loan is unfinished.
"""

from __future__ import annotations

from .model import Scope
from .search import Explorer, ViolationError

__all__ = ["Explorer", "Scope", "ViolationError"]
