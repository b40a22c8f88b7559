"""A queue's consumer that loses no message, whatever fails: the lease ends when the message has been processed, and not before.

The queue is a list here; with Redis, Kafka or SQS, `redeliver` and `acknowledge` are theirs. It runs as it is, on a small Ray that it
starts itself.
"""

from collections import deque

import ray

import safe_refs


def main() -> None:
    """Put three orders into a queue, and process them; the second one fails at first."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    queue: deque[bytes] = deque()
    for number in range(3):
        rows = ray.put([number] * 1000)
        queue.append(safe_refs.dumps({"order": number, "rows": rows}, ttl=3600, label="orders"))

    fails = {1}
    while queue:
        message = queue[0]  # received, and not acknowledged yet
        try:
            with safe_refs.consume(message) as order:
                if order["order"] in fails:
                    fails.discard(order["order"])
                    raise OSError("the database is away")
                print(f"order {order['order']}: {sum(ray.get(order['rows']))}")
        except safe_refs.LeaseReleasedError:
            pass  # it was processed before, and only the acknowledgement was lost
        except OSError as error:
            print(f"order {order['order']} failed, and comes again: {error}")
            queue.rotate(-1)  # redeliver
            continue
        queue.popleft()  # acknowledge
    print("held now:", safe_refs.leases())
    ray.shutdown()


if __name__ == "__main__":
    main()
