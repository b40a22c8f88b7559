"""The registry: the keep-alive actor that holds leases, and the client that finds it.

`client` (routes, waits, retries) calls `shard` (the Ray actor), which asks `leases` (the rules, pure Python) and is all that holds
references. Nothing above this folder talks to the actor but through `client`.
"""
