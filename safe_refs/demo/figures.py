"""What the demo measured, and what it makes of it. `--json` prints these classes field by field.

What always holds: a field's name ends in its unit; `problems` is the only judge, and looks at nothing but the figures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One way to pickle references, tried on some objects. All `..._bytes` are what the store held at that moment.

    Attributes:
        way: `pickle`, `ray.cloudpickle` or `safe_refs`.
        refused: whether Ray refused to pickle at all (`RAY_allow_out_of_band_object_ref_serialization=0`).
        objects: how many objects were put into the store.
        came_back: how many of them another process got back, whole, after the maker had dropped its references.
        before_bytes: before anything was put.
        pickled_bytes: once the objects were put and their references pickled.
        maker_dropped_bytes: once the maker had dropped its own references.
        all_dropped_bytes: once the process that loaded them had dropped its references, too.
        released_bytes: after `safe_refs.release`; None for the other ways, which have no such thing.
        maker_ended_bytes: once the maker's process had ended.
        leftover_bytes: what stayed in the store although nobody held a reference, and (safe_refs) the lease was released.
    """

    way: str
    refused: bool
    objects: int
    came_back: int
    before_bytes: int
    pickled_bytes: int
    maker_dropped_bytes: int
    all_dropped_bytes: int
    released_bytes: int | None
    maker_ended_bytes: int
    leftover_bytes: int


@dataclass(frozen=True)
class HandOver:
    """Files handed from one Ray job to another, through a channel outside Ray.

    Attributes:
        channel: `sqlite` or `redis`.
        producer_job: Ray's id of the job that put the files into the store.
        consumer_job: Ray's id of the job that checked them.
        files: how many files were to be handed over.
        bytes: their size, as read.
        checked_files: how many the consumer loaded and hashed.
        mismatches: how many of these had another size or SHA-256 than the producer wrote.
        mismatched_files: their names.
        store_before_bytes: what the object store held before.
        store_peak_bytes: the most that it was seen to hold meanwhile.
        store_after_bytes: what it held once the consumer had ended, while the producer, which owns the objects, still lived.
        live_leases: leases that the registry still held then.
        duration_s: from the start of both processes to the end of both.
    """

    channel: str
    producer_job: str
    consumer_job: str
    files: int
    bytes: int
    checked_files: int
    mismatches: int
    mismatched_files: tuple[str, ...]
    store_before_bytes: int
    store_peak_bytes: int
    store_after_bytes: int
    live_leases: int
    duration_s: float


@dataclass(frozen=True)
class Outcome:
    """The whole demo.

    Attributes:
        ok: whether there are no problems; the exit status is 0 then, and 1 otherwise.
        problems: what went wrong, in words.
        safe_refs_version: release of safe_refs.
        ray_version: release of Ray.
        store_size_bytes: size of the object store that the demo started.
        three_ways: part 1.
        hand_over: part 2.
        duration_s: of everything, Ray's start and stop included.
    """

    ok: bool
    problems: tuple[str, ...]
    safe_refs_version: str
    ray_version: str
    store_size_bytes: int
    three_ways: tuple[Way, ...]
    hand_over: HandOver
    duration_s: float


def problems(ways: tuple[Way, ...], hand_over: HandOver) -> tuple[str, ...]:
    """What went wrong, in words; empty if nothing did.

    What plain pickle loses and `ray.cloudpickle` pins is no problem of the demo's: it is what it shows.
    """
    found = []
    for way in ways:
        if way.way != "safe_refs":
            continue
        if way.came_back != way.objects:
            found.append(f"safe_refs gave back {way.came_back} of {way.objects} objects")
        if way.leftover_bytes > 0:
            found.append(f"{way.leftover_bytes} bytes stayed in the store after safe_refs.release")
    if hand_over.checked_files != hand_over.files:
        found.append(f"only {hand_over.checked_files} of {hand_over.files} files arrived")
    if hand_over.mismatches:
        found.append(f"{hand_over.mismatches} file(s) arrived changed: {', '.join(hand_over.mismatched_files)}")
    left = hand_over.store_after_bytes - hand_over.store_before_bytes
    if left > 0:
        found.append(f"{left} bytes stayed in the store after the hand-over")
    if hand_over.live_leases:
        found.append(f"{hand_over.live_leases} lease(s) stayed behind")
    return tuple(found)
