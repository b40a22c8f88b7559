"""`pin`: the registry holds references by themselves, without any pickle, and the caller gets handles."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

from . import checks, payloads, places, terms
from .errors import UnsupportedReferenceError
from .handle import Handles, SafeRef
from .kinds import carried, kind_of, refusal
from .slots import register

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorProxy  # what `.remote()` of an actor's class is said to return
    from typing_extensions import Unpack

T = TypeVar("T")


class LeaseTerms(TypedDict, total=False):
    """The arguments by which all that makes a lease takes its terms, for type checkers: `dumps` says what each means."""

    ttl: float | timedelta | None
    uses: int | None
    durable: bool | None
    label: str | None
    wait: bool | None
    registry: str | None
    timeout: float | timedelta | None


@overload
def pin(ref: ray.ObjectRef[T], **terms: Unpack[LeaseTerms]) -> SafeRef[T]: ...
@overload
def pin(  # type: ignore[overload-overlap] # a handle has any attribute, as its methods are the actor's, and so looks iterable
    ref: ActorProxy[T], **terms: Unpack[LeaseTerms]
) -> SafeRef[ActorProxy[T]]: ...
@overload
def pin(ref: Iterable[ray.ObjectRef[T]], **terms: Unpack[LeaseTerms]) -> list[SafeRef[T]]: ...
@overload
def pin(ref: Iterable[ActorProxy[T]], **terms: Unpack[LeaseTerms]) -> list[SafeRef[ActorProxy[T]]]: ...
def pin(
    ref: Any,
    *,
    ttl: float | timedelta | None = None,
    uses: int | None = None,
    durable: bool | None = None,
    label: str | None = None,
    wait: bool | None = None,
    registry: str | None = None,
    timeout: float | timedelta | None = None,
) -> SafeRef[Any] | list[SafeRef[Any]]:
    """Have the registry hold a reference, or several under one lease, and return handles for them.

    Args:
        ref: an `ObjectRef` or an `ActorHandle`, or an iterable of them, but no set or dict; for an `ObjectRefGenerator` those are
            all that it has still to yield, waited for.
        ttl: seconds (or a `timedelta`) after which the lease ends; None as for `dumps`.
        uses: how often the lease may be resolved; None for no limit.
        durable: as for `dumps`.
        label: a name for people, shown by `leases()`.
        wait: as for `dumps`, like the next two.
        registry: see `wait`.
        timeout: see `wait`.

    Returns:
        A `SafeRef`, or a list of them in the order of `ref`, all of one lease.

    Raises:
        RegistryFullError: a limit of the registry would be passed.
        RegistryUnavailableError: no Ray connection, or no answer in time.
        UnsupportedReferenceError: a Ray reference of another kind, or one made with a tensor transport; `place` says which of them.
        TypeError: no reference at all, or a set or dict of them.
    """
    asked = terms.ask(ttl, uses, label, wait, durable, registry, timeout)
    register()
    single = kind_of(ref) is not None
    if not single:
        checks.check_ordered(ref)
    # A text or bytes are one mistake, and not as many as they have characters.
    refs = (
        list(ref)
        if isinstance(ref, Iterable) and not single and not isinstance(ref, (str, bytes, bytearray))
        else [ref]
    )
    try:
        return _pin(refs, asked, single) if refs else []
    except UnsupportedReferenceError as error:
        several = isinstance(ref, Iterable) and not single
        places.explain(error, refs if several else ref, "refs" if several else "ref")
        raise


@payloads.outside
def _pin(refs: list[Any], asked: terms.Asked, single: bool) -> SafeRef[Any] | list[SafeRef[Any]]:
    """Have references held under one lease; the handles for them, or the one."""
    kinds = "".join(map(_kind, refs))
    refs = [carried(each) for each in refs]
    transaction = None
    try:
        transaction = payloads.Transaction(asked)
        transaction.prepare(refs)
        transaction.pin()
        handles = list(Handles(transaction.finish()[0].address, kinds))
        return handles[0] if single else handles
    except BaseException:
        if transaction is not None:
            transaction.undo()
        raise


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
    meant = "; handle.resolve() is its reference" if isinstance(reference, SafeRef) else ""
    raise TypeError(f"pin takes a ray.ObjectRef or an ActorHandle, or an iterable of them, not {name}{meant}")
