"""A storm against the registry: `python -m tests.chaos` (`make chaos`).

Several jobs pass payloads round on a cluster of several nodes, while a seeded killer takes their processes, the registry's shards
and whole nodes. A shadow ledger, which asks safe_refs nothing, knows what each of these may cost, and judges every call. See
docs/chaos.md.

What always holds: the ledger is told of a failure before it is brought about; one failure of the registry at a time, and the next
only when it has recovered; the head node, where Ray's own control service runs, is left alone.
"""
