"""The account of what live leases hold: which objects, each by one Python object, whatever was brought."""

from __future__ import annotations

import random

from safe_refs.config import Limits
from safe_refs.registry.usage import Usage


class Ref:
    """Equal to others of its number, as references to one object are."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


def test_one_object_in_several_leases() -> None:
    """The very same Python object, an equal one, and one twice in a lease: it is held until the last of them goes."""
    usage: Usage[Ref] = Usage(Limits())
    one = Ref(1)
    leases = [
        usage.add([one], "job"),
        usage.add([one], "job"),
        usage.add([Ref(1)], "job"),
        usage.add([one, Ref(1)], "job"),
    ]
    assert {id(each) for held in leases for each in held} == {id(one)}
    for held in leases:
        assert Ref(1) in usage
        usage.drop(held, "job")
    assert Ref(1) not in usage
    assert (usage.leases, usage.references) == (0, 0)
    assert usage._held == {}
    assert usage._more == {}


def test_it_is_as_a_count_of_all() -> None:
    """Leases come and go, with objects in common."""
    chance = random.Random(1)  # noqa: S311 # not for secrets
    usage: Usage[Ref] = Usage(Limits())
    live: list[tuple[Ref, ...]] = []
    for _ in range(3000):
        if live and chance.random() < 0.5:
            usage.drop(live.pop(chance.randrange(len(live))), "job")
        else:
            items = [Ref(chance.randrange(10)) for _ in range(chance.randrange(1, 4))]
            live.append(usage.add(items, "job"))
        held = {each.number for items in live for each in items}
        assert {number for number in range(10) if Ref(number) in usage} == held
    for rest in live:
        usage.drop(rest, "job")
    assert usage._held == {}
