"""Mistakes with which leases are meant: written by hand, for a user who is connected."""

from __future__ import annotations

import dataclasses
from typing import Any

import safe_refs

from .mistakes import Given, Mistake

safe: Any = safe_refs  # its types would refuse most of this


def _by_hand(_: Given) -> Any:
    row = safe_refs.leases()[0]
    return dataclasses.replace(row, _mark=b"").release()


TARGETS = [
    Mistake(
        "release of nothing",
        lambda _: safe.release(),
        TypeError,
        r"release needs a target .*or label=, job= or older_than=",
    ),
    Mistake("aio.release of nothing", lambda _: safe.aio.release(), TypeError, r"release needs a target .*or label="),
    Mistake(
        "release of a target and a label",
        lambda given: safe.release(given.payload, label="x"),
        TypeError,
        r"not both: call it twice",
    ),
    Mistake(
        "release of a target and an age",
        lambda given: safe.release(given.payload, older_than=5),
        TypeError,
        r"not both: call it twice",
    ),
    Mistake(
        "dry_run with a target",
        lambda given: safe.release(given.payload, dry_run=True),
        TypeError,
        r"dry_run goes with label, job and",
    ),
    Mistake(
        "release in another registry",
        lambda given: safe.release(given.payload, registry="orders"),
        ValueError,
        r"leave registry out",
    ),
    Mistake("release of a row made by hand", _by_hand, ValueError, r"can be released by a row that leases\(\) gave"),
    Mistake(
        "release of a job by its number",
        lambda _: safe.release(job="1"),
        ValueError,
        r"job must be a job's id, 8 hexadecimal digits",
    ),
    Mistake(
        "release by a label that is no text",
        lambda _: safe.release(label=5),
        TypeError,
        r"label must be a string, not int",
    ),
    Mistake(
        "release by a negative age",
        lambda _: safe.release(older_than=-1),
        ValueError,
        r"older_than must be more than 0 seconds",
    ),
    Mistake(
        "release by a label, perhaps",
        lambda _: safe.release(label="x", dry_run="yes"),
        TypeError,
        r"dry_run must be True or False",
    ),
    Mistake(
        "release by a label, in a bad registry",
        lambda _: safe.release(label="x", registry="a:1"),
        ValueError,
        r"a registry's name is",
    ),
    Mistake(
        "release of a coroutine", lambda _: safe.release(safe.aio.get), TypeError, r"a lease is named by a payload"
    ),
    Mistake(
        "release of what was loaded",
        lambda given: safe.release(safe.loads(given.payload)),
        TypeError,
        r"with references names no lease: give the payload \(the bytes that dumps returned\), not what was loaded",
    ),
    Mistake(
        "release of a reference that was loaded",
        lambda given: safe.release(safe.loads(given.payload)["ref"]),
        TypeError,
        r"not by ObjectRef: give the payload \(the bytes",
    ),
    Mistake(
        "renew of a reference",
        lambda given: safe.renew(given.ref, 60),
        TypeError,
        r"not by ObjectRef: give the payload \(the bytes",
    ),
    Mistake(
        "keepalive of what was loaded",
        lambda given: safe.keepalive(safe.loads(given.payload), 60),
        TypeError,
        r"give the payload \(the bytes",
    ),
    Mistake(
        "release of a piece of a handle's text",
        lambda _: safe.release("safe-ref:zz"),
        safe_refs.EnvelopeError,
        r"^this text of a SafeRef is cut or altered: get it again",
    ),
    Mistake(
        "expires_in_s of several",
        lambda given: safe.expires_in_s([given.payload]),
        TypeError,
        r"not by list: give one at a time",
    ),
    Mistake(
        "renew of a row",
        lambda _: safe.renew(safe.leases()[0], 60),
        TypeError,
        r"a lease is named by a payload, a SafeRef",
    ),
    Mistake(
        "keepalive of a row",
        lambda _: safe.keepalive(safe.leases()[0], 60),
        TypeError,
        r"a lease is named by a payload, a SafeRef",
    ),
]
