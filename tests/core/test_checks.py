"""Values that callers give: what passes, what doesn't, and that messages stay short."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from safe_refs import aio, checks


@pytest.mark.parametrize("value", [1, 1.0, 0.5, Fraction(1, 2), np.float32(0.5), np.int64(3), timedelta(seconds=2)])
def test_time_spans(value: Any) -> None:
    """Seconds of any kind of number, numpy's too, come out as a float."""
    wanted = value.total_seconds() if isinstance(value, timedelta) else float(value)
    for found in (checks.seconds(value, "timeout"), checks.ttl_s(value)):
        assert (type(found), found) == (float, wanted)
    assert checks.ttl_s(math.inf) is checks.ttl_s(np.float32("inf")) is None


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, np.float64("nan"), 10**400, 4e9, timedelta(0)])
def test_spans_that_are_none(value: Any) -> None:
    """Zero, less, no number, or longer than a century."""
    with pytest.raises(ValueError, match="timeout must be more than 0 seconds") as caught:
        checks.seconds(value, "timeout")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", b"1", None, 1j, Decimal(1), [1]])
def test_what_is_no_number(value: Any) -> None:
    """Booleans, texts, and what can't be compared with numbers."""
    with pytest.raises(TypeError, match="ttl must be seconds or a timedelta, not "):
        checks.ttl_s(value)


def test_whole_numbers() -> None:
    """What Python takes for an index is one; it comes out as an int, and has bounds."""
    numbers: list[Any] = [3, np.int64(3), np.uint8(3)]
    for value in numbers:
        assert (type(checks.positive(value, "uses")), checks.positive(value, "uses")) == (int, 3)
    for wrong in (True, np.bool_(True), 3.0, np.float64(3), "3", None):
        with pytest.raises(TypeError, match="uses must be a whole number, not "):
            checks.positive(wrong, "uses")
    for none in (0, -1, -(10**5000)):
        with pytest.raises(ValueError, match="uses must be at least 1, not "):
            checks.positive(none, "uses")
    for many in (2**31, 10**30, 10**5000):
        with pytest.raises(ValueError, match="uses must be at most 2147483647, not "):
            checks.positive(many, "uses", checks.MOST_USES)
    assert checks.positive(2**31 - 1, "uses", checks.MOST_USES) == 2**31 - 1


def test_flags_and_labels() -> None:
    """True and False, numpy's too, and nothing that only counts as one of them; texts of up to 1 KiB."""
    assert checks.flag(np.bool_(True), "durable") is True
    wrongs: list[Any] = ["yes", "", 0, 1, None, [], np.int64(1)]
    for wrong in wrongs:
        with pytest.raises(TypeError, match="durable must be True or False, not "):
            checks.flag(wrong, "durable")
    assert checks.label("ü" * 512) == "ü" * 512
    with pytest.raises(ValueError, match="label must have at most 1024 bytes in UTF-8, not 10000000"):
        checks.label("x" * 10_000_000)
    with pytest.raises(ValueError, match="UTF-8") as caught:
        checks.label("\ud800" * 900)
    assert len(str(caught.value)) < 150
    with pytest.raises(TypeError, match="label must be a string, not bytes"):
        checks.label(b"bytes")


def arguments(name: str, value: Any) -> list[Callable[[Any], Any]]:
    """Calls that take an argument of that name, on a reference."""
    given = {name: value}
    calls: list[Callable[[Any], Any]] = [
        lambda ref: safe_refs.dumps([ref], **given),
        lambda ref: safe_refs.dumps_many([[ref]], **given),
        lambda ref: safe_refs.pin(ref, **given),
        lambda ref: asyncio.run(aio.dumps([ref], **given)),
        lambda ref: asyncio.run(aio.pin(ref, **given)),
        lambda ref: safe_refs.put(1, **given),
    ]
    if name not in ("uses", "wait"):
        calls.append(lambda _: safe_refs.scope(**given))
    if name != "wait":
        calls.append(lambda _: safe_refs.dumps("no references", **given))
    return calls


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("label", "x" * 10_000_000, ValueError),
        ("label", 123, TypeError),
        ("durable", "yes", TypeError),
        ("durable", 1, TypeError),
        ("wait", "no", TypeError),
        ("uses", 10**30, ValueError),
        ("uses", 2.0, TypeError),
        ("ttl", math.nan, ValueError),
        ("ttl", True, TypeError),
        ("ttl", "60", TypeError),
    ],
    ids=lambda value: str(value)[:12],
)
def test_mistakes_are_told_where_they_are_made(name: str, value: Any, error: type[Exception]) -> None:
    """By each call, with the argument's name and in a line; nothing is held."""
    ref = ray.put("value")
    for call in arguments(name, value):
        with pytest.raises(error, match=f"^{name} must ") as caught:
            call(ref)
        assert len(str(caught.value)) < 150
    assert safe_refs.leases() == []


@pytest.mark.usefixtures("cluster")
def test_numpys_numbers_are_numbers() -> None:
    """For terms and for waits; a lease has them as plain numbers."""
    numbers: dict[str, Any] = {"uses": np.int64(2), "ttl": np.float32(60.5), "timeout": np.int32(20)}
    payload = safe_refs.dumps(ray.put(1), durable=np.bool_(False), **numbers)  # type: ignore[arg-type] # types don't know numpy's
    assert safe_refs.inspect(payload).terms == {"ttl": 60.5, "uses": 2}
    assert [info.uses_left for info in safe_refs.leases(limit=numbers["uses"])] == [2]
    safe_refs.loads(payload, timeout=np.float64(20), take=np.bool_(True))  # type: ignore[arg-type] # as above
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(payload)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", ["take", "resolve"])
def test_how_to_load_is_true_or_false(name: str) -> None:
    """`take="no"` took."""
    with safe_refs.scope():
        payload = safe_refs.dumps(ray.put(1))
        calls: list[Callable[..., Any]] = [safe_refs.loads, lambda data, **how: safe_refs.loads_many([data], **how)]
        calls.append(lambda data, **how: asyncio.run(aio.loads(data, **how)))
        for call in calls:
            with pytest.raises(TypeError, match=f"{name} must be True or False, not 'no'"):
                call(payload, **{name: "no"})
        assert len(safe_refs.leases()) == 1


@pytest.mark.parametrize("given", [{"protocol": "x"}, {"protocol": 6}, {"protocol": 5.0}, {"protocol": 10**30}])
@pytest.mark.usefixtures("cluster")
def test_protocols_are_refused_as_by_pickle(given: dict[str, Any]) -> None:
    """The same error with the same words, with references and without."""

    def error_of(call: Callable[[], Any]) -> str:
        with pytest.raises(Exception, match=r".") as caught:
            call()
        return repr(caught.value)

    wanted = error_of(lambda: pickle.dumps([1], **given))
    ref = ray.put(1)
    for obj in ([1], [ref], lambda: 1):
        assert error_of(lambda obj=obj: safe_refs.dumps(obj, **given)) == wanted  # type: ignore[misc] # mypy can't infer it
