"""Wrong arguments by the kind of parameter: types and values that it can't have, and what each raises.

A parameter's kind is known by its function and name, its name, or its annotation, in this order. One whose kind isn't known fails the
test, so that a new parameter comes with its mistakes. `pickle`'s own parameters are pickle's to judge, and are not here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import safe_refs

from .mistakes import Given


class Wrong(NamedTuple):
    """A wrong value of a parameter.

    Attributes:
        name: what it is.
        value: gives it.
        error: what it raises.
        says: what that says, with the parameter's name for `{}`.
    """

    name: str
    value: Callable[[Given], Any]
    error: type[BaseException]
    says: str


def is_(value: Any) -> Callable[[Given], Any]:
    """The same value, whatever there is."""
    return lambda _: value


def _wrongs(error: type[BaseException], says: str, *values: Any) -> list[Wrong]:
    return [Wrong(f"{value!r:.24}", is_(value), error, says) for value in values]


def _made(error: type[BaseException], says: str, **made: Callable[[Given], Any]) -> list[Wrong]:
    return [Wrong(name.replace("_", " "), make, error, says) for name, make in made.items()]


def cut(given: Given) -> bytes:
    """A payload that is cut within its header."""
    return given.payload[:90]


def altered(given: Given) -> bytes:
    """A payload with one byte of its header changed."""
    return given.payload[:60] + bytes([given.payload[60] ^ 1]) + given.payload[61:]


def mistyped(given: Given) -> str:
    """A handle's text with a typo."""
    text = str(given.handle)
    return text[:40] + ("A" if text[40] != "A" else "B") + text[41:]


def text_of(given: Given) -> str:
    """A handle's text."""
    return str(given.handle)


