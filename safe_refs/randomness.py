"""Random bytes from the operating system, asked for a page at a time: one question costs as much as a small pickle.

What always holds: no byte is given out twice, neither to two threads nor to a process and its forked child.
"""

from __future__ import annotations

import os
from collections import deque

_PAGE = 4096
_pools: dict[int, deque[bytes]] = {}


def token(size: int) -> bytes:
    """So many random bytes, good enough for secrets."""
    pool = _pools.get(size)
    if pool is None:
        pool = _pools.setdefault(size, deque())
    try:
        return pool.pop()  # atomic
    except IndexError:
        page = os.urandom(_PAGE - _PAGE % size)
        pool.extend(page[start : start + size] for start in range(size, len(page), size))
        return page[:size]


os.register_at_fork(after_in_child=_pools.clear)
