"""Hand a large value from one Ray job to another through a file, and release it there.

It runs as it is, on a small Ray that it starts itself. On a cluster, only `ray.init(address="auto")` changes.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path

import ray

import safe_refs


def consume(address: str, path: str) -> None:
    """Load the payload in another process, which is another job and gets nothing but the file."""
    ray.init(address=address, log_to_driver=False)
    with Path(path).open("rb") as file:
        payload = file.read()
    order = safe_refs.loads(payload)
    rows = ray.get(order["rows"])
    print(f"job {ray.get_runtime_context().get_job_id()} got {order['name']!r} with {len(rows)} rows")
    print("leases ended:", safe_refs.release(payload))
    ray.shutdown()


def main() -> None:
    """Make the payload, and stay alive until the consumer is done: the object dies with its owner."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    print(f"job {ray.get_runtime_context().get_job_id()} makes the payload")
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        safe_refs.dump({"name": "orders", "rows": ray.put(list(range(100_000)))}, file, ttl=600, label="orders")
        file.flush()
        for lease in safe_refs.leases():
            print(f"held: {lease.label}, {lease.size_bytes} bytes, made by {lease.source}")
        address = ray.get_runtime_context().gcs_address
        child = multiprocessing.get_context("spawn").Process(target=consume, args=(address, file.name))
        child.start()
        child.join(60)
    print("held now:", safe_refs.leases())
    ray.shutdown()
    sys.exit(child.exitcode)


if __name__ == "__main__":
    main()
