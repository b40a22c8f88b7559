"""Durable leases: the registry holds copies of its own, which outlive the process, job and driver that made the objects.

A Ray object dies with its owner. So for `durable=True` a *copy owner*, an actor beside each shard, has Ray tasks copy everything that
the lease holds and everything inside that, to any depth, and gives the copies to the shard. The lease then holds those instead.

    maker                       copy owner                tasks                     shard
    │─── CopyCall ─────────────────>│                       │                         │  objects that the maker owns
    │─── pin ────────────────────────────────────────────────────────────────────────>│
    │                               │<── CopyCall ────────────────────────────────────│  all other objects
    │                               │─── duplicate, … ─────>│                         │  where the data is
    │                               │<── the copies ────────│                         │
    │                               │─── take_copies ────────────────────────────────>│  it holds the copies now
    │<── completion ────────────────│                       │                         │
    │─── make_durable, to shards without copies ─────────────────────────────────────>│  every 3 s, until they have

What it costs:

- the object's size once more while both exist; with replicas each has copies of its own, on different nodes if there are several
- one pass over the memory, as a task that returns its argument, and 7 to 11 ms beyond that task, whatever the size: 1.11 times such a
  task for 400 MB, 1.45 times for 100 MB, 2.6 times for 1 MB (benchmarks/README.md, docs/durable.md)
- some seconds the first time in a cluster, because processes start; a shard without durable leases starts no copy owner

Without this wing nobody makes the copies: every lease ends when the owners of its objects do (`OwnerGoneError`).

Files, each imports only those before it: `wire` (what travels), `copying` (the tasks), `jobs` (one lease's copies; pure),
`requests` (one shard's copy requests; pure), `nodes` (where copies are), `part` (the shard's side), `runner` and `owner` (the
actor), `waiting` and `client` (the maker's side).

Parts:

- of a shard: `part.Durability(shard, owner.start)`
- of a client: `client.Copies(session)`. It follows anchoring's part in the list: borrowed objects must be anchored before they are
  copied. Its `make_durable` is for leases that exist; by `client.given_up` a caller stops one that waits in another thread.
- the actor `owner.SafeRefsCopyOwner`, named `<the shard's name>:copies`, which the shard starts

The thread is called `safe_refs-copies`, in a shard and in a copy owner.
"""
