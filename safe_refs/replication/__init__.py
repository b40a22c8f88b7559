"""Several shards for one registry: R of N hold each lease. With R of 2 or more the crash of a shard loses no lease; N spreads load.

A lease's id names its holders, by rendezvous hashing: every process that knows the topology (N and R) finds them by itself. Processes
talk to all holders. What a process could not say to one of them (the shard was down, the process died half-way) the others pass on.

    process                     shard 0                 shard 1                  control store
      │── pin ────────────────────>│                       │                          │   both hold the lease
      │── pin ────────────────────────────────────────────>│                          │
      │                          crashes, starts anew ─────────────── join ──────────>│   "you have started before"
      │── release ─────────────────────────────────────────>│                         │   not lost: shard 1 will pass it on
      │── resolve ────────────────>│  "recovering"         │                          │   so the answer of shard 1 counts
      │── resolve ─────────────────────────────────────────>│                         │
      │                            │── shared_with, records >│                        │   it gets back what it held
      │                            │<───────────── receive ──│                        │   and news

`growth` shows how a registry gets more shards.

What it costs, median of paired ratios (docs/scaling.md):

- with R = 2 `dumps` takes 1.70 times as long, and `loads` 1.72 times; the shards need twice the memory and CPU time
- a shard that was killed holds 10,000 leases again after 1.9 s; a registry with 10,000 leases grows from 2 to 4 shards in 4.3 s
- with one shard: one comparison a call, and one look into the control store for each registry that a process uses

Without this wing a registry has one shard, and its crash loses all leases; a shard that has restarted takes itself for a new one.

Files, each imports only those before it: `topology` (who holds what; pure), `records` (a lease between shards; pure), `rules` (what
one shard owes the others; pure), `merging` (what the answers of several shards mean; pure), `control_store` (what outlives the
actors), `directory` (a process finds the topology), `links` and `peers` (a shard's thread that calls the others), `part` (the shard's
side), `verbs` (a process's side), `growth` (a registry gets more shards).

Parts:

- of a shard: `part.Replication(shard, joined)`, with `joined = control_store.join(registry, number)`, which also says which identity
  the shard has; the shard is `alone` if `joined.topology.replicas` is 1
- of a process: no `ClientPart`, but the session's directory, `directory.TopologyDirectory()`, and its verbs, `verbs.ReplicatedVerbs`
  for a layout with several shards; `growth.ensure` is what `init(shards=…, replicas=…)` does

The thread is called `safe_refs-peers`, in each shard.
"""
