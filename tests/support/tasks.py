"""Tasks that are done when the test says so: by a file, which processes of all kinds can make and see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from .values import MB
from .waiting import wait_until

_LONGEST_S = 600.0  # longer than any test


class MistakeError(ValueError):
    """A task's own error, with a fact of its own."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


def begun(path: Path | str) -> Path:
    """The file that is there as soon as somebody waits for the one of that name. Ray may lose a `cancel` that comes before."""
    return Path(f"{path}.begun")


def wait_for(path: str) -> None:
    """Wait until there is a file of that name."""
    begun(path).touch()
    wait_until(Path(path).exists, _LONGEST_S)


def _when_told(path: Any, value: Any = b"v" * MB) -> Any:
    wait_for(path)
    return value


def _raise_mistake(path: str | None = None) -> None:
    if path is not None:
        wait_for(path)
    raise MistakeError("not today", 42)


def items(folder: str, count: int, fails: bool = False) -> Iterator[bytes]:
    """Items of 1 MB, each as soon as there is a file of its number."""
    for number in range(count):
        wait_for(f"{folder}/{number}")
        yield bytes([number]) * MB
    if fails:
        raise MistakeError("the stream broke", count)


@ray.remote(num_cpus=0, max_retries=0)
def crash() -> None:
    os._exit(1)


# Typed as what they are at run time, which Ray's types don't know of generators and optional arguments.
when_told: Any = ray.remote(num_cpus=0)(_when_told)
fail: Any = ray.remote(num_cpus=0, max_retries=0)(_raise_mistake)
stream: Any = ray.remote(num_cpus=0)(items)
