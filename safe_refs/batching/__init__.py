"""Many requests at once, and requests for which nobody waits: how the requests of a process get to the registry.

A call to a shard takes 1.4 to 2 ms, most of it Ray's own. So requests that are made at the same time share calls:

    thread A ──► finds no call under way, and sends its request by itself ───────► shard
    thread B ──► waits ┐
    thread C ──► waits ├─► thread `safe_refs-sending`: one call with all three ──► shard
    thread D ──► goes on ┘

While the shared call is under way, requests for the next one gather. No thread of the user's ever sends for another one. So if a
signal handler interrupts a thread, or a destructor asks for something in the middle of it, no other thread waits for what it leaves.

What it costs: a lone thread passes two functions more. For a pin that nobody waits for, the caller's thread pays 50 µs of Python
and the sending thread 35. There is at most one idle thread for each kind of request and registry; it ends after 30 s.

What is lost without it (the core then uses `registry.direct`); `benchmarks/RESULTS.md` has the figures:
- 16 threads make no more leases a second than one thread. With it: about 5 times as many.
- `wait=False` and `pipeline` wait. With it, without waiting: 20 to 25 times as many leases a second.
- `loads_many` makes one call for each lease. With it, a thousand leases together: 30 to 40 times as fast.
- `aio` needs a thread for each request.

Files:
- `groups`: `Group` (who sends a request) and `Batched` (which request goes to which group).
- `queues`: the half of `Group` that a lone thread does not enter: the queue, and the thread that sends what is in it.
- `unacknowledged`: `Unacknowledged` (pins that nobody waits for, until the registry acknowledges them); `flush`; a process's end.
- `futures`: the same requests, awaited in an event loop.

Parts, which `assembly` makes: `Batched(session)` is the session's `sender` (see `registry.protocols.Sender`);
`Unacknowledged(session)` needs the sender, and its `close` is to be called before the session's. There is no part in the shard.
"""
