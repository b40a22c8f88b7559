"""`SafeRef`: a small immutable value that names one reference of one lease, and `pin`, which makes one.

What always holds: holding a handle keeps nothing alive, and pickling, copying or printing one changes nothing; a handle's text and
bytes are capabilities (whoever has them can resolve and release), so `repr` shows the lease's short id only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from . import _ray, config, places, scopes
from .envelope import FORMAT_VERSION, LeaseAddress, check_version, pack_address, seal, unpack_address, unseal
from .errors import EnvelopeError, OwnerGoneError, UnsupportedReferenceError
from .randomness import token
from .registry import late
from .registry.records import Terms, Wish
from .slots import ACTOR, OBJECT_REF, kind_of, refusal, register, state

if TYPE_CHECKING:
    import ray

    from .registry.adopting import Bells
    from .registry.pinning import Pin
    from .registry.records import Origin

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
        return late.outbox.resolve(self._address, config.timeout_s(timeout), slot=self._slot)[0]

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

        ref: Any = (await late.awaiting.resolve(self._address, config.timeout_s(), slot=self._slot))[0]
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
        return late.outbox.release([self._address], config.timeout_s(timeout))

    def renew(self, ttl: float | timedelta, *, timeout: float | timedelta | None = None) -> None:
        """Let the lease live `ttl` seconds from now, be that longer or shorter than it had.

        Raises:
            LeaseError: it has ended.
            WrongClusterError: it is another cluster's.
            RegistryUnavailableError: no Ray connection, or no answer in time.
        """
        late.resolving.renew(self._address, config.ttl_s(ttl), config.timeout_s(timeout))

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
        late.adopting.make_durable([self._address], config.durable_timeout_s(timeout))

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


def make_terms(ttl: float | timedelta | None, uses: int | None, label: str | None) -> Terms:
    """Check the terms of a lease, as callers give them, and fill in those of the scope and the process.

    Raises:
        ValueError: `ttl` or `uses` isn't above zero, or `label` is no text that can be written.
        TypeError: one of them is of the wrong type.
    """
    if label is not None:
        if not isinstance(label, str):
            raise TypeError(f"label must be a string, not {type(label).__name__}")
        try:
            label.encode()
        except UnicodeEncodeError:
            raise ValueError(f"label must be text that can be written as UTF-8, not {label!r}") from None
    return Terms(
        scopes.default_ttl_s() if ttl is None else config.ttl_s(ttl),
        None if uses is None else config.positive(uses, "uses"),
        scopes.default_label() if label is None else label,
    )


def how_held(wait: bool | None, durable: bool | None) -> tuple[bool, bool]:
    """Whether a call waits until the registry holds what it passes on, and whether that is to be copies; None is the default of each.

    Raises:
        ValueError: both not waiting and copies were asked for.
    """
    copies = scopes.default_durable() if durable is None else bool(durable)
    if copies and wait is False and durable:
        raise ValueError("durable=True returns when the copies exist, so that it can't be had with wait=False")
    return (True, True) if copies else (config.waits(wait), False)


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
    terms = make_terms(ttl, uses, label)
    register()
    single = kind_of(ref) is not None
    refs = [ref] if single else list(ref) if isinstance(ref, Iterable) else [ref]
    try:
        handles = _pin(refs, terms, *how_held(wait, durable)) if refs else []
    except UnsupportedReferenceError as error:
        several = isinstance(ref, Iterable) and not single
        places.settle(error, refs if several else ref, "refs" if several else "ref")
        raise
    return handles[0] if single else handles


def _pin(refs: list[Any], terms: Terms, waits: bool, copies: bool) -> list[SafeRef[Any]]:
    """Have references held under one lease; the handles for them."""
    kinds = [_kind(each) for each in refs]
    registry, lease, timeout = config.registry_name(), token(16), config.timeout_s()
    here = late.site.site()
    if copies:
        refuse_mortals(refs)
    wanted = to_pin(lease, refs, terms, late.site.origin(here), _ray.surroundings() if copies else None)
    scopes.note(registry, lease)
    begun: Bells | None = None
    if copies:
        wanted, begun = late.adopting.begin(registry, wanted, here)
    if waits:
        epoch, generation = late.outbox.pin(registry, wanted, timeout, here)
    else:
        epoch, generation = late.site.identity(registry, timeout, here)
        late.posting.post(registry, wanted, timeout, here)
    try:
        address = LeaseAddress(registry, here.connection.cluster, epoch, generation, lease, not waits)
        if copies:
            late.adopting.make_durable([address], config.durable_timeout_s(), terms.ttl, begun)
        handles = [SafeRef[Any](address, number, kind) for number, kind in enumerate(kinds)]
        if state.writing is not None:
            state.writing.note(registry, lease)
    except BaseException:
        late.releasing.release_later(registry, [lease])
        raise
    return handles


def to_pin(lease: bytes, refs: Sequence[Any], terms: Terms, maker: Origin, env: str | None) -> Pin:
    """A lease that is to begin.

    One that is to be durable, by copies that are made in the surroundings `env`, has its own ttl from when it is. Till then it has
    another, in case its maker dies.
    """
    if env is None:
        return late.pinning.Pin(lease, refs, terms, maker)
    till_then = terms if terms.ttl is None else terms._replace(ttl=max(terms.ttl, config.durable_timeout_s()))
    return late.pinning.Pin(lease, refs, till_then, maker, Wish(env, terms.ttl))


def refuse_mortals(references: Iterable[Any]) -> None:
    """Refuse actors that die with whoever created them, where copies are wanted.

    Raises:
        UnsupportedReferenceError: there is one.
    """
    for handle in _ray.actors(references):
        if _ray.is_mortal(handle):
            raise UnsupportedReferenceError.of(
                handle,
                f"{handle!r}, which can't be made durable, as it dies with the process that created it, and actors can't be copied",
                'create it with lifetime="detached", or pass it without durable=True',
                kind="ray.actor.ActorHandle",
            )


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
