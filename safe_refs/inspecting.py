"""`inspect`: what a payload says of itself, read from its envelope.

What always holds: nothing is unpickled, and Ray isn't asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, cast

from . import envelope
from .checks import shown
from .envelope import LeaseAddress
from .errors import EnvelopeError
from .handle import SafeRef, mistaken

if TYPE_CHECKING:
    from typing_extensions import Buffer


class GivenTerms(TypedDict, total=False):
    """The terms that a payload was made with; only those that were given. `ttl` is in seconds."""

    ttl: float
    uses: int
    label: str
    durable: bool


@dataclass(frozen=True)
class PayloadInfo:
    """What a payload says of itself, read without unpickling anything and without Ray.

    Attributes:
        lease_id: id of its lease, 32 hexadecimal digits, as secret as the payload; None for a plain pickle without references.
        registry: name of the registry that holds the lease; None likewise.
        generation: which start of that registry, from 1; None likewise.
        cluster: Ray's id of the cluster, 56 hexadecimal digits; None likewise.
        terms: the terms it was made with: `ttl` in seconds, `uses`, `label`, `durable`; only those that were given.
        made_at: seconds since the epoch by the maker's clock; None for a plain pickle.
        size: bytes of the payload.
        pickle_size: bytes of the pickle inside it.
        buffers: out-of-band buffers that belong to it.
        address: where its lease lives, as secret as the payload; None for a plain pickle.
        kinds: one letter for each reference: `o` is an `ObjectRef`, `a` an `ActorHandle`.
    """

    lease_id: str | None
    registry: str | None
    generation: int | None
    cluster: str | None
    terms: GivenTerms
    made_at: float | None
    size: int
    pickle_size: int
    buffers: int
    address: LeaseAddress | None = field(default=None, repr=False, compare=False)
    kinds: str = ""

    @cached_property
    def handles(self) -> tuple[SafeRef[Any], ...]:
        """One `SafeRef` for each reference, in the order of their slots."""
        if self.address is None:
            return ()
        return tuple(SafeRef(self.address, number, kind) for number, kind in enumerate(self.kinds))

    def __repr__(self) -> str:
        if self.lease_id is None:
            return f"<PayloadInfo no lease, {self.size} bytes>"
        terms = "".join(f", {name}={value!r}" for name, value in self.terms.items())
        held = f"lease {self.lease_id[:8]} of registry {self.registry!r}, {len(self.kinds)} reference(s)"
        return shown(f"<PayloadInfo {held}, {self.size} bytes{terms}>")


def inspect(payload: bytes | bytearray | memoryview) -> PayloadInfo:
    """Read a payload's envelope: no Ray, no unpickling.

    A plain pickle, as `dumps` gives for an object without references, has no lease and no handles.

    Raises:
        EnvelopeError: the payload is cut, altered, of an unknown version, or no pickle at all.
    """
    view = memoryview(payload)
    if not has_lease(view):
        return PayloadInfo(None, None, None, None, {}, None, view.nbytes, view.nbytes, 0)
    header = envelope.find(view).header
    address = header.address
    return PayloadInfo(
        lease_id=address.lease.hex(),
        registry=address.registry,
        generation=address.generation,
        cluster=address.cluster.hex(),
        terms=cast(GivenTerms, header.terms),
        made_at=header.made_at,
        size=view.nbytes,
        pickle_size=header.inner_size,
        buffers=header.buffers,
        address=address,
        kinds=header.kinds,
    )


def has_lease(payload: Buffer) -> bool:
    """Whether bytes are a payload with an envelope, rather than a plain pickle.

    Raises:
        EnvelopeError: they are neither.
    """
    if envelope.is_payload(payload):
        return True
    view = memoryview(payload).cast("B")
    first, last = bytes(view[:1]), bytes(view[-1:])
    # From protocol 2 on a pickle starts with PROTO; before, with any opcode. The last one is STOP.
    if first == b"\x80" or (last == b"." and first in _first_bytes_of_pickles()):
        return False
    raise mistaken(payload) or EnvelopeError(
        "these bytes are neither a payload of safe_refs nor a pickle: get them again, whole and unchanged"
    )


@lru_cache
def _first_bytes_of_pickles() -> frozenset[bytes]:
    import pickletools  # rarely wanted, and takes a while to import

    return frozenset(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)


def is_buffer(target: object) -> TypeGuard[Buffer]:
    """Whether it is bytes, or a buffer of them."""
    try:
        memoryview(target).release()  # type: ignore[arg-type] # the question
    except TypeError:
        return False
    return True
