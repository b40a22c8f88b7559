"""`SafeRef`: a small immutable value that names one reference of one lease, and `pin`, which makes one.

What always holds: holding a handle keeps nothing alive, and pickling, copying or printing one changes nothing; a handle's text and
bytes are capabilities (whoever has them can resolve and release), so `repr` shows the lease's short id only.

More than 350 lines: type checkers need three signatures of `pin`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from . import asks, payloads, places, terms
from .envelope import FORMAT_VERSION, Header, LeaseAddress, check_version, pack_address, seal, unpack_address, unseal
from .errors import EnvelopeError, OwnerGoneError, UnsupportedReferenceError
from .kinds import kind_of, refusal
from .slots import ACTOR, KINDS, OBJECT_REF, register

if TYPE_CHECKING:
    import ray

T = TypeVar("T")

_MAGIC = b"SREF"
TEXT_PREFIX = "safe-ref:"


class SafeRef(Generic[T]):
    """Names one reference of one lease. Immutable, hashable, equal by what it names, picklable by any pickler.

    Get one from `pin`, from `loads(..., resolve=False)`, or back from its text (`SafeRef.parse(str(handle))`) or bytes
    (`SafeRef.from_bytes(bytes(handle))`). As a context manager it releases its lease at the end. A `SafeRef` of an actor resolves to
    an `ActorHandle`.
    """

    __slots__ = ("_address", "_kind", "_slot")

    _address: LeaseAddress
    _slot: int
    _kind: str

    def __init__(self, address: LeaseAddress, slot: int = 0, kind: str = OBJECT_REF) -> None:
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

    def resolve(self, *, timeout: float | timedelta | None = None) -> ray.ObjectRef[T]:
        """Give the reference back, tracked by Ray as if it had been passed in-band. Counts as one use of the lease.

        Returns:
            The reference; of an actor, its `ActorHandle`.

        Args:
            timeout: seconds to wait for the registry (not for the value); default from `init` or `SAFE_REFS_TIMEOUT`.

        Raises:
            LeaseError: the lease has ended; the class says how.
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        found: ray.ObjectRef[T] = asks.resolve(self._address, timeout, slot=self._slot, take=False)[0]
        return found

    def get(self, timeout: float | None = None) -> T:
        """Resolve, and wait for the value as `ray.get` does. For an actor: its handle.

        Args:
            timeout: seconds to wait for the value; None waits for as long as it takes, as `ray.get` does.

        Raises:
            OwnerGoneError: the process that owned the object is dead.
            ray.exceptions.GetTimeoutError: the value wasn't there in time.
            LeaseError: as from `resolve`; and whatever the task that makes the value raised.
        """
        import ray

        ref = self.resolve()
        if self._kind == ACTOR:
            handle: Any = ref
            return cast(T, handle)
        try:
            value: T = ray.get(ref, timeout=timeout)
        except ray.exceptions.OwnerDiedError:
            raise OwnerGoneError.of(self.short_id, self._address.registry) from None
        return value

    def __await__(self) -> Generator[Any, None, T]:
        return self._get_async().__await__()

    async def _get_async(self) -> T:
        import ray

        ref: Any = (await asks.resolve_async(self._address, None, slot=self._slot, take=False))[0]
        if self._kind == ACTOR:
            return cast(T, ref)
        try:
            value: T = await ref
        except ray.exceptions.OwnerDiedError:
            raise OwnerGoneError.of(self.short_id, self._address.registry) from None
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

    def __enter__(self) -> SafeRef[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

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
            raise EnvelopeError("these bytes are not a SafeRef: they don't start as one")
        fields, end = unseal(view[len(_MAGIC) :], "the SafeRef")
        check_version(fields, "the SafeRef")
        slot, kind = fields.get("s"), fields.get("k")
        if type(slot) is not int or slot < 0 or not isinstance(kind, str) or end != len(view) - len(_MAGIC):
            raise EnvelopeError("the SafeRef is altered: it lacks its slot, or has more bytes than it should")
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
            raise EnvelopeError(f"this text is not a SafeRef: it doesn't start with {TEXT_PREFIX!r}")
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise EnvelopeError("the SafeRef's text is cut or altered: it is no base64") from None
        return cls.from_bytes(data)

    def __repr__(self) -> str:
        return f"<SafeRef {self.short_id}[{self._slot}]>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SafeRef):
            return NotImplemented
        return (self._address, self._slot) == (other._address, other._slot)

    def __hash__(self) -> int:
        return hash((self._address, self._slot))

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return SafeRef.from_bytes, (bytes(self),)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a SafeRef is immutable: {name} can't be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a SafeRef is immutable: {name} can't be deleted")


@overload
def pin(
    ref: ray.ObjectRef[T],
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> SafeRef[T]: ...
@overload
def pin(  # type: ignore[overload-overlap] # a handle has any attribute, as its methods are the actor's, and so looks iterable
    ref: ray.actor.ActorHandle[T],
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> SafeRef[Any]: ...
@overload
def pin(
    ref: Iterable[ray.ObjectRef[T]],
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> list[SafeRef[T]]: ...
def pin(
    ref: Any,
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
) -> SafeRef[Any] | list[SafeRef[Any]]:
    """Have the registry hold a reference, or several under one lease, and return handles for them.

    Args:
        ref: an `ObjectRef` or an `ActorHandle`, or an iterable of them; for an `ObjectRefGenerator` those are all that it has still
            to yield, waited for.
        ttl: seconds (or a `timedelta`) after which the lease ends; None as for `dumps`.
        uses: how often the lease may be resolved; None for no limit.
        durable: as for `dumps`.
        label: a name for people, shown by `leases()`.
        wait: as for `dumps`.

    Returns:
        A `SafeRef`, or a list of them in the order of `ref`, all of one lease.

    Raises:
        RegistryFullError: a limit of the registry would be passed.
        RegistryUnavailableError: no Ray connection, or no answer in time.
        UnsupportedReferenceError: a Ray reference of another kind, or one made with a tensor transport; `place` says which of them.
        TypeError: no reference at all.
    """
    asked = terms.ask(ttl, uses, label, wait, durable)
    register()
    single = kind_of(ref) is not None
    refs = [ref] if single else list(ref) if isinstance(ref, Iterable) else [ref]
    try:
        handles = _pin(refs, asked) if refs else list[SafeRef[Any]]()
    except UnsupportedReferenceError as error:
        several = isinstance(ref, Iterable) and not single
        places.explain(error, refs if several else ref, "refs" if several else "ref")
        raise
    return handles[0] if single else handles


def _pin(refs: list[Any], asked: terms.Asked) -> list[SafeRef[Any]]:
    """Have references held under one lease; the handles for them."""
    kinds = "".join(map(_kind, refs))
    transaction = payloads.Transaction(asked)
    try:
        transaction.prepare(refs)
        transaction.pin()
        return handles_of(transaction.finish()[0].address, kinds)
    except BaseException:
        transaction.undo()
        raise


def handles_of(address: LeaseAddress, kinds: str) -> list[SafeRef[Any]]:
    """A handle for each reference of a lease, by their kinds."""
    return [SafeRef[Any](address, number, kind) for number, kind in enumerate(kinds)]


def slot_values(
    headers: Sequence[Header], resolve: bool, take: bool, timeout: float | timedelta | None
) -> Sequence[Sequence[Any]]:
    """What belongs into the slots of payloads: references from the registry, or handles."""
    for header in headers:
        if not KINDS.issuperset(header.kinds):
            asks.check_kinds(header)
    if resolve and len(headers) == 1:
        return [asks.resolve(headers[0].address, timeout, slot=None, take=take)]
    if resolve:
        return asks.resolve_many([header.address for header in headers], timeout, take=take)
    if take:
        raise ValueError("take=True needs resolve=True: handles are made without asking the registry")
    return [handles_of(header.address, header.kinds) for header in headers]


def _kind(reference: Any) -> str:
    """The kind of a reference.

    Raises:
        UnsupportedReferenceError: it is of a kind that can't be carried.
        TypeError: it is no reference.
    """
    refused = refusal(reference)
    if refused is not None:
        raise refused
    kind = kind_of(reference)
    if kind is not None:
        return kind
    name = f"{type(reference).__module__}.{type(reference).__qualname__}"
    if name.partition(".")[0] == "ray":
        raise UnsupportedReferenceError.of(
            reference, f"a {name}, which safe_refs can't pin", "pin a ray.ObjectRef or an ActorHandle", kind=name
        )
    raise TypeError(f"pin takes a ray.ObjectRef or an ActorHandle, or an iterable of them, not {name}")
