"""What the producer and the consumer have in common: processes of their own, each a Ray job of its own.

A child reads its orders from its standard input (a JSON object), so that no address with a password stands in the list of processes.
It reports on its standard output, a JSON object a line. Its parent is `hand_over.py`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .channel import Channel, open_channel
from .failure import DemoError, UsageError

STALL_TIMEOUT_S = 120.0  # without a word from the other side, a child gives up

# Run by the interpreter's -c, followed by the package's folder and a module. Python would look for modules in the current folder
# first; there may be a json.py among the files to be handed over.
START = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]]; "
    "import importlib; importlib.import_module(sys.argv[2]).main()"
)


def tell(event: str, **facts: Any) -> None:
    """Report to the parent."""
    print(json.dumps({"event": event, **facts}), flush=True)


def run(work: Callable[[Channel, Mapping[str, Any]], None]) -> None:
    """Be a child: read the orders, connect to Ray and to the channel, do the work, and disconnect in order.

    Raises:
        SystemExit: the other side fell silent, or the channel can't be used; with the reason, for standard error.
    """
    orders = json.load(sys.stdin)
    import ray

    ray.init(address=orders["ray"], log_to_driver=False, logging_level=logging.ERROR)
    try:
        tell("job", job=ray.get_runtime_context().get_job_id(), pid=os.getpid())
        with open_channel(orders["channel"]) as channel:
            work(channel, orders)
    except (DemoError, UsageError) as error:
        sys.exit(str(error))
    finally:
        ray.shutdown()
