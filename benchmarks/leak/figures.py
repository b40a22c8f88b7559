"""What the benchmark reports, as frozen records that go to JSON and come back. Needs neither Ray nor safe_refs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Parameters:
    """What is handed over, and how long to wait.

    Attributes:
        rounds: how many rounds.
        handovers: objects handed over in each.
        size_bytes: of one object.
        store_bytes: the object store's memory; Ray takes no less than about 75 MB.
        patience_s: objects of which none arrives for so long are lost.
        quiet_s: the store has settled once its figures have stood still for so long.
        seed: of the objects' random bytes.
    """

    rounds: int = 10
    handovers: int = 20
    size_bytes: int = 1_000_000
    store_bytes: int = 100_000_000
    patience_s: float = 2.0
    quiet_s: float = 1.5
    seed: int = 1


@dataclass(frozen=True)
class Reading:
    """The object store at one moment, after it has settled.

    Attributes:
        memory_bytes: objects in memory that Ray may not drop.
        disk_bytes: spilled objects, as the files that are there take them.
        cached_bytes: objects in memory that Ray may drop at any time, as they are on disk too.
        spilled_bytes: written to disk since the start; never goes down.
        lost: objects that didn't arrive, since the start.
    """

    memory_bytes: int
    disk_bytes: int
    cached_bytes: int
    spilled_bytes: int
    lost: int

    @property
    def pinned_bytes(self) -> int:
        """What is kept, in memory or on disk."""
        return self.memory_bytes + self.disk_bytes


@dataclass(frozen=True)
class Result:
    """One way's figures.

    Attributes:
        way: its name in `ways.WAYS`.
        handed_over: objects that were handed over in all.
        lost_because: how many were lost for which reason.
        under_way: a reading in each round while its payloads are on their way: the producer has no reference any more, the
            consumer none yet.
        rounds: a reading after each round.
        let_go: after all processes dropped them: no process holds a payload, a reference or a value, and all still live.
        workers_died: after producer and consumer were killed. A registry lives on.
        took_s: for the whole run, with Ray's start.
    """

    way: str
    handed_over: int
    lost_because: dict[str, int]
    under_way: list[Reading]
    rounds: list[Reading]
    let_go: Reading
    workers_died: Reading
    took_s: float

    @property
    def lost(self) -> int:
        """Objects that didn't arrive, or arrived altered."""
        return self.let_go.lost

    @property
    def kept(self) -> list[Reading]:
        """The readings that show what stays: after each round, after all let go, after the workers died."""
        return [*self.rounds, self.let_go, self.workers_died]

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Result:
        """A way's figures from what JSON gives."""
        own = {name: value for name, value in fields.items() if name != "lost"}
        for name in ("under_way", "rounds"):
            own[name] = [_reading(each) for each in own[name]]
        for name in ("let_go", "workers_died"):
            own[name] = _reading(own[name])
        return cls(**own)


@dataclass(frozen=True)
class Report:
    """All of it, with what it was measured on."""

    made_on: str
    python: str
    ray: str
    safe_refs: str
    cores: int
    parameters: Parameters
    ways: list[Result]

    def to_json(self) -> str:
        """JSON text. Each reading has its `pinned_bytes`, each way its `lost`."""
        fields = asdict(self)
        for way, result in zip(fields["ways"], self.ways, strict=True):
            way["lost"] = result.lost
            for name in ("under_way", "rounds"):
                for reading, measured in zip(way[name], getattr(result, name), strict=True):
                    reading["pinned_bytes"] = measured.pinned_bytes
            for name in ("let_go", "workers_died"):
                way[name]["pinned_bytes"] = getattr(result, name).pinned_bytes
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote."""
        fields = json.loads(text)
        fields["parameters"] = Parameters(**fields["parameters"])
        fields["ways"] = [Result.from_fields(way) for way in fields["ways"]]
        return cls(**fields)


def _reading(fields: dict[str, int]) -> Reading:
    return Reading(**{name: value for name, value in fields.items() if name != "pinned_bytes"})
