"""Where this process stands: its connection, and who it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from .. import callers
from .._ray import client as ray_client
from .._ray import exits, workers
from ..envelope import LeaseAddress
from ..errors import WrongClusterError
from .hooks import ClientPart
from .protocols import Directory
from .records import Origin, by_client


class Start(NamedTuple):
    """How a shard's actor is started: its class, and the arguments of that."""

    actor: type
    args: tuple[Any, ...]


class Here:
    """This process, as it is connected to a cluster.

    Args:
        connection: which cluster, as which job.
        directory: finds registries' layouts.
        start: how to start the actor of a registry's shard.

    Attributes:
        node: this process's node id; of a Ray Client, its server's.
        pid: this process's id.
        address: what others need to see whether this process (a client's server) is dead.
        parts: what the wings add. Complete before anybody else gets it.
    """

    def __init__(
        self, connection: workers.Connection, directory: Directory, start: Callable[[str, int], Start]
    ) -> None:
        self.connection = connection
        exits.watch()
        self.node, self.pid = workers.node_and_process()
        self.address = workers.own_address()
        self.directory = directory
        self.start = start
        self.parts: Sequence[ClientPart] = ()

    @property
    def sending(self) -> bool:
        """Whether a thread of ours is passing references on for callers that don't wait, and so uses references."""
        return False

    def origin(self) -> Origin:
        """Who is calling: this job, node and process, and the nearest source line outside safe_refs."""
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and caller.f_code.co_filename.startswith(callers.FOLDER):
            caller = caller.f_back
        if caller is None or caller.f_code.co_filename.startswith(callers.MACHINERY):
            source = callers.line(caller)  # not always, as it would be one more step on the way of each reference
        else:
            source = f"{caller.f_code.co_filename}:{caller.f_lineno} in {caller.f_code.co_name}"
        if len(source) > callers.SHORT:
            source = callers.clipped(source)
        if self.connection.client:
            source = by_client(source, ray_client.host())
        return Origin(self.connection.job, self.node, self.pid, source)

    def check_cluster(self, address: LeaseAddress) -> None:
        """Refuse a lease of another cluster.

        Raises:
            WrongClusterError: it is one.
        """
        if address.cluster != self.connection.cluster:
            raise WrongClusterError.of(address.short_id, address.cluster, self.connection.cluster)
