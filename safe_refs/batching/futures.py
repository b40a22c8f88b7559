"""The outbox for asyncio: futures of its answers.

What always holds: nothing here blocks the loop; who is cancelled holds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..envelope import LeaseAddress
from . import outbox, releasing, site
from .pinning import Pin
from .site import Site

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]


class _Answer:
    """A future of a loop that another thread answers.

    Args:
        undo: called if the answer comes when nobody waits for it any more, in either thread; mustn't wait.
    """

    def __init__(self, undo: Callable[[], None] | None = None) -> None:
        self._undo = undo
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def __call__(self, answer: Any, error: Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._set, answer, error)
        except RuntimeError:  # the loop has been closed meanwhile
            self._forsake(error)

    def _forsake(self, error: Exception | None) -> None:
        if error is None and self._undo is not None:
            self._undo()

    def _set(self, answer: Any, error: Exception | None) -> None:
        if self.future.done():
            self._forsake(error)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(answer)


async def know(registry: str, timeout: float) -> None:
    """See to it that this process knows the registry, so that nothing has to wait for that."""
    if not site.knows(registry):
        await asyncio.to_thread(site.identity, registry, timeout)


async def pin(registry: str, wanted: Pin, timeout: float, here: Site) -> tuple[bytes, int]:
    """`outbox.pin`, awaited."""

    def undo() -> None:
        releasing.release_later(registry, [wanted.lease])

    answer = _Answer(undo)
    outbox.send(registry, wanted, timeout, here, answer)
    try:
        identity: tuple[bytes, int] = await answer.future
    except BaseException:  # cancelled, or the loop ends
        undo()  # now, as it may overtake the pin; and once more if the pin comes through all the same
        raise
    return identity


async def resolve(address: LeaseAddress, timeout: float, *, slot: int | None = None, take: bool = False) -> list[Ref]:
    """`outbox.resolve`, awaited."""
    answer = _Answer()
    outbox.send_resolve(address, timeout, answer, slot=slot, take=take)
    refs: list[Ref] = await answer.future
    return refs
