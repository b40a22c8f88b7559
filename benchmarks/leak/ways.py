"""The four ways for a reference to leave Ray and come back: `dumps`, `loads`, and `release`, which two of them lack.

This is all that the compared runs differ in. The home-made registry is what people write who have found out that a reference in a
plain pickle dies: a named, detached actor that keeps references in a dict. It has no way to tell when it may forget one.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
import ray.cloudpickle

import safe_refs

Ref = Any  # ray.ObjectRef, whose value is of no interest here


class Way(NamedTuple):
    """How a reference becomes bytes, and again a reference; and what its last reader does with the bytes."""

    dumps: Callable[[Ref], bytes]
    loads: Callable[[bytes], Ref]
    release: Callable[[bytes], object]


def never(payload: bytes) -> None:
    """This way has no release."""


class Registry:
    """The home-made registry: the usual ten lines, together with the two functions below."""

    def __init__(self) -> None:
        self.held: dict[str, list[Ref]] = {}

    def hold(self, key: str, refs: list[Ref]) -> None:
        self.held[key] = refs

    def give(self, key: str) -> list[Ref]:
        return self.held[key]


def home_made_registry() -> Any:
    return (
        ray.remote(Registry)
        .options(name="registry", namespace="home_made", lifetime="detached", get_if_exists=True, num_cpus=0)
        .remote()
    )


def home_made_dumps(ref: Ref) -> bytes:
    key = uuid.uuid4().hex
    ray.get(home_made_registry().hold.remote(key, [ref]))
    return key.encode()


def home_made_loads(payload: bytes) -> Ref:
    return ray.get(home_made_registry().give.remote(payload.decode()))[0]


WAYS = {
    "pickle": Way(pickle.dumps, pickle.loads, never),
    "ray.cloudpickle": Way(ray.cloudpickle.dumps, ray.cloudpickle.loads, never),
    "home-made registry": Way(home_made_dumps, home_made_loads, never),
    "safe_refs": Way(safe_refs.dumps, safe_refs.loads, safe_refs.release),
}
