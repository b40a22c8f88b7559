"""From how many references on they are better passed inside one small object (`safe_refs.registry.boxes`), each way. Bare Ray."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.lines import Line, Section, small_ray, spread

COUNTS = (16, 64, 256, 1000)


class Holder:
    """Takes references and gives them, one by one in a list, or in a box."""

    def __init__(self) -> None:
        self.held: Any = []

    def take(self, refs: list[Any]) -> None:
        self.held = refs

    def give(self) -> Any:
        return self.held

    def give_box(self) -> list[Any]:
        import ray

        return [ray.put(list(self.held))]

    def drop(self) -> None:
        self.held = []


def measure(rounds: int) -> Section:
    """All counts, in and out, in turn.

    Args:
        rounds: of each.
    """
    import ray

    lines: list[Line] = []
    with small_ray():
        holder: Any = ray.remote(Holder).options(num_cpus=0).remote()
        for count in COUNTS:
            refs = [ray.put(number) for number in range(count)]
            ways: dict[str, Any] = {
                "in": lambda refs=refs: ray.get(holder.take.remote(refs)),
                "in, boxed": lambda refs=refs: ray.get(holder.take.remote(ray.put(list(refs)))),
                "out": lambda: ray.get(holder.give.remote()),
                "out, boxed": lambda: ray.get(ray.get(holder.give_box.remote())[0]),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, step in ways.items():
                    ray.get(holder.drop.remote() if way.startswith("in") else holder.take.remote(refs))
                    time.sleep(0.02 + count * 1e-4)  # until Ray has told everybody
                    begun = time.perf_counter()
                    step()
                    times[way].append(time.perf_counter() - begun)
            for way in ("in", "out"):
                ratios = [boxed / bare for bare, boxed in zip(times[way], times[f"{way}, boxed"], strict=True)]
                lines.append(spread(f"{count:,} references {way}: in a box ÷ one by one", ratios, "times"))
    text = (
        "A call of a bare Ray actor that takes references in a list, or returns them, against one with an object that contains them. "
        "safe_refs uses a box from where the ratio falls below 1."
    )
    return Section("Where a box pays off", text, lines)


def main() -> None:
    """Print it."""
    for line in measure(30).lines:
        print(f"{line.what:60} {line.value:6.2f} ({line.low:.2f} to {line.high:.2f})")


if __name__ == "__main__":
    main()
