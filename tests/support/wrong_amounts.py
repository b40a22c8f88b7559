"""Mistakes with how much a registry is to hold: written by hand, for a user whose registry has limits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import ray

import safe_refs
from safe_refs import aio

from .mistakes import SECRET, Given, Mistake

init: Any = safe_refs.init  # mypy would have each limit written out
# By limit: what is too little for one more lease, where two hold one object.
LIMITS = {
    "max_leases": 2,
    "max_references": 2,
    "max_bytes": 500,
    "max_leases_per_job": 2,
    "max_references_per_job": 2,
    "max_bytes_per_job": 500,
}


def _full(limit: str, call: Callable[[Any], Any]) -> Callable[[Given], Any]:
    def do(_: Given) -> Any:
        init(**{limit: LIMITS[limit]})
        try:
            return mistake_made(call(ray.put(SECRET * 100)))
        finally:
            init(**{limit: math.inf})

    return do


def mistake_made(result: Any) -> Any:
    """Await what is awaitable, while the limit holds."""
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def _flushed(ref: Any) -> None:
    safe_refs.dumps(ref, wait=False)
    safe_refs.flush()


def _by_pipeline(ref: Any) -> None:
    with safe_refs.pipeline():
        safe_refs.dumps(ref)


def _in_a_scope(ref: Any) -> None:
    with safe_refs.scope():
        safe_refs.dumps(ref)


CALLS: dict[str, Callable[[Any], Any]] = {
    "pin": safe_refs.pin,
    "put": lambda _: safe_refs.put(1),
    "dumps_many": lambda ref: safe_refs.dumps_many([1, ref]),
    "durable": lambda ref: safe_refs.dumps(ref, durable=True),
    "aio.dumps": aio.dumps,
    "aio.put": lambda _: aio.put(1),
    "flush": _flushed,
    "pipeline": _by_pipeline,
    "in a scope": _in_a_scope,
}


def _says(limit: str) -> str:
    return rf"{limit} is {LIMITS[limit]}, .*: release leases, give them a ttl, or raise the limit with init\(\)"


AMOUNTS = [
    *(
        Mistake(f"{limit} is passed", _full(limit, safe_refs.dumps), safe_refs.RegistryFullError, _says(limit))
        for limit in LIMITS
    ),
    *(
        Mistake(f"a full registry, {name}", _full("max_leases", call), safe_refs.RegistryFullError, _says("max_leases"))
        for name, call in CALLS.items()
    ),
]
