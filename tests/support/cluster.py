"""The tests' own Ray, and its actors without a CPU."""

from __future__ import annotations

import logging
from typing import Any

LOCAL_RAY: dict[str, Any] = {
    "address": "local",  # its own, also where another runs on this machine
    "num_cpus": 4,
    "object_store_memory": 400 * 2**20,
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "_node_ip_address": "127.0.0.1",
}


def as_actor(class_: type) -> Any:
    """Make a Ray actor class of a class, without a CPU of its own; typed as what it is at run time, which Ray's types don't know."""
    import ray

    return ray.remote(num_cpus=0)(class_)
