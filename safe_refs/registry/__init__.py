"""The registry: the keep-alive actor that holds leases, and how processes find it and ask it.

From top to bottom: `outbox` (many requests together, and those that nobody waits for); `pinning`, `resolving`, `releasing` and
`client` (one thing each: whom to ask, when to ask again, when to give up); `contact` (calls); `shard` (the Ray actor); `leases` (the
rules, pure Python). Nothing above this folder talks to the actor but through these.
"""