NAN = math.nan
SPAN = [
    *_wrongs(TypeError, r"^{} must be seconds or a timedelta, not (str|bytes|bool|list)", "soon", "5", b"5", True, [5]),
    *_wrongs(ValueError, r"^{} must be more than 0 seconds, and at most .*, not ", 0, -1, NAN, 1e300, timedelta(0)),
]
FLAG = _wrongs(TypeError, r"^{} must be True or False, not ", "yes", "", 0, 1, [], 1.0)
NOT_WHOLE = _wrongs(TypeError, r"^{} must be a whole number, not ", 1.5, "3", b"3", True, [1])
WHOLE = [*NOT_WHOLE, *_wrongs(ValueError, r"^{} must be at least 1, not ", 0, -1)]
USES = [*WHOLE, *_wrongs(ValueError, r"^{} must be at most .* without uses there is no limit", 10**30)]
LIMIT = [*WHOLE, *_wrongs(TypeError, r"^{} must be a whole number, not ", "1GB", NAN)]
NAME = [
    *_wrongs(TypeError, r"^{} must be a registry's name, a string, not ", 5, b"orders", ["orders"]),
    *_wrongs(
        ValueError, r"^a registry's name is 1 to 64 letters, digits", "", "a:1", "x" * 65, "a b", "ü", "a/b", "a\n"
    ),
    *_made(ValueError, r"^a registry's name is 1 to 64 letters, digits", a_handles_text=text_of),
]
LABEL = [
    *_wrongs(TypeError, r"^{} must be a string, not ", 5, b"x", ["x"], True),
    *_wrongs(ValueError, r"^{} must be text that can be written as UTF-8", "\ud800"),
    *_wrongs(ValueError, r"^{} must have at most 1024 bytes in UTF-8, not 10000000", "x" * 10_000_000),
]
PROTOCOL = [
    *_wrongs(ValueError, r"pickle protocol must be <= 5", 99, 6),
    *_wrongs(TypeError, r"(cannot be interpreted as an integer|integer is required|must be int)", "5", 5.0),
]
NO_BYTES = r"bytes-like object (is )?(required|was expected)?.*not "
NAMED = r"a lease is named by a payload, a SafeRef"
ENVELOPE = [
    *_made(
        safe_refs.EnvelopeError,
        r"is (cut|altered).*(get it again|unchanged|whole)|can't be read",
        cut=cut,
        altered=altered,
    ),
    *_wrongs(safe_refs.EnvelopeError, r"neither a payload of safe_refs nor a pickle: get them again", b"", b"garbage"),
]
TARGET = [
    *_wrongs(TypeError, NAMED + r"|^release needs a target \(a payload, say\), or label=", None),
    *_wrongs(TypeError, NAMED, 5, 1.5),
    *_made(TypeError, NAMED, a_reference=lambda given: given.ref),
    *ENVELOPE,
    *_made(safe_refs.EnvelopeError, r"altered.*get it again", a_mistyped_handle=mistyped),
    *_made(safe_refs.EnvelopeError, r"SafeRef", a_short_id=lambda given: given.handle.short_id, an_empty_text=is_("")),
]
TARGETS = [
    *TARGET,
    *_made(TypeError, NAMED, a_list_with_a_number=lambda given: [given.payload, 5]),
    *_made(TypeError, r"^a dict may mean its keys or its values: pass list", a_dict=lambda given: {given.payload: 1}),
    *_made(TypeError, r"^a (frozen)?set has no order: pass a list", a_set=lambda given: {given.payload}),
    *_made(safe_refs.EnvelopeError, r"cut", a_list_with_a_cut_one=lambda given: [given.payload, cut(given)]),
]
CONSUMED = [
    *_wrongs(TypeError, r"^consume takes (a payload|payloads), (a SafeRef|SafeRefs)", None, 5, 1.5, [5], [None]),
    *_made(TypeError, r"^consume takes a payload, a SafeRef", a_reference=lambda given: given.ref),
    *_made(TypeError, r"^a dict may mean its keys or its values: pass list", a_dict=lambda given: {given.payload: 1}),
    *_made(TypeError, r"^a (frozen)?set has no order: pass a list", a_set=lambda given: {given.payload}),
    *_made(safe_refs.EnvelopeError, r"is (cut|altered).*get it again", cut=cut, altered=altered),
    *_made(
        safe_refs.EnvelopeError,
        r"is (cut|altered).*get it again",
        a_list_with_a_cut_one=lambda given: [given.payload, cut(given)],
    ),
    *_made(safe_refs.EnvelopeError, r"altered.*get it again", a_mistyped_handle=mistyped),
    *_made(safe_refs.EnvelopeError, r"SafeRef", a_short_id=lambda given: given.handle.short_id, an_empty_text=is_("")),
    *_made(safe_refs.EnvelopeError, r"SafeRef.from_bytes", a_handles_bytes=lambda given: bytes(given.handle)),
    *_wrongs(EOFError, r"Ran out of input", b""),
]
WITH_LEASE = [
    *TARGET,
    *_wrongs(
        safe_refs.EnvelopeError, r"without references has no lease: put\(value, payload=True\)", safe_refs.dumps(1)
    ),
]
DATA = [
    *_wrongs(TypeError, r"bytes-like object is required, not '?(NoneType|int|dict|list)", None, 5, {}, []),
    *_made(safe_refs.EnvelopeError, r"is (cut|altered)", cut=cut, altered=altered),
    *_wrongs(EOFError, r"Ran out of input", b""),
]
PAYLOADS = [
    *_wrongs(TypeError, r"not iterable", None, 5),
    *_wrongs(TypeError, r"bytes-like object is required, not '?(NoneType|int)", [None], [5]),
    *_made(TypeError, r"iterable of payloads.*loads", one_payload=lambda given: given.payload),
    *_made(safe_refs.EnvelopeError, r"is cut", a_cut_one=lambda given: [cut(given)]),
]
PAYLOAD = [
    *_wrongs(TypeError, r"bytes-like object is required, not", None, 5, "text", []),
    *_made(TypeError, r"bytes-like object is required, not", a_handle=lambda given: given.handle),
    *ENVELOPE,
]
OBJS = [
    *_wrongs(TypeError, r"not iterable", None, 5),
    *_made(TypeError, r"not iterable", one_reference=lambda given: given.ref),
]
REF = [
    *_wrongs(
        TypeError, r"pin takes a ray.ObjectRef or an ActorHandle, or an iterable of them, not ", None, 5, "x", [1]
    ),
    *_made(
        TypeError,
        r"pin takes a ray.ObjectRef or an ActorHandle, or an iterable of them, not ",
        a_list_with_None=lambda given: [given.ref, None],
    ),
    *_made(TypeError, r"^pin takes .* not builtins.bytes$", a_payload=lambda given: given.payload),
    *_made(
        TypeError, r"^pin takes .*SafeRef; handle.resolve\(\) is its reference$", a_handle=lambda given: given.handle
    ),
    *_made(TypeError, r"^a dict may mean its keys or its values: pass list", a_dict=lambda given: {"a": given.ref}),
    *_made(TypeError, r"^a (frozen)?set has no order: pass a list", a_set=lambda given: {given.ref}),
]
WRITABLE = [
    *_wrongs(TypeError, r"file must have a 'write' attribute", None, 5, "path"),
]
READABLE = [
    *_wrongs(TypeError, r"file must have 'read'.* attributes", None, 5, "path", b"bytes"),
]
HANDLE = [
    *_wrongs(TypeError, r"takes a SafeRef, not .*SafeRef.parse", None, 5),
    *_made(
        TypeError,
        r"takes a SafeRef, not .*SafeRef.parse",
        a_payload=lambda given: given.payload,
        a_text=text_of,
        a_reference=lambda given: given.ref,
    ),
]
TEXT = [
    *_wrongs(TypeError, r"parse takes a SafeRef's text, not .*from_bytes", None, 5, b"bytes"),
    *_wrongs(safe_refs.EnvelopeError, r"not a SafeRef: it doesn't start with 'safe-ref:'", "", "text"),
    *_wrongs(safe_refs.EnvelopeError, r"not a SafeRef|altered|cut", "safe-ref:", "safe-ref:ü", "safe-ref:AAAA"),
    *_made(
        safe_refs.EnvelopeError,
        r"altered|cut",
        mistyped=mistyped,
        cut_short=lambda given: str(given.handle)[:-4],
        two_of_them=lambda given: str(given.handle) * 2,
    ),
]
BYTES = [
    *_wrongs(TypeError, r"bytes-like object is required, not", None, 5, "text"),
    *_wrongs(safe_refs.EnvelopeError, r"these bytes are not a SafeRef", b"", b"garbage"),
    *_made(safe_refs.EnvelopeError, r"these bytes are not a SafeRef", a_payload=lambda given: given.payload),
    *_made(
        safe_refs.EnvelopeError,
        r"altered|cut",
        cut_short=lambda given: bytes(given.handle)[:-4],
        two_of_them=lambda given: bytes(given.handle) * 2,
    ),
]
BODY = [
    *_wrongs(TypeError, r"bytes-like object is required", None, 5),
    *_wrongs(safe_refs.EnvelopeError, r"cut|altered", b"", b"garbage"),
]
WAIT_S = [
    *_wrongs(TypeError, r"^{} must be seconds", "5", True, b"5"),
    *_wrongs(ValueError, r"^{} must be more than 0 seconds", -1, NAN, 1e300),
]
AGE_S = [*_wrongs(TypeError, r"^{} must be ", "5", True, b"5"), *_wrongs(ValueError, r"^{} must be ", -1, NAN)]
AT_LEAST = [
    *_wrongs(TypeError, r"^{} must be a number, not ", "1GB", b"5", True),
    *_wrongs(ValueError, r"^{} must be ", -1),
]
JOB = [
    *_wrongs(TypeError, r"^{} must be a job's id, a string, not ", 5, b"01000000"),
    *_wrongs(ValueError, r"^{} must be a job's id, 8 hexadecimal digits", "", "01", "orders", "0100000g", "0x010000"),
    *_made(ValueError, r"^{} must be a job's id, 8 hexadecimal digits", a_handles_text=text_of),
]
SORT = _wrongs(ValueError, r"^sort must be 'age', 'expires', 'references' or 'bytes', not ", "size", "", 5, None)

