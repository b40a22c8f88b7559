"""Classes that the benchmarks pickle. They stand in a module of their own, as most people's do: `__main__` is another case."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Point:
    """A small object of an importable class."""

    x: int
    y: str
