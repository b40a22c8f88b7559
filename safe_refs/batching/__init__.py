"""Many requests at once, and requests for which nobody waits: how the requests of a process get to the registry.

A call to a shard takes 1.4 to 2 ms, most of it Ray's own. So requests that are made at the same time share calls:

    thread A ──► leads: sends its own request at once ─────────────► shard ┐
    thread B ──► waits ┐                                                   │ one call at a time
    thread C ──► waits ├─ gathered while A's call is under way             │ for each kind of request
    thread D ──► goes on, nobody waits                                     │ and each registry
       A's answer comes; B leads: one call with B's and C's ───────► shard ┤
       thread `safe_refs-sending` leads: one call with D's ────────► shard ┘  and then D's callback

What it costs: a lone thread takes a lock twice, and passes three functions more. For a pin that nobody waits for, the caller's
thread pays 50 µs of Python and the sending thread 35. There is at most one idle thread for each kind of request and registry; it
ends after 30 s.

What is lost without it (the core then uses `registry.direct`), by the figures of `benchmarks/RESULTS.md`: 16 threads hold no more
leases a second than one (with it 3.8 times as many); `wait=False` and `pipeline` wait (without waiting: 14 times as many);
`loads_many` makes one call for each lease (a thousand together: 27 times as fast); `aio` needs a thread for each request.

Files:
- `groups`: `Group` (which requests go together, and who sends them) and `Batched` (which request goes to which group).
- `queues`: the half of `Group` that a single thread does not need: the queues, and the thread for posted requests.
- `unacknowledged`: `Unacknowledged`: pins that nobody waits for, until the registry acknowledges them; `flush`; a process's end.
- `futures`: the same requests, awaited in an event loop.

Parts, which `assembly` makes: `Batched(session)` is the session's `sender` (see `registry.protocols.Sender`);
`Unacknowledged(session)` needs the sender, and its `close` is to be called before the session's. There is no part in the shard.
"""
