"""Mistakes with what is passed: written by hand, for a user who is connected."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterator
from typing import Any

import ray

import safe_refs

from . import wrong_orders
from .cluster import as_actor
from .mistakes import Given, Mistake

GENERATOR = r"^payload\['a'\] is a ray.ObjectRefGenerator, which .*: pass on the references that it yields"
NOT_BOTH = r"^durable=True returns when the copies exist, so that it can't be had with wait=False"
BARE = r"made from a bare id .*; pass on the reference itself, or a payload"


def _generator() -> Any:
    def numbers() -> Iterator[int]:
        yield 1

    return ray.remote(num_cpus=0)(numbers).remote()


def _bare() -> Any:
    return ray.ObjectRef(os.urandom(28))


def _mortal() -> Any:
    class Actor:
        pass

    return as_actor(Actor).remote()


def _node() -> Any:
    return vars(ray)["NodeID"].from_random()


def _shown(_: Given) -> Any:
    return safe_refs.release(safe_refs.leases()[0].short_id)


def _read_only(_: Given) -> Any:
    settings: Any = safe_refs.settings()
    settings.registry = "other"


def _renamed(given: Given) -> Any:
    handle: Any = given.handle
    handle.slot = 2


def _unmade(given: Given) -> Any:
    del given.handle._slot


def _late(_: Given) -> Any:
    pending = wrong_orders.slow()
    try:
        with safe_refs.pin(pending) as handle:
            handle.get(timeout=0.2)
    finally:
        ray.cancel(pending, force=True)


safe: Any = safe_refs  # its types would refuse most of this
VALUES = [
    Mistake(
        "a generator of references",
        lambda _: safe.dumps({"a": _generator()}),
        safe.UnsupportedReferenceError,
        GENERATOR,
    ),
    Mistake(
        "a generator, awaited", lambda _: safe.aio.dumps({"a": _generator()}), safe.UnsupportedReferenceError, GENERATOR
    ),
    Mistake(
        "a generator among many",
        lambda _: safe.dumps_many([1, _generator()]),
        safe.UnsupportedReferenceError,
        r"^payloads\[1\] is a",
    ),
    Mistake("a bare id", lambda _: safe.dumps(_bare()), safe.UnsupportedReferenceError, BARE),
    Mistake("a bare id, pinned", lambda _: safe.pin(_bare()), safe.UnsupportedReferenceError, BARE),
    Mistake(
        "an actor, durable",
        lambda _: safe.dumps([_mortal()], durable=True),
        safe.UnsupportedReferenceError,
        r"^payload\[0\].*detached",
    ),
    Mistake(
        "an actor, pinned durable",
        lambda _: safe.pin(_mortal(), durable=True),
        safe.UnsupportedReferenceError,
        r"^ref.*detached",
    ),
    Mistake(
        "a node's id, pinned",
        lambda _: safe.pin(_node()),
        safe.UnsupportedReferenceError,
        r"pin a ray.ObjectRef or an ActorHandle",
    ),
    Mistake(
        "put of a reference", lambda given: safe.put(given.ref), TypeError, r"a reference already: use pin or dumps"
    ),
    Mistake("put of an actor", lambda _: safe.put(_mortal()), TypeError, r"a reference already: use pin or dumps"),
    Mistake(
        "aio.put of a reference",
        lambda given: safe.aio.put(given.ref),
        TypeError,
        r"a reference already: use pin or dumps",
    ),
    Mistake(
        "durable and not waiting", lambda given: safe.dumps(given.ref, durable=True, wait=False), ValueError, NOT_BOTH
    ),
    Mistake(
        "durable and not waiting, a value", lambda _: safe.dumps(1, durable=True, wait=False), ValueError, NOT_BOTH
    ),
    Mistake(
        "durable and not waiting, pinned",
        lambda given: safe.pin(given.ref, durable=True, wait=False),
        ValueError,
        NOT_BOTH,
    ),
    Mistake("durable and not waiting, put", lambda _: safe.put(1, durable=True, wait=False), ValueError, NOT_BOTH),
    Mistake(
        "durable and not waiting, awaited",
        lambda given: safe.aio.dumps(given.ref, durable=True, wait=False),
        ValueError,
        NOT_BOTH,
    ),
    Mistake(
        "durable and not waiting, Pickler",
        lambda _: safe.Pickler(io.BytesIO(), durable=True, wait=False),
        ValueError,
        NOT_BOTH,
    ),
    Mistake(
        "uses for a value", lambda _: safe.dumps(1, uses=1), UserWarning, r"no Ray references.*safe_refs.put\(value"
    ),
    Mistake(
        "durable for a value",
        lambda _: safe.dumps(1, durable=True),
        UserWarning,
        r"no Ray references.*safe_refs.put\(value",
    ),
    Mistake(
        "uses for a value, awaited",
        lambda _: safe.aio.dumps(1, uses=1),
        UserWarning,
        r"no Ray references.*safe_refs.put\(value",
    ),
    Mistake(
        "take and no resolve",
        lambda given: safe.loads(given.payload, take=True, resolve=False),
        ValueError,
        r"take=True needs resolve=True",
    ),
    Mistake(
        "take and no resolve, many",
        lambda given: safe.loads_many([given.payload], take=True, resolve=False),
        ValueError,
        r"needs resolve=True",
    ),
    Mistake(
        "take and no resolve, awaited",
        lambda given: safe.aio.loads(given.payload, take=True, resolve=False),
        ValueError,
        r"needs resolve=True",
    ),
    Mistake("a ttl by position", lambda given: safe.dumps(given.ref, 60), ValueError, r"pickle protocol must be <= 5"),
    Mistake("a ttl of pin by position", lambda given: safe.pin(given.ref, 60), TypeError, r"positional argument"),
    Mistake(
        "a mistyped term", lambda given: safe.dumps(given.ref, tll=60), TypeError, r"unexpected keyword argument 'tll'"
    ),
    Mistake(
        "a ttl for loads",
        lambda given: safe.loads(given.payload, ttl=60),
        TypeError,
        r"unexpected keyword argument 'ttl'",
    ),
    Mistake("renew without a ttl", lambda given: safe.renew(given.payload), TypeError, r"missing .*argument: 'ttl'"),
    Mistake(
        "keepalive without a ttl", lambda given: safe.keepalive(given.payload), TypeError, r"missing .*argument: 'ttl'"
    ),
    Mistake("a mistyped setting", lambda _: safe.init(replica=2), TypeError, r"unexpected keyword argument 'replica'"),
    Mistake("shards by position", lambda _: safe.init("orders", 2), TypeError, r"positional argument"),
    Mistake("settings changed by hand", _read_only, dataclasses.FrozenInstanceError, r"cannot assign to field"),
    Mistake(
        "more replicas than shards",
        lambda _: safe.init("mistakes", shards=1, replicas=2),
        ValueError,
        r"give shards=2 or more",
    ),
    Mistake(
        "other replicas",
        lambda _: safe.init(shards=2, replicas=2),
        ValueError,
        r"can't change that to replicas=2.*another name",
    ),
    Mistake("a million shards", lambda _: safe.init("mistakes", shards=10**6), ValueError, r"^shards must be at most"),
    Mistake("a shard's name", lambda _: safe.init("default:1"), ValueError, r"a registry's name is 1 to 64 letters"),
    Mistake("an endless timeout", lambda _: safe.init(timeout=math.inf), ValueError, r"^timeout must be .* at most"),
    Mistake(
        "out-of-band buffers by protocol 4",
        lambda given: safe.dumps(given.ref, 4, buffer_callback=print),
        ValueError,
        r"buffer_callback needs protocol >= 5",
    ),
    Mistake(
        "buffers left out",
        lambda given: safe.loads(safe.dumps(safe.PickleBuffer(b"x"), buffer_callback=[].append)),
        safe.UnpicklingError,
        r"buffer",
    ),
    Mistake(
        "a handle of a payload",
        lambda given: safe.SafeRef(given.payload),
        TypeError,
        r"can't be made of \w+: pin, put and loads.* make one, and SafeRef.parse",
    ),
    Mistake(
        "a handle of its text",
        lambda given: safe.SafeRef(str(given.handle)),
        TypeError,
        r"and SafeRef.parse makes it of its text",
    ),
    Mistake(
        "a handle of a reference",
        lambda given: safe.SafeRef(given.ref),
        TypeError,
        r"can't be made of ObjectRef: pin, put and loads.* make one",
    ),
    Mistake("a handle is changed", _renamed, AttributeError, r"immutable"),
    Mistake("a handle's part is deleted", _unmade, AttributeError, r"immutable"),
    Mistake(
        "parse of a lease's id",
        lambda given: safe.SafeRef.parse(given.handle.lease_id),
        safe.EnvelopeError,
        r"doesn't start with 'safe-ref:'",
    ),
    Mistake(
        "parse of a payload",
        lambda given: safe.SafeRef.parse(given.payload.hex()),
        safe.EnvelopeError,
        r"doesn't start with 'safe-ref:'",
    ),
    Mistake(
        "loads of a handle's text", lambda given: safe.loads(str(given.handle)), safe.EnvelopeError, r"SafeRef.parse"
    ),
    Mistake(
        "loads of its bytes", lambda given: safe.loads(bytes(given.handle)), safe.EnvelopeError, r"SafeRef.from_bytes"
    ),
    Mistake(
        "loads of its encoded text",
        lambda given: safe.loads(str(given.handle).encode()),
        safe.EnvelopeError,
        r"SafeRef.parse",
    ),
    Mistake("loads of a handle", lambda given: safe.loads(given.handle), TypeError, r"use handle.get\(\)"),
    Mistake("aio.loads of a handle", lambda given: safe.aio.loads(given.handle), TypeError, r"use handle.get\(\)"),
    Mistake("loads_many of a handle", lambda given: safe.loads_many(given.handle), TypeError, r"use handle.get\(\)"),
    Mistake("loads_many of handles", lambda given: safe.loads_many([given.handle]), TypeError, r"use handle.get\(\)"),
    Mistake(
        "parse of a piece of a text",
        lambda given: safe.SafeRef.parse("safe-ref:xyz"),
        safe.EnvelopeError,
        r"^this text of a SafeRef is cut or altered: get it again",
    ),
    Mistake(
        "parse of another's text",
        lambda given: safe.SafeRef.parse("safe-ref:AAAAAAAA"),
        safe.EnvelopeError,
        r"^this text of a SafeRef is cut or altered: get it again",
    ),
    Mistake(
        "aio.loads of a handle's text",
        lambda given: safe.aio.loads(str(given.handle)),
        safe.EnvelopeError,
        r"SafeRef.parse",
    ),
    Mistake(
        "inspect of a handle's text",
        lambda given: safe.inspect(str(given.handle)),
        TypeError,
        r"bytes-like object is required",
    ),
    Mistake(
        "inspect of its bytes",
        lambda given: safe.inspect(bytes(given.handle)),
        safe.EnvelopeError,
        r"SafeRef.from_bytes",
    ),
    Mistake(
        "release of its bytes",
        lambda given: safe.release(bytes(given.handle)),
        safe.EnvelopeError,
        r"SafeRef.from_bytes",
    ),
    Mistake("release of a row's id", _shown, safe.EnvelopeError, r"short ids name no lease"),
    Mistake(
        "renew of a lease's id",
        lambda given: safe.renew(given.handle.lease_id, 60),
        safe.EnvelopeError,
        r"doesn't start with 'safe-ref:'",
    ),
    Mistake(
        "renew of several",
        lambda given: safe.renew([given.payload], 60),
        TypeError,
        r"a lease is named by a payload, a SafeRef or its text, not by list: give one at a time",
    ),
    Mistake(
        "a whole payload as a body",
        lambda given: safe.open_payload(given.payload),
        safe.EnvelopeError,
        r"the payload is altered",
    ),
    Mistake(
        "one payload for many",
        lambda given: safe.loads_many(given.payload),
        TypeError,
        r"iterable of payloads, not one bytes: loads takes one",
    ),
    Mistake(
        "a handle's text as a registry",
        lambda given: safe.dumps(given.ref, registry=str(given.handle)),
        ValueError,
        r"a registry's name is",
    ),
    Mistake(
        "a handle's text as an order", lambda given: safe.leases(sort=str(given.handle)), ValueError, r"sort must be"
    ),
    Mistake("no time for the value", _late, ray.exceptions.GetTimeoutError, r"timed out"),
]
