"""Event loops: whether anything kept one from its work."""

from __future__ import annotations

import asyncio
import time


class Ticks:
    """How long the loop was ever kept from what it had to do."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def __aenter__(self) -> Ticks:
        self._task = asyncio.get_running_loop().create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.02)
        self._task.cancel()

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now
