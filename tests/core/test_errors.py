"""Every exception: its family, its facts, and that it survives every way an exception travels."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
import ray

import safe_refs
from safe_refs import errors
from tests.support.processes import run_python

SAMPLES: list[errors.SafeRefsError] = [
    errors.SafeRefsError("root"),
    errors.EnvelopeError("cut short"),
    errors.UnsupportedReferenceError("an actor", kind="ray.actor.ActorHandle", place="payload['actors'][0]"),
    errors.LeaseError("ended", lease="01020304", registry="default", ended_at=1.0),
    errors.LeaseReleasedError.of("01020304", "default", 1.5e9, "pid 1"),
    errors.LeaseExpiredError.of("01020304", "default", 1.5e9, 10.0),
    errors.LeaseUsedUpError.of("01020304", "default", 1.5e9, 2),
    errors.LeaseLostError.of("01020304", "default", 1, None),
    errors.LeaseNotFoundError.of("01020304", "default"),
    errors.LeaseRejectedError.of("01020304", "default", 1.5e9, "the registry is full"),
    errors.OwnerGoneError.of("01020304", "default", 1.5e9),
    errors.OwnerGoneError.of("01020304", "default", 1.5e9, durable=True),
    errors.OwnerGoneError.before_copied("01020304", "default", 1.5e9),
    errors.WrongClusterError.of("01020304", b"a" * 28, b"b" * 28),
    errors.RegistryUnavailableError("no answer"),
    errors.RegistryFullError.of("max_leases", 2, 2, 1, (("label", 2),)),
    errors.UnsupportedReferenceError.of(
        object(), "a ray.actor.ActorHandle, which safe_refs can't carry", "pass its name", kind="ray.actor.ActorHandle"
    ),
]


def every_class() -> set[type]:
    found = set()
    waiting: list[type] = [errors.SafeRefsError]
    while waiting:
        each = waiting.pop()
        found.add(each)
        waiting.extend(each.__subclasses__())
    return {each for each in found if each.__module__ == errors.__name__}


def same(error: BaseException, other: BaseException) -> bool:
    return (type(error), str(error), vars(error)) == (type(other), str(other), vars(other))


def test_there_is_a_sample_of_every_class() -> None:
    """The tests below cover each exception that there is, and all of them are public."""
    assert {type(sample) for sample in SAMPLES} == every_class()
    assert {each.__name__ for each in every_class()} <= set(safe_refs.__all__)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "pickler", [pickle, cloudpickle, ray.cloudpickle], ids=["pickle", "cloudpickle", "ray.cloudpickle"]
)
def test_errors_survive_picklers(error: errors.SafeRefsError, pickler: Any) -> None:
    """Class, message and attributes come through."""
    assert same(pickler.loads(pickler.dumps(error)), error)


def test_errors_survive_a_task(cluster: str) -> None:
    """Raised in a task, each can be caught by its class at `ray.get`, with its attributes."""

    @ray.remote(num_cpus=0)
    def fail(error: Exception) -> None:
        raise error

    for error in SAMPLES:
        with pytest.raises(type(error)) as caught:
            ray.get(fail.remote(error), timeout=30)
        cause = getattr(caught.value, "cause", caught.value)
        assert same(cause, error)


def test_errors_are_also_what_pickle_users_catch() -> None:
    """Old `except` clauses go on working."""
    assert issubclass(errors.EnvelopeError, pickle.UnpicklingError)
    assert issubclass(errors.UnsupportedReferenceError, pickle.PicklingError)
    assert issubclass(errors.LeaseError, LookupError)
    assert issubclass(errors.RegistryUnavailableError, ConnectionError)


def test_an_error_of_a_lease_is_a_copy_of_its_class() -> None:
    """`flush` raises these: the class, the facts and the text stay, and the short id is added; what has one is left as it is."""
    full = errors.RegistryFullError.of("max_leases", 2, 2, 1, (("label", 2),))
    found = errors.of_lease(full, "01020304")
    assert isinstance(found, errors.RegistryFullError)
    assert str(found) == f"lease 01020304 could not be held: {full}"
    assert (found.lease, found.limit, full.lease) == ("01020304", "max_leases", "")
    for pickler in (pickle, cloudpickle):
        assert same(pickler.loads(pickler.dumps(found)), found)
    gone = errors.OwnerGoneError.of("01020304", "default")
    assert errors.of_lease(gone, "01020304") is gone
    assert type(errors.of_lease(KeyError("x"), "01020304")) is KeyError


def test_messages_say_cause_and_remedy() -> None:
    """Each message is a sentence with what happened and what to do, and no more of an id than eight digits."""
    assert str(SAMPLES[4]) == (
        "lease 01020304 was released at 2017-07-14T02:40:00Z by pid 1: a released lease doesn't come back; "
        "ask its maker for a new one, or release it later"
    )
    for sample in SAMPLES[4:]:
        assert len(str(sample)) > 8


def test_who_is_not_connected_hears_what_to_do() -> None:
    """Only where there is a payload or a handle does the error speak of its cluster."""
    code = """
import asyncio, json
import safe_refs
from safe_refs import SafeRef, aio
from safe_refs.envelope import LeaseAddress

handle = SafeRef(LeaseAddress("default", b"c" * 28, b"e" * 8, 1, b"l" * 16))
without = [safe_refs.init, safe_refs.leases, safe_refs.stats, safe_refs.shutdown, lambda: safe_refs.put(1),
           lambda: asyncio.run(aio.leases()), lambda: safe_refs.release(handle.lease_id)]
of_one = [handle.resolve, handle.get, handle.release, lambda: handle.renew(60), lambda: safe_refs.expires_in_s(handle),
          handle.make_durable, lambda: asyncio.run(aio.get(handle)), lambda: asyncio.run(aio.release(str(handle)))]

def error_of(call):
    try:
        call()
    except safe_refs.RegistryUnavailableError as error:
        return str(error)

print(json.dumps([[error_of(call) for call in calls] for calls in (without, of_one)]))
"""
    without, of_one = run_python(code)
    begins = "Ray is not initialized in this process, so the registry can't be reached: call ray.init(address=...)"
    assert without == [f"{begins} first"] * 7
    assert of_one == [f"{begins} for the cluster that the payload belongs to"] * 8
