"""A storm against the registry: `python -m tests.chaos` (`make chaos`).

Several jobs pass payloads round on a cluster of several nodes, while a seeded killer kills their processes, the registry's shards
and whole nodes. A shadow ledger, which never asks safe_refs, knows what each of these failures may cost, and judges every call. See
docs/chaos.md.

What always holds: the ledger records a failure before the killer causes it; the killer causes one failure of the registry at a time,
and the next only when the registry has recovered; it spares the head node, because Ray's own control service runs there.
"""
