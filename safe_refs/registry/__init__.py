"""One shard and how to ask it: the core of the registry, with nothing optional in it.

A process asks through `verbs` (what is wanted of a lease: begin it, resolve it, end it), which asks through `calls` (which actor, how
long to wait). The actor is `shard`, a thin shell round `leases`, the rules. `wire` has what travels between the two, `hooks` what a
wing may add on either side. Complete by itself: a registry without any wing holds, resolves and ends leases on one shard.
"""
