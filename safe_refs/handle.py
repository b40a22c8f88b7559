"""`SafeRef`: a small immutable value that names one reference of one lease.

What always holds: holding a handle keeps nothing alive, and pickling, copying or printing one changes nothing; a handle's text and
bytes are capabilities (whoever has them can resolve and release), so `repr` shows the lease's short id only.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import asks, callers, checks, envelope, pacing, slots, spending
from ._ray import objects
from .envelope import FORMAT_VERSION, Header, LeaseAddress, check_version, pack_address, seal, unpack_address, unseal
from .errors import EnvelopeError, OwnerGoneError, SafeRefsError
from .slots import ACTOR, KINDS, OBJECT_REF, Opened
from .spending import Use

if TYPE_CHECKING:
    import ray

T_co = TypeVar("T_co", covariant=True)

_MAGIC = b"SREF"
TEXT_PREFIX = "safe-ref:"
_TEXT = " a SafeRef's text, not a payload: SafeRef.parse({}) is the handle, and its get() gives the value"


class SafeRef(Generic[T_co]):
    """Names one reference of one lease. Immutable, hashable, equal by what it names, picklable by any pickler.

    Get one from `pin`, from `loads(..., resolve=False)`, or back from its text (`SafeRef.parse(str(handle))`) or bytes
    (`SafeRef.from_bytes(bytes(handle))`). As a context manager (`async with`, too) it releases its lease at the end.
    """

    __slots__ = ("_address", "_kind", "_slot")

    _address: LeaseAddress
    _slot: int
    _kind: str

    def __init__(self, address: LeaseAddress, slot: int = 0, kind: str = OBJECT_REF) -> None:
        if not isinstance(address, LeaseAddress):
            raise TypeError(
                f"a SafeRef can't be made of {type(address).__name__}: pin, put and loads(…, resolve=False) make one, and "
                "SafeRef.parse makes it of its text"
            )
        object.__setattr__(self, "_address", address)
        object.__setattr__(self, "_slot", slot)
        object.__setattr__(self, "_kind", kind)

    @property
    def address(self) -> LeaseAddress:
        """Where its lease lives. Treat it as a secret: it is all that `release` needs."""
        return self._address

    @property
    def lease_id(self) -> str:
        """Id of its lease, 32 hexadecimal digits; as secret as the handle itself."""
        return self._address.lease.hex()

    @property
    def short_id(self) -> str:
        """First eight digits of the lease's id, as errors and `leases()` show it."""
        return self._address.short_id

    @property
    def slot(self) -> int:
        """Which of the lease's references it names, from 0."""
        return self._slot

    @property
    def kind(self) -> str:
        """What it resolves to: `o` is an `ObjectRef`, `a` an `ActorHandle`."""
        return self._kind

    def resolve(self, *, anchored: bool = False, timeout: float | timedelta | None = None) -> ray.ObjectRef[T_co]:
        """Give the reference (an `ActorHandle`) back, tracked by Ray as if passed in-band. Counts as one use of the lease.

        Args:
            anchored: as for `loads`.
            timeout: seconds to wait for the registry (not for the value); default from `init` or `SAFE_REFS_TIMEOUT`.

        Raises:
            LeaseError: the lease has ended; the class says how.
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        anchored = checks.flag(anchored, "anchored")
        use, since = os.urandom(8), time.monotonic()  # so that it is given back if a signal handler raises
        found: ray.ObjectRef[T_co] = asks.resolve(self._address, timeout, slot=self._slot, take=False, use=use)[0]
        if anchored:
            with spending.unless_opened([Use(self._address, use, False, [found])], timeout):
                pacing.await_anchored([self._address], timeout, since)
        return found

    def get(self, timeout: float | None = None) -> T_co:
        """Resolve, and wait for the value as `ray.get` does. For an actor: its handle.

        Args:
            timeout: seconds to wait for the value; None waits for as long as it takes, as `ray.get` does.

        Raises:
            OwnerGoneError: the process that owned the object is dead.
            ray.exceptions.GetTimeoutError: the value wasn't there in time.
            LeaseError: as from `resolve`; and whatever the task that makes the value raised.

        If it raises, the use of the lease is given back.
        """
        if timeout is not None:
            timeout = checks.wait_s(timeout, "timeout")  # before the lease is used
        return self._load(timeout, None, [])

    def _load(self, timeout: float | None, registry_timeout: float | timedelta | None, uses: list[Use]) -> T_co:
        """`get`; and the use of the lease, for who may give it back later. If it raises, it has given all of them back."""
        import ray

        use = os.urandom(8)
        refs: list[Any] = asks.resolve(self._address, registry_timeout, slot=self._slot, take=False, use=use)
        uses.append(Use(self._address, use, False, refs))
        if self._kind == ACTOR:
            return cast(T_co, refs[0])
        with spending.unless_opened(uses, registry_timeout):
            try:
                value: T_co = objects.users_value(refs[0], timeout)
            except ray.exceptions.OwnerDiedError:
                raise OwnerGoneError.of(self.short_id, self._address.registry) from None
        return value

    def __await__(self) -> Generator[object, None, T_co]:
        return self._load_async(None, []).__await__()

    async def _load_async(self, timeout: float | timedelta | None, uses: list[Use]) -> T_co:
        """`_load`, awaited."""
        import ray

        use = os.urandom(8)
        refs: list[Any] = await asks.resolve_async(self._address, timeout, slot=self._slot, take=False, use=use)
        uses.append(Use(self._address, use, False, refs))
        if self._kind == ACTOR:
            return cast(T_co, refs[0])
        try:
            value: T_co = await objects.awaited(refs[0])
        except GeneratorExit:
            raise  # the loop is gone
        except BaseException as error:
            await spending.give_back_async(uses, timeout)
            if isinstance(error, ray.exceptions.OwnerDiedError):
                raise OwnerGoneError.of(self.short_id, self._address.registry) from None
            raise
        return value

    def release(self, *, timeout: float | timedelta | None = None) -> int:
        """End the whole lease: 1 if this call did, 0 if it had ended before. References already resolved stay good.

        Raises:
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        return asks.release([self._address], timeout)

    def renew(self, ttl: float | timedelta, *, timeout: float | timedelta | None = None) -> None:
        """Let the lease live `ttl` seconds from now, be that longer or shorter than it had.

        Raises:
            LeaseError: it has ended.
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        asks.renew(self._address, ttl, timeout)

    def make_durable(self, *, timeout: float | timedelta | None = None) -> None:
        """Have the registry hold copies of its own in place of what the lease holds: of all its references and what is inside.

        From then on what it resolves to outlives the process, job and driver that made the objects. Copies are made once; a lease
        that is durable stays as it is. What was resolved before stays what it was.

        Args:
            timeout: seconds until the copies exist; default from `init` or `SAFE_REFS_DURABLE_TIMEOUT`, else 600.

        Raises:
            LeaseError: the lease has ended; `OwnerGoneError` if the owner of an object is dead already.
            UnsupportedReferenceError: the lease holds, or an object of it holds, an actor that dies with its creator.
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, the copies don't exist in time, or could not be made. The lease stays.
        """
        asks.make_durable([self._address], timeout)

    def __enter__(self) -> SafeRef[T_co]:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> SafeRef[T_co]:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await callers.to_thread(self.release, await asks.waits_s(None))
        except SafeRefsError:
            raise
        except BaseException:  # a cancellation, maybe before a thread was free, or a loop that has no threads any more
            asks.release_later(self._address)
            raise

    def __bytes__(self) -> bytes:
        fields = {"v": FORMAT_VERSION, **pack_address(self._address), "s": self._slot, "k": self._kind}
        return _MAGIC + seal(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> SafeRef[Any]:
        """The handle whose `bytes()` these are.

        Raises:
            EnvelopeError: they are cut, altered, or of an unknown version.
        """
        view = memoryview(data)
        if view[: len(_MAGIC)] != _MAGIC:
            raise EnvelopeError(
                "these bytes are not a SafeRef: they don't start as one; from_bytes takes bytes(handle), and loads a payload"
            )
        fields, end = unseal(view[len(_MAGIC) :], "the SafeRef")
        check_version(fields, "the SafeRef")
        slot, kind = fields.get("s"), fields.get("k")
        if (
            type(slot) is not int
            or not 0 <= slot < envelope.MOST_REFERENCES
            or not isinstance(kind, str)
            or end != len(view) - len(_MAGIC)
        ):
            raise EnvelopeError(
                "the SafeRef is altered: it lacks its slot, or has more bytes than it should; get it again, unchanged"
            )
        return cls(unpack_address(fields, "the SafeRef"), slot, kind)

    def __str__(self) -> str:
        return TEXT_PREFIX + base64.urlsafe_b64encode(bytes(self)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> SafeRef[Any]:
        """The handle whose `str()` this is.

        Raises:
            EnvelopeError: it is cut, altered, or of an unknown version.
        """
        if not isinstance(text, str):
            raise TypeError(f"parse takes a SafeRef's text, not {type(text).__name__} (from_bytes takes its bytes)")
        text = text.strip()
        encoded = text.removeprefix(TEXT_PREFIX)
        if encoded == text:
            raise EnvelopeError(
                f"this text is not a SafeRef: it doesn't start with {TEXT_PREFIX!r}; parse takes str(handle)"
            )
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not data.startswith(_MAGIC):
            raise EnvelopeError("this text of a SafeRef is cut or altered: get it again, whole and unchanged")
        return cls.from_bytes(data)

    def __repr__(self) -> str:
        return f"<SafeRef {self.short_id}[{self._slot}]{' of an actor' if self._kind == ACTOR else ''}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SafeRef):
            return NotImplemented
        return (self._address, self._slot) == (other._address, other._slot)

    def __hash__(self) -> int:
        return hash((self._address, self._slot))

    def __reduce__(self) -> tuple[Callable[[bytes], SafeRef[Any]], tuple[bytes]]:
        return SafeRef.from_bytes, (bytes(self),)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a SafeRef is immutable: {name} can't be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a SafeRef is immutable: {name} can't be deleted")


def mistaken(data: Any) -> EnvelopeError | TypeError | None:
    """The error for a handle, its text or its bytes that somebody takes for a payload; None if it is nothing of these."""
    if isinstance(data, SafeRef):
        return TypeError(
            "this is a SafeRef, not a payload: use handle.get() for the value, handle.resolve() for the reference"
        )
    if isinstance(data, str):
        return EnvelopeError("this is" + _TEXT.format("text")) if data.lstrip().startswith(TEXT_PREFIX) else None
    try:
        head = bytes(memoryview(data).cast("B")[: len(TEXT_PREFIX)])
    except TypeError:
        return None
    if head == TEXT_PREFIX.encode():
        return EnvelopeError("these bytes are" + _TEXT.format("data.decode()"))
    if head.startswith(_MAGIC):
        return EnvelopeError(
            "these bytes are a SafeRef's, not a payload: SafeRef.from_bytes(data) is the handle, and its get() gives the value"
        )
    return None


class Handles(Sequence[SafeRef[Any]]):
    """A handle for each reference of a lease, made when it is asked for: a header may name a million that no pickle asks for."""

    def __init__(self, address: LeaseAddress, kinds: str) -> None:
        self._address, self._kinds = address, kinds

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, number: Any) -> Any:
        return SafeRef[Any](self._address, number, self._kinds[number])


def slot_values(
    headers: Sequence[Header], resolve: bool, take: bool, timeout: float | timedelta | None, uses: Sequence[bytes]
) -> Sequence[Sequence[Any]]:
    """What belongs into the slots of payloads: references from the registry by these uses (see `new_use`), or handles."""
    if {type(take), type(resolve)} != {bool}:
        take, resolve = checks.flag(take, "take"), checks.flag(resolve, "resolve")
    for header in headers:
        if not KINDS.issuperset(header.kinds):
            asks.check_kinds(header)
    if resolve and len(headers) == 1:
        return [asks.resolve(headers[0].address, timeout, slot=None, take=take, use=uses[0])]
    if resolve:
        return asks.resolve_many([header.address for header in headers], timeout, take=take, uses=uses)
    if take:
        raise ValueError("take=True needs resolve=True: handles are made without asking the registry")
    return [Handles(header.address, header.kinds) for header in headers]


def _later(payload: Opened, number: int) -> Any:
    """What stands in a slot that is opened when its payload no longer is: a reference from the registry, or a handle."""
    if not payload.resolve:
        return SafeRef[Any](payload.address, number, payload.kinds[number])
    payload.use = payload.use or os.urandom(8)
    return asks.resolve(payload.address, None, slot=number, take=False, use=payload.use)[0]


slots.later = _later
