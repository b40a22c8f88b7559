"""What is lost and what leaks when a reference leaves Ray: plain pickle, `ray.cloudpickle`, a home-made registry, safe_refs.

Run it with `python -m benchmarks.leak`; benchmarks/README.md says what the figures mean. `ways` holds what the four ways differ in,
`one_way` puts one of them to work in a Ray of its own, `figures` is what it reports, `table` and `picture` show it.
"""
