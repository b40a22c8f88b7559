"""All that this process keeps for one connection to a cluster.

A `Session` is this process's connection; what it keeps of each registry is in a `Registry`. All of it goes with the connection, and
in a forked child.

What always holds: a session is complete before anybody else sees it; a lease of another cluster is never asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from .._ray import workers
from ..config import Deadline
from .asking import Verbs
from .calls import Registry
from .direct import Direct
from .here import Here, Start
from .protocols import Asks, Directory, Layout, Sender
from .records import Identity
from .requests import Plan, Wanted

_MOST_REGISTRIES = 64  # that a session remembers


class Session(Here):
    """This process's connection to a cluster, and all that is kept for it. See `Here` for the first three arguments.

    Args:
        connection: see `Here`.
        directory: see `Here`.
        start: see `Here`.
        verbs: makes the `Verbs` for a layout.

    Attributes:
        registries: by name, those that it knows; `registry` adds one.
        sender: how requests get to the verbs. Complete before anybody else gets the session.
        plan: makes a `Plan`, for those who import this room only when they have a session.
    """

    plan = Plan

    def __init__(
        self,
        connection: workers.Connection,
        directory: Directory,
        start: Callable[[str, int], Start],
        verbs: Callable[[Registry, Layout], Asks] = Verbs,
    ) -> None:
        super().__init__(connection, directory, start)
        self._verbs = verbs
        self.sender: Sender = Direct(self.registry, self.origin)
        # At most _MOST_REGISTRIES: then the oldest is forgotten. No lock: each change is one step for the interpreter.
        self.registries: dict[str, Registry] = {}

    def before_pins(self, registry: str, plans: Sequence[Plan]) -> None:
        """Leases are about to be pinned, in one call, by a caller that waits."""
        plans = [plan for plan in plans if plan.borrowed or plan.durable]
        for part in self.parts if plans else ():
            if len(plans) == 1:
                part.before_pin(registry, plans[0])
            else:
                part.before_pins(registry, plans)

    def after_pins(self, registry: str, pins: Sequence[tuple[Plan, Identity | None]], deadline: Deadline) -> None:
        """The registry of that identity holds a lease, or (None) the pin has failed, of each."""
        pins = [pin for pin in pins if pin[0].may_take_long or pin[0].is_unsure]
        for part in self.parts if pins else ():
            part.after_pins(registry, pins, deadline)

    def post(self, registry: str, plan: Plan, deadline: Deadline) -> None:
        """Have a lease pinned soon. By itself, a session pins at once."""
        self.sender.pin(registry, plan, deadline)

    async def post_async(self, registry: str, plan: Plan, deadline: Deadline) -> None:
        """`post`, awaited: by itself, a session has a thread do it, as for the two below."""
        await asyncio.to_thread(self.post, registry, plan, deadline)

    async def pin_async(self, registry: str, plan: Plan, deadline: Deadline) -> Identity:
        """`sender.pin`, awaited."""
        return await asyncio.to_thread(self.sender.pin, registry, plan, deadline)

    async def resolve_async(self, row: Wanted, deadline: Deadline) -> list[Any]:
        """`sender.resolve`, awaited."""
        return await asyncio.to_thread(self.sender.resolve, row, deadline)

    def registry(self, name: str) -> Registry:
        """A registry, which needn't run."""
        found = self.registries.get(name)
        if found is None:
            if len(self.registries) >= _MOST_REGISTRIES:
                self.registries.pop(list(self.registries)[0], None)  # noqa: RUF015 # an iterator may meet a change
            found = self.registries.setdefault(name, Registry(self, name, self._verbs))
        return found

    def close(self) -> None:
        """The connection is gone."""
        self.sender.close()
        for part in self.parts:
            part.close()
