"""Objects that a shard has handed out since their owners last got a report: which it must know, and how many it keeps."""

from __future__ import annotations

from safe_refs.anchoring.handed_out import HandedOut


def ident(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_what_no_lease_holds_any_more_is_dropped_in_time() -> None:
    """Payloads that are loaded once and taken: a hundred thousand of them leave no more than the first hundred."""
    handed_out = HandedOut(set, lambda: 0)
    for number in range(100_000):
        handed_out.note([ident(number)])
        assert len(handed_out) <= 65


def test_what_another_lease_holds_stays() -> None:
    """The lease that it was resolved from may be gone: a borrower that pins the object again would get what the shard knows."""
    held = {ident(number) for number in range(100)}
    handed_out = HandedOut(lambda: held, lambda: len(held))
    handed_out.note([ident(5)])
    for number in range(1000, 11_000):
        handed_out.note([ident(number)])
        assert len(handed_out) <= 2 * len(held) + 65
    assert ident(5) in handed_out
    handed_out.reported([ident(5)])
    assert ident(5) not in handed_out


def test_the_walk_through_all_leases_is_rare() -> None:
    """It takes as many steps as there are references, so it is made once for as many objects that were handed out."""
    walks = 0

    def held() -> set[bytes]:
        nonlocal walks
        walks += 1
        return set()

    handed_out = HandedOut(held, lambda: 10_000)
    for number in range(100_000):
        handed_out.note([ident(number)])
    assert walks <= 11