# Any object will do, or `pickle` judges them, by its own words, where they are used.
ANYTHING = ("obj", "value", "fix_imports", "encoding", "errors", "buffers", "buffer_callback")

BY_FUNCTION: dict[tuple[str, str], list[Wrong]] = {
    ("put", "payload"): FLAG,
    ("aio.put", "payload"): FLAG,
    ("SafeRef.get", "timeout"): WAIT_S,
    ("SafeRef.from_bytes", "data"): BYTES,
    ("release", "target"): TARGETS,
    ("aio.release", "target"): TARGETS,
    ("keepalive", "target"): TARGETS,
    ("aio.keepalive", "target"): TARGETS,
    ("consume", "target"): CONSUMED,
    ("aio.consume", "target"): CONSUMED,
    ("Scope.keep", "target"): TARGETS,
    ("load", "file"): READABLE,
    ("Unpickler", "file"): READABLE,
    ("leases", "limit"): WHOLE,
}
BY_NAME: dict[str, list[Wrong]] = {
    "protocol": PROTOCOL,
    "registry": NAME,
    "label": LABEL,
    "uses": USES,
    "job": JOB,
    "sort": SORT,
    "min_age_s": AGE_S,
    "min_bytes": AT_LEAST,
    "limit": WHOLE,
    "target": WITH_LEASE,
    "data": DATA,
    "payloads": PAYLOADS,
    "payload": PAYLOAD,
    "objs": OBJS,
    "ref": REF,
    "file": WRITABLE,
    "handle": HANDLE,
    "text": TEXT,
    "body": BODY,
}
BY_ANNOTATION: dict[str, list[Wrong]] = {
    "float | timedelta | None": SPAN,
    "Span | None": SPAN,
    "float | timedelta": [*SPAN, *_wrongs(TypeError, r"^{} must be seconds or a timedelta, not NoneType", None)],
    "bool | None": FLAG,
    "bool": FLAG,
    "int | None": WHOLE,
    "float | None": LIMIT,
}


def wrong(of: str, parameter: inspect.Parameter) -> list[Wrong] | None:
    """The wrong values of a parameter; None if its kind isn't known."""
    if parameter.name in ANYTHING:
        return []
    by_function = BY_FUNCTION.get((of, parameter.name))
    by_name = BY_NAME.get(parameter.name) if by_function is None else by_function
    return BY_ANNOTATION.get(str(parameter.annotation)) if by_name is None else by_name
