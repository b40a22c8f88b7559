"""A job of the storm: a driver process of its own, which starts players and stays until it is told to go, or killed.

Its orders come on its standard input, as a line of JSON; it ends when that is closed, so that it never outlives the storm.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    import ray

    from .orders import NAMESPACE
    from .player import AsyncPlayer, Player

    ray.init(address=orders["address"], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    # A player that is killed comes back as another process. What it was doing is not done again: the ledger must know what was.
    where: dict[str, Any] = {"resources": {orders["resource"]: 1}} if orders["resource"] else {}
    as_actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD", **where)
    plain, with_loop = as_actor(Player), as_actor(AsyncPlayer)
    # The last of them has an event loop.
    players: list[Any] = [plain.options(name=name).remote() for name in orders["players"][:-1]]
    players += [with_loop.options(name=name).remote() for name in orders["players"][-1:]]
    print(json.dumps({"job": ray.get_runtime_context().get_job_id()}), flush=True)
    sys.stdin.read()
    del players
    ray.shutdown()


if __name__ == "__main__":
    main()
