"""What players are told, and what they answer. Plain values, which go from process to process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .values import Stamp

NAMESPACE = "chaos"
LABEL = "storm "  # and a payload's number


class Hello(NamedTuple):
    """A player's process: a token of its own, its node, its pid, and what it is (see `ledger.Process`)."""

    token: str
    node: str
    pid: int
    kind: str


class Make(NamedTuple):
    """An order for a payload.

    Attributes:
        payload: its number.
        sizes: bytes of each of its objects.
        by_task: let tasks make the values, wherever they run, instead of putting them.
        ttl: seconds, or None.
        uses: how often it may be loaded, or None.
        actors: how many handles of new actors come after the objects.
        durable: have the registry make copies.
        wait: wait until the registry holds it.
        swap: a planted fault: put another's value.
    """

    payload: int
    sizes: tuple[int, ...]
    by_task: bool = False
    ttl: float | None = None
    uses: int | None = None
    actors: int = 0
    durable: bool = False
    wait: bool = True
    swap: bool = False


class Read(NamedTuple):
    """An order to load a payload.

    Attributes:
        payload: its bytes.
        number: its number.
        stamps: the objects expected in it.
        take: end the lease with it.
        get: fetch the values now.
        keep: keep the live references under this name; empty for none.
        stall_s: a planted fault: loiter before the call.
    """

    payload: bytes
    number: int
    stamps: tuple[Stamp, ...]
    take: bool = False
    get: bool = True
    keep: str = ""
    stall_s: float = 0.0


@dataclass
class Reply:
    """What became of an order.

    Attributes:
        token: of the process that did it.
        step: what it was doing at the end: `put`, `dumps`, `flush`, `loads`, `get`, `release`, `renew`, `fork`.
        error: class of the error; empty if there was none.
        message: of the error, or what is wrong with a value.
        slot: which object was being read.
        payload: the bytes that were made.
        count: how many leases a release ended.
        call_s: the longest call to safe_refs.
        get_s: the longest `ray.get`.
    """

    token: str
    step: str = ""
    error: str = ""
    message: str = ""
    slot: int = 0
    payload: bytes = b""
    count: int = 0
    call_s: float = 0.0
    get_s: float = 0.0


def label(payload: int) -> str:
    """Label of a payload's lease, by which the ledger finds it in a listing."""
    return f"{LABEL}{payload}"
