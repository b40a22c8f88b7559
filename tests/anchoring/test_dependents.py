"""Which leases depend on this process: what is noted goes again."""

from __future__ import annotations

from safe_refs.anchoring.dependents import MANY, Dependents


def test_released_leases_are_forgotten() -> None:
    """A process with threads pins one borrowed object again and again, and releases each lease."""
    dependents = Dependents()
    for number in range(10_000):
        lease = number.to_bytes(4, "big")
        dependents.note([b"object"], "default", lease)
        dependents.released("default", [lease])
    assert (len(dependents), dependents.objects(), dependents.leases()) == (0, [], set())


def test_an_object_that_is_anchored_takes_its_leases_along_if_they_hold_no_other() -> None:
    """A lease of two objects depends on this process until both are anchored."""
    dependents = Dependents()
    dependents.note([b"a", b"b"], "default", b"both")
    dependents.note([b"a"], "default", b"one")
    dependents.anchored([b"a"])
    assert (dependents.leases(), dependents.objects()) == ({("default", b"both")}, [b"b"])
    dependents.anchored([b"b"])
    assert len(dependents) == 0


def test_what_is_noted_while_the_registry_is_asked_stays() -> None:
    """It was not asked about that lease."""
    dependents = Dependents()
    dependents.note([b"sooner"], "default", b"sooner")
    asked = dependents.leases()
    dependents.note([b"later"], "default", b"later")
    dependents.keep(asked, set(), {b"sooner", b"later"})
    assert (dependents.leases(), dependents.objects()) == ({("default", b"later")}, [b"later"])


def test_a_lease_stays_while_it_depends_and_its_object_is_still_here() -> None:
    """Of an object that this process has dropped, Ray has reported who else holds it."""
    dependents = Dependents()
    dependents.note([b"dropped", b"held"], "default", b"mixed")
    dependents.note([b"dropped"], "default", b"gone")
    dependents.keep(dependents.leases(), dependents.leases(), {b"held"})
    assert (dependents.leases(), dependents.objects()) == ({("default", b"mixed")}, [b"held"])


def test_it_is_full_again_only_when_as_many_have_come_again() -> None:
    """A process on which ten thousand leases depend doesn't ask about all of them at each further one."""
    dependents = Dependents()
    for number in range(MANY):
        assert not dependents.is_full()
        dependents.note([b"object"], "default", number.to_bytes(4, "big"))
    assert dependents.is_full()
    dependents.keep(dependents.leases(), dependents.leases(), {b"object"})
    for number in range(MANY, 2 * MANY):
        assert not dependents.is_full()
        dependents.note([b"object"], "default", number.to_bytes(4, "big"))
    assert dependents.is_full()


def test_taking_them_leaves_nothing() -> None:
    """What one thread anchors at the end, no other does."""
    dependents = Dependents()
    dependents.note([b"a"], "default", b"lease")
    assert dependents.take() == {("default", b"lease"): frozenset({b"a"})}
    assert dependents.take() == {}
